"""``dbgpt-guanaco``: the commands around the server."""

import sys
from pathlib import Path
from typing import Annotated

from dbgpt_guanaco.errors import GuanacoError

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError:  # only the plugin for DB-GPT is installed
    sys.exit("the server is not installed: pip install 'dbgpt-guanaco[server]'")

app = typer.Typer(
    help="Serve a private, 4-bit language model to DB-GPT.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def serve() -> None:
    """Load the model that LLM_MODEL or .env names, and serve it.

    Example:  LLM_MODEL=guanaco-33b-merged dbgpt-guanaco serve
    """
    from dbgpt_guanaco.server.__main__ import main

    sys.exit(main())


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="a model folder with pytorch_model*.bin")],
) -> None:
    """Turn the pickled weights of an old model folder into safetensors, beside them.

    The pickles are read as weights only: nothing in them is executed.

    Example:  dbgpt-guanaco convert models/guanaco-33b-merged
    """
    from dbgpt_guanaco.adapters.convert import convert_pickled_weights

    console = Console(stderr=True)
    try:
        written = convert_pickled_weights(folder)
    except GuanacoError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    console.print(f"{folder}: {len(written)} safetensors files written; the .bin can go")
