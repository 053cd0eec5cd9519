"""``dbgpt-guanaco convert``."""

from pathlib import Path
from typing import Annotated

import typer

from dbgpt_guanaco.cli.messages import errors_told


def convert(
    folder: Annotated[Path, typer.Argument(help="a model folder with pytorch_model*.bin")],
) -> None:
    """Turn the pickled weights of an old model folder into safetensors, beside them.

    The pickles are read as weights only: nothing in them is executed.

    Example:  dbgpt-guanaco convert models/guanaco-33b-merged
    """
    from dbgpt_guanaco.adapters.convert import convert_pickled_weights

    with errors_told() as console:
        written = convert_pickled_weights(folder)
        console.print(f"{folder}: {len(written)} safetensors files written; the .bin can go")
