"""``dbgpt-guanaco merge``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from dbgpt_guanaco.cli.messages import errors_told
from dbgpt_guanaco.cli.progress import bytes_shown


def merge(
    base: Annotated[str, typer.Argument(help="the 16-bit model: a folder or a name")],
    lora: Annotated[str, typer.Argument(help="the LoRA: a folder or a name")],
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist")],
    base_weights: Annotated[
        Literal["fp16", "dequantized"],
        typer.Option("--base", help="add to the weights as they are, or as NF4 training saw them"),
    ] = "fp16",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where to compute")] = "cpu",
    report: Annotated[bool, typer.Option(help="compare with the un-merged model")] = True,
    text: Annotated[Path | None, typer.Option(help="held-out text for that")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Add a LoRA to its base, and write the sum as an ordinary model.

    Memory holds one shard and never the model. An interrupted run goes on where it was.

    Example:  dbgpt-guanaco merge huggyllama/llama-7b guanaco-7b --out models/mine
    """
    from dbgpt_guanaco.checkpoints.comparison import read_text, report_on
    from dbgpt_guanaco.checkpoints.merging import merge_lora, open_merge
    from dbgpt_guanaco.checkpoints.names import find_device, find_pair
    from dbgpt_guanaco.checkpoints.partial import refuse_existing
    from dbgpt_guanaco.environment import load_settings

    with errors_told() as console:
        refuse_existing(out)
        held_out = read_text(text)
        where = find_device(device)
        folders = find_pair(base, lora, load_settings().model)
        recipe = open_merge(*folders, base_weights, where)
        total = recipe.source.total_bytes
        with bytes_shown(console, "merging", total, is_quiet=as_json) as advance:
            card = merge_lora(recipe, out, advance)
        if report:
            card = report_on(out, *folders, base_weights, where, held_out)
        if as_json:
            typer.echo(json.dumps({**card, "out": str(out)}))
        else:
            _tell(console, out, card)


def _tell(console: Console, out: Path, card: Mapping[str, Any]) -> None:
    console.print(f"{out}: {card['tensors']['merged']} weights merged", soft_wrap=True)
    report = card.get("report")
    if report and "refused" in report:
        console.print(f"not compared: {report['refused']}", soft_wrap=True, markup=False)
    elif report:
        table = Table("measure", "un-merged", "merged", title=f"{report['tokens']} tokens")
        table.add_row("perplexity", *(f"{report[k]:.3f}" for k in ("unmerged", "merged")))
        table.add_row("mean KL, nats a token", "", f"{report['mean_kl']:.2e}")
        table.add_row("greedy agreement", "", f"{report['agreement_percent']:.1f} %")
        console.print(table)
