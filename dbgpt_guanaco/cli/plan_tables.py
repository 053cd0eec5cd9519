"""How ``plan`` looks on a terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dbgpt_guanaco.adapters.machine import Machine
from dbgpt_guanaco.adapters.memory import GIB
from dbgpt_guanaco.adapters.outlook import Outlook, TrainingOutlook
from dbgpt_guanaco.adapters.serving_plan import ServingPlan

WAYS: Mapping[str, str] = {"nf4": "nf4", "int8": "int8", "none": "16 bits"}

LEGEND = (
    "Sizes in GiB. best: the most bits a weight that fit, with one full context",
    "cache: keys and values of 1,000 tokens; tokens: how many fit beside nf4 weights",
    "train: a QLoRA training; paged: it fits while optimizer states come and go",
)


def show_one(machine: Machine, outlook: Outlook) -> None:
    """Print all of one model."""
    console = Console()
    candidate, shape = outlook.candidate, outlook.candidate.shape
    on = f", a LoRA of {gib(candidate.lora_bytes)} on {candidate.base}" if candidate.base else ""
    stored = f", stored as {candidate.stored}" if candidate.stored else ""
    lines = (
        f"{candidate.name}{on}: {shape.family} of {shape.parameters / 1e9:.2f} billion "
        f"parameters{stored}, context {shape.context_tokens:,} ({candidate.known_from})",
        _told(machine),
        f"keys and values of 1,000 tokens take {gib(1000 * shape.kv_bytes_per_token)}",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(_serving_table(outlook.serving))
    if outlook.training:
        _show_training(console, outlook.training)


def show_all(machine: Machine, outlooks: Sequence[Outlook]) -> None:
    """Print one line a model."""
    console = Console()
    console.print(_told(machine), soft_wrap=True, markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("model", "best"):
        table.add_column(column, no_wrap=True)
    trained = [outlook.training for outlook in outlooks if outlook.training]
    columns = ("nf4", "int8", "16 bits", "cache", "tokens", *(("train",) if trained else ()))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for outlook in outlooks:
        table.add_row(*_row(outlook), style=None if outlook.best else "dim")
    console.print(table)
    for line in LEGEND[: len(LEGEND) if trained else -1]:
        console.print(line, soft_wrap=True, highlight=False)


def _row(outlook: Outlook) -> list[str]:
    sizes: dict[str, str] = {p.quantization: _gib(p.memory.weight_bytes) for p in outlook.serving}
    best = outlook.best
    row = [outlook.candidate.name, WAYS[best.quantization] if best else "–"]
    row += [sizes.get(kind, "") for kind in WAYS]
    row += [_gib(1000 * outlook.candidate.shape.kv_bytes_per_token)]
    row += [f"{outlook.serving[0].cache_tokens:,}"]
    if outlook.training:
        row += [f"{_gib(outlook.training.plan.total_bytes)} {verdict(outlook.training):>5}"]
    return row


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}" if size >= GIB else f"{size / GIB:,.2f}"


def _serving_table(plans: Sequence[ServingPlan]) -> Table:
    table = Table("weights", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    context = plans[0].context_tokens
    columns = ("size", f"with {context:,} tokens", "fits", "tokens of cache", "streams")
    for column in columns:
        table.add_column(column, justify="right")
    for plan in plans:
        fits = "yes" if plan.fits else "no"
        if not plan.fits and plan.largest_context >= 256:
            fits = f"up to {plan.largest_context:,} tokens"
        cache = f"{plan.cache_tokens:,}" if plan.cache_tokens else "–"
        table.add_row(
            WAYS[plan.quantization],
            gib(plan.memory.weight_bytes),
            gib(plan.needed_bytes),
            fits,
            cache,
            f"{plan.streams} × {context:,}" if plan.streams else "–",
        )
    return table


def _show_training(console: Console, outlook: TrainingOutlook) -> None:
    run, plan = outlook.run, outlook.plan
    title = f"training: rank {run.rank}, {run.micro_batch} × {run.tokens:,} tokens, {run.optimizer}"
    console.print(title, soft_wrap=True, highlight=False)
    table = Table("part", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("size", justify="right")
    rows = {
        "base in NF4, double quantization": plan.base_bytes,
        f"LoRA, {outlook.lora_parameters / 1e6:,.0f} million weights": plan.lora_bytes,
        "its gradients": plan.gradient_bytes,
        "optimizer states": plan.optimizer_bytes,
        "activations, kept for the gradient": plan.activation_bytes,
        "logits, or one layer in work": plan.work_bytes,
        "working room": plan.overhead_bytes,
    }
    for name, size in rows.items():
        table.add_row(name, gib(size))
    table.add_section()
    table.add_row("together", gib(plan.total_bytes))
    console.print(table)
    longest = outlook.longest_tokens
    rest = f"; sequences of up to {longest:,} tokens would fit" if longest else ""
    told = {
        "fits": "it fits",
        "no": "it does not fit",
        "paged": f"it fits with optimizer states paged; {gib(plan.least_bytes)} must be there",
    }
    console.print(told[verdict(outlook)] + rest, soft_wrap=True, highlight=False)


def verdict(outlook: TrainingOutlook) -> str:
    """Return whether a training fits, in a word."""
    if outlook.is_paging:
        return "paged"
    return "fits" if outlook.fits else "no"


def gib(size: int) -> str:
    """Write a size for a person."""
    if size < GIB / 10:
        return f"{size / 2**20:,.0f} MiB"
    return f"{size / GIB:,.2f} GiB"


def _told(machine: Machine) -> str:
    return f"{machine.name}: {gib(machine.available_bytes)} free"
