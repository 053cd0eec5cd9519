"""``dbgpt-guanaco plan``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dbgpt_guanaco.cli.messages import errors_told

if TYPE_CHECKING:  # they bring torch, which takes seconds; a wrong call is told before
    from dbgpt_guanaco.adapters.machine import Machine
    from dbgpt_guanaco.adapters.outlook import Outlook


def plan(
    model: Annotated[
        str | None, typer.Argument(help="a folder, a known name or a hub name", show_default="all")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="memory of a GPU, such as 24GB", show_default="this machine")
    ] = None,
    is_all: Annotated[bool, typer.Option("--all", help="every known model, in one table")] = False,
    context: Annotated[
        int | None,
        typer.Option(min=16, help="prompt and answer, in tokens", show_default="the model's own"),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="also plan a QLoRA training")] = False,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="of the LoRA")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="sequences computed at a time")] = 1,
    length: Annotated[int, typer.Option(min=16, help="tokens of the longest sequence")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say what a model needs and whether it fits, before anything is fetched or loaded.

    Reads config.json and the headers of weights, here or on the hub; the known models need
    neither. The server refuses by the same rules.

    Example:  dbgpt-guanaco plan guanaco-33b --gpu 24GB --train
    """
    from dbgpt_guanaco.adapters.candidates import find_candidate, known_candidates
    from dbgpt_guanaco.adapters.machine import gpu_of, this_machine
    from dbgpt_guanaco.adapters.outlook import Question, look_at
    from dbgpt_guanaco.adapters.training_memory import TrainingRun
    from dbgpt_guanaco.cli.plan_tables import show_all, show_one
    from dbgpt_guanaco.environment import load_settings
    from dbgpt_guanaco.errors import ConfigurationError

    with errors_told():
        if model and is_all:
            raise ConfigurationError(f"--all is for every known model; drop it, or {model}")
        settings = load_settings()
        machine = gpu_of(gpu) if gpu else this_machine(settings.model)
        run = TrainingRun(rank, batch, length) if train else None
        question = Question(machine, context, run)
        if model:
            candidates = [find_candidate(model, settings.model)]
        else:
            candidates = known_candidates(settings.model)
        outlooks = [look_at(candidate, question, settings) for candidate in candidates]
        if as_json:
            typer.echo(json.dumps(_as_object(machine, outlooks), indent=2, ensure_ascii=False))
        elif model:
            show_one(machine, outlooks[0])
        else:
            show_all(machine, outlooks)


def _as_object(machine: Machine, outlooks: list[Outlook]) -> dict[str, Any]:
    return {
        "machine": {
            "name": machine.name,
            "on_cuda": machine.on_cuda,
            "available_bytes": machine.available_bytes,
        },
        "models": [outlook.as_object() for outlook in outlooks],
    }
