"""How ``plan`` looks on a terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dbgpt_guanaco.adapters.machine import Machine
from dbgpt_guanaco.adapters.memory import GIB
from dbgpt_guanaco.adapters.outlook import Outlook, TrainingOutlook
from dbgpt_guanaco.adapters.serving_plan import ServingPlan

WAYS: Mapping[str, str] = {"nf4": "nf4", "int8": "int8", "none": "16 bits"}


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
    table = Table()
    table.add_column("model", no_wrap=True)
    table.add_column("best that fits")
    for column in ("nf4", "int8", "16 bits", "1,000 tokens of cache", "cache beside nf4, tokens"):
        table.add_column(column, justify="right")
    has_training = any(outlook.training for outlook in outlooks)
    if has_training:
        table.add_column("training", justify="right")
        table.add_column("fits")
    for outlook in outlooks:
        best = outlook.best
        sizes: dict[str, str] = {
            plan.quantization: gib(plan.memory.weight_bytes) for plan in outlook.serving
        }
        cells = [outlook.candidate.name, WAYS[best.quantization] if best else "nothing"]
        cells += [sizes.get(kind, "") for kind in WAYS]
        cells += [gib(1000 * outlook.candidate.shape.kv_bytes_per_token)]
        cells += [f"{outlook.serving[0].cache_tokens:,}"]
        if outlook.training:
            cells += [gib(outlook.training.plan.total_bytes), verdict(outlook.training)]
        table.add_row(*cells, style=None if best else "dim")
    console.print(table)


def _serving_table(plans: Sequence[ServingPlan]) -> Table:
    table = Table("weights in")
    context = plans[0].context_tokens
    columns = ("size", f"with one context of {context:,}", "fits", "tokens of cache", "streams")
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
    table = Table("part")
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
    told = {"yes": "it fits", "no": "it does not fit"}.get(verdict(outlook))
    told = (
        told or f"it fits while optimizer states are paged: {gib(plan.least_bytes)} must be there"
    )
    console.print(told + rest, soft_wrap=True, highlight=False)


def verdict(outlook: TrainingOutlook) -> str:
    """Return whether a training fits, in a word."""
    if outlook.is_paging:
        return "paged"
    return "yes" if outlook.fits else "no"


def gib(size: int) -> str:
    """Write a size for a person."""
    if size < GIB / 10:
        return f"{size / 2**20:,.0f} MiB"
    return f"{size / GIB:,.2f} GiB"


def _told(machine: Machine) -> str:
    return f"{machine.name}: {gib(machine.available_bytes)} free"
