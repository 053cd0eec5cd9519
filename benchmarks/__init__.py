"""Benchmarks of a running server, measured at the client.

    serve (command line) → load (drives) → answer (one stream) → sse (bytes → events)
                         → report, picture (what people read) → measures (the numbers)

Nothing here imports the server: any OpenAI-compatible server can be measured.
"""
