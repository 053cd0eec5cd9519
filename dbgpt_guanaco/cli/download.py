"""``dbgpt-guanaco download``."""

import json
from typing import Annotated

import typer

from dbgpt_guanaco.cli.messages import errors_told
from dbgpt_guanaco.cli.progress import bytes_shown


def download(
    name: Annotated[str, typer.Argument(help="a known name, or org/name on the hub")],
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Fetch a model, and the base of a LoRA, into the models folder.

    Every file is held against the hub's checksum. An interrupted run goes on where it was.

    Example:  dbgpt-guanaco download guanaco-7b
    """
    from dbgpt_guanaco.adapters.download import download_model
    from dbgpt_guanaco.environment import load_settings

    with errors_told() as console:
        folders = download_model(
            name,
            load_settings().model.models_dir,
            lambda what, total: bytes_shown(console, what, total, is_quiet=as_json),
        )
        if as_json:
            typer.echo(json.dumps({"name": name, "folders": [str(folder) for folder in folders]}))
        else:
            for folder in folders:
                console.print(f"{folder}: whole", soft_wrap=True, markup=False)
            console.print(f"  LLM_MODEL={name} dbgpt-guanaco serve", soft_wrap=True, markup=False)
