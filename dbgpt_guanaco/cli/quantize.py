"""``dbgpt-guanaco quantize``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dbgpt_guanaco.cli.messages import errors_told
from dbgpt_guanaco.cli.progress import bytes_shown


def quantize(
    model: Annotated[str, typer.Argument(help="a folder, a known name or a hub name")],
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist")],
    to: Annotated[Literal["nf4", "int8"], typer.Option(help="how weights are stored")] = "nf4",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where to quantize")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Write a model as an NF4 or int8 checkpoint, which the server starts from directly.

    Memory holds one shard and never the model. An interrupted run goes on where it was.

    Example:  dbgpt-guanaco quantize guanaco-33b-merged --out models/guanaco-33b-nf4
    """
    from dbgpt_guanaco.checkpoints.names import find_device, find_model
    from dbgpt_guanaco.checkpoints.partial import refuse_existing
    from dbgpt_guanaco.checkpoints.quantizing import quantize_model
    from dbgpt_guanaco.checkpoints.source import open_source
    from dbgpt_guanaco.environment import load_settings

    with errors_told() as console:
        refuse_existing(out)
        where = find_device(device)
        source = open_source(find_model(model, load_settings().model))
        with bytes_shown(console, "quantizing", source.total_bytes, is_quiet=as_json) as advance:
            card = quantize_model(source, to, out, where, advance)
        written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        if as_json:
            typer.echo(json.dumps({**card, "out": str(out), "weight_bytes": written}))
        else:
            console.print(f"{out}: {to}, {written / 2**20:,.0f} MiB; serve it with", soft_wrap=True)
            console.print(f"  LLM_MODEL={out} dbgpt-guanaco serve", soft_wrap=True, markup=False)
