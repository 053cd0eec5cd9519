"""Benchmarks of a running server, measured at the client.

    serve (command line) → load (drives) → answer (one stream) → sse (bytes → events)
                         → report, picture (what people read) → measures (the numbers)
    compare (command line) → tour (visits) → processes (start, end) → peers (commands)
                           → comparison_report (what people read) → comparison (the ratios)
    behaviour (command line) → strain (what is done) → behaviour_arithmetic (what it shows)

Nothing here imports the server: any OpenAI-compatible server can be measured.
"""
