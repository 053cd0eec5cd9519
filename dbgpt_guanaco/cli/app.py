"""All commands, one function each in a module of its own."""

import logging

import typer

from dbgpt_guanaco.cli.convert import convert
from dbgpt_guanaco.cli.doctor import doctor
from dbgpt_guanaco.cli.download import download
from dbgpt_guanaco.cli.finetune import finetune
from dbgpt_guanaco.cli.merge import merge
from dbgpt_guanaco.cli.models import models
from dbgpt_guanaco.cli.plan import plan
from dbgpt_guanaco.cli.quantize import quantize
from dbgpt_guanaco.cli.serve import serve

app = typer.Typer(
    help="Serve a private, 4-bit language model to DB-GPT.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def before() -> None:
    """Serve a private, 4-bit language model to DB-GPT."""
    # At import it offers to download a kernel that it has a built-in for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


for _command in (
    serve, plan, doctor, convert, download, models, finetune, merge, quantize,
):  # fmt: skip
    app.command()(_command)
