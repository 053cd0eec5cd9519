"""What commands tell the person at the terminal. Results go to standard output, the rest here."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from dbgpt_guanaco.errors import GuanacoError

FAILED = 2


@contextmanager
def errors_told() -> Iterator[Console]:
    """Yield where to write, and end the command with one message and status 2 at an error."""
    console = Console(stderr=True)
    try:
        yield console
    except GuanacoError as error:
        # Not folded: a command in the message must survive copying.
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
