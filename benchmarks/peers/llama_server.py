"""llama.cpp's own OpenAI server, with the demo model as Q4_1. Runs in the peer's environment.

The package ``xllamacpp`` holds llama.cpp as a library; this gives its server a command line.
"""

import argparse
import signal
import sys

import xllamacpp  # type: ignore[import-not-found]  # only there is it installed

from benchmarks.peers.gguf_file import find_gguf


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True, help="of each slot")
    words = parser.parse_args()
    stops = {signal.SIGTERM, signal.SIGINT}
    # Before its threads begin, so that they leave the signals to this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    server = xllamacpp.Server(_parameters(words))
    print(f"listening on {server.listening_address}", file=sys.stderr)
    signal.sigwait(stops)
    del server


def _parameters(words: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(find_gguf())
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = words.port
    parameters.n_parallel = words.slots
    parameters.n_ctx = words.slots * words.context_tokens
    parameters.cpuparams.n_threads = words.threads
    parameters.cpuparams_batch.n_threads = words.threads
    parameters.n_gpu_layers = 0
    return parameters


if __name__ == "__main__":
    main()
