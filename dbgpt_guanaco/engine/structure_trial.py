"""Compiles a grammar in a process of its own first, where a hostile one can do no harm.

llguidance bounds its work, but not all of it: some grammars of a few hundred characters compute
for minutes, and a long enough chain of references overflows the stack, which ends a process.
(benchmarks/results/2026-11-24-structure-libraries.md has examples.) What compiles here within
these limits is compiled again in the server. It costs a tenth of a second for each new grammar.
"""

import signal
import subprocess
import sys
import threading

from dbgpt_guanaco.engine.structure_grammar import parse

CPU_S = 2
WALL_S = 20  # the device's own work may take the cores meanwhile
MEMORY_BYTES = 2**30
# Far less than a thread of the server has, so that what fits here fits there.
STACK_BYTES = 2**20


def try_out(grammar: str) -> None:
    """Compile a grammar for a vocabulary of single bytes, and throw it away.

    Raises:
        ValueError: It does not compile, or takes too much; the message says which.
    """
    command = [sys.executable, "-P", "-m", __name__]
    try:
        trial = subprocess.run(  # noqa: S603 - our own interpreter and module; input is no code
            command, input=grammar.encode(), capture_output=True, timeout=WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"takes more than {WALL_S} s to compile") from None
    if trial.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ValueError(f"takes more than {CPU_S} s to compile")
    if trial.returncode < 0:
        raise ValueError("is nested or chained too deeply, or takes too much memory to compile")
    if trial.returncode:
        raise RuntimeError(f"the trial of a grammar failed: {trial.stderr.decode()[-2000:]}")
    if trial.stdout:
        raise ValueError(trial.stdout.decode())


def main() -> None:
    """Read a grammar from standard input, write what is wrong with it."""
    import resource  # not on Windows, where the rest of the package can at least be imported

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    grammar = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_compile, args=(grammar,))
    thread.start()
    thread.join()


def _compile(grammar: str) -> None:
    from llguidance import LLTokenizer

    try:
        parse(LLTokenizer("byte"), grammar)
    except ValueError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))


if __name__ == "__main__":
    main()
