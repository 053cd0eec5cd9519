"""``dbgpt-guanaco models``."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dbgpt_guanaco.cli.messages import errors_told

if TYPE_CHECKING:
    from dbgpt_guanaco.adapters.catalog import Entry


def models(
    gpu: Annotated[
        str | None, typer.Option(help="a card's memory, such as 24GB; else this machine's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """List the models in the models folder and the known names, and say which fit.

    Example:  dbgpt-guanaco models --gpu 24GB
    """
    from dbgpt_guanaco.adapters import default_registry
    from dbgpt_guanaco.adapters.catalog import Catalog
    from dbgpt_guanaco.adapters.machine import gpu_of, this_machine
    from dbgpt_guanaco.environment import load_settings

    with errors_told():
        settings = load_settings().model
        machine = gpu_of(gpu) if gpu else this_machine(settings)
        entries = Catalog(settings.models_dir, default_registry(), machine).entries()
        if as_json:
            told = [asdict(entry) for entry in entries]
            typer.echo(json.dumps({"machine": asdict(machine), "models": told}))
            return
        free = machine.available_bytes / 2**30
        title = f"{settings.models_dir} and known names, for {machine.name}: {free:.1f} GiB free"
        Console(width=None if Console().is_terminal else 160).print(_table(title, entries))


def _table(title: str, entries: "list[Entry]") -> Table:
    table = Table("model", "is", "family", "on disk", "needs", "fits", "", title=title)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.kind,
            entry.family or "",
            _size(entry.disk_bytes),
            _size(entry.needed_bytes),
            {True: "yes", False: "no", None: "?"}[entry.fits],
            entry.note,
        )
    return table


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
