"""Command line: QLoRA training, merging and quantizing on a device, against what was predicted.

Run as ``python benchmarks/gpu_training.py --out FOLDER``; ``--tiny --device cpu`` tries it without
a GPU. Weights are random and made here, nothing is fetched.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.facts import as_list, run_facts
from benchmarks.gpu_models import SHAPES, TINY, Shape, build
from benchmarks.measured_memory import PASSES, Training, peak_allocated
from dbgpt_guanaco.adapters.shapes import shape_of
from dbgpt_guanaco.adapters.training_memory import Optimizer, TrainingRun, plan_training
from dbgpt_guanaco.checkpoints.merging import merge_lora, open_merge
from dbgpt_guanaco.checkpoints.quantizing import quantize_model
from dbgpt_guanaco.checkpoints.source import open_source

GIB = 2**30
STEPS = 3

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Trained:
    """Training of one shape.

    Attributes:
        step_s: Seconds of an optimizer step, the median.
        tokens_per_s: Through forward and backward pass.
        predicted_gib: Of all tensors.
        measured_gib: Of all tensors, at the fullest moment.
    """

    model: str
    rank: int
    tokens: int
    optimizer: str
    step_s: float
    tokens_per_s: float
    predicted_gib: float
    measured_gib: float


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that was merged or quantized.

    Attributes:
        gb_per_s: Of the 16-bit weights that were read.
        device_gib: What it took of the device at most; 0 on a CPU, where the suite measures it.
    """

    model: str
    job: str
    read_gb: float
    seconds: float
    gb_per_s: float
    device_gib: float


@app.command()
def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for JSON and Markdown.")],
    only: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Models: {', '.join(SHAPES)}.")
    ] = "7b",
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 64,
    tokens: Annotated[int, typer.Option(min=8, help="Of a sequence.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Of the checkpoint that is written.")] = 4,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A model of two small layers, to try this command.")
    ] = False,
) -> None:
    """Train, merge and quantize; the results so far are written after each.

    Exit code 0: done. 2: nothing was measured.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device; try --tiny --device cpu")
    unknown = [name for name in only.split(",") if name not in SHAPES]
    if unknown and not tiny:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}")
    shapes = (TINY,) if tiny else tuple(SHAPES[name] for name in only.split(","))
    optimizer: Optimizer = "paged_adamw_32bit" if device == "cuda" else "adamw_torch"
    run = TrainingRun(rank=rank, tokens=tokens, optimizer=optimizer)
    out.mkdir(parents=True, exist_ok=True)
    results: list[Trained | Written] = []
    for result in measure(shapes, run, layers, torch.device(device)):
        results.append(result)
        save(out, torch.device(device), results)
        print(result, flush=True)


def measure(
    shapes: tuple[Shape, ...], run: TrainingRun, layers: int, device: torch.device
) -> Iterator[Trained | Written]:
    """Train each shape, then merge and quantize a checkpoint of some of its layers."""
    for shape in shapes:
        yield train(shape, run, device)
        _clean_up(device)
        with tempfile.TemporaryDirectory() as place:
            base, lora = make_checkpoint(Path(place), shape, layers)
            for job in (_merge, _quantize):
                yield _written(shape, job, base, lora, device)
                _clean_up(device)


def train(shape: Shape, run: TrainingRun, device: torch.device) -> Trained:
    """Make some optimizer steps on a model of random weights in NF4."""
    built = build(shape, device)
    config = built.model.config
    training = Training(built.model, run)
    training.step()  # from here on the optimizer has its states, and kernels are there
    times, measured = [], 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(STEPS):
        began_s = time.perf_counter()
        training.step()
        _finish(device)
        times.append(time.perf_counter() - began_s)
    if device.type == "cuda":
        measured = torch.cuda.max_memory_allocated(device)
    else:
        measured = training.kept_bytes + peak_allocated(training.step)
    plan = plan_training(shape_of(config), run, on_cuda=device.type == "cuda")
    step_s = statistics.median(times)
    return Trained(
        shape.name, run.rank, run.tokens, run.optimizer, step_s,
        PASSES * run.micro_batch * run.tokens / step_s,
        plan.tensor_bytes / GIB, measured / GIB,
    )  # fmt: skip


def make_checkpoint(folder: Path, shape: Shape, layers: int) -> tuple[Path, Path]:
    """Write a random 16-bit model of a shape, and a LoRA that fits it."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    base, lora = folder / "base", folder / "lora"
    model.save_pretrained(base, max_shard_size="1GB")
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(base)
    with_lora = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
    )
    for name, weight in with_lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    with_lora.save_pretrained(str(lora), save_embedding_layers=False)
    return base, lora


Job = Callable[[Path, Path, Path, torch.device], None]


def _merge(base: Path, lora: Path, out: Path, device: torch.device) -> None:
    merge_lora(open_merge(base, lora, "fp16", device), out, lambda _: None)


def _quantize(base: Path, _: Path, out: Path, device: torch.device) -> None:
    quantize_model(open_source(base), "nf4", out, device, lambda _: None)


def _written(shape: Shape, job: Job, base: Path, lora: Path, device: torch.device) -> Written:
    out = base.parent / f"out{job.__name__}"
    read = open_source(base).total_bytes
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began_s = time.perf_counter()
    job(base, lora, out, device)
    _finish(device)
    seconds = time.perf_counter() - began_s
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    name = job.__name__.removeprefix("_")
    return Written(shape.name, name, read / 1e9, seconds, read / 1e9 / seconds, peak / GIB)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def save(out: Path, device: torch.device, results: list[Trained | Written]) -> None:
    """Write what there is, over what was there."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    facts = run_facts() | {"device": name}
    rows = [asdict(result) for result in results]
    text = json.dumps({"facts": facts, "rows": rows}, indent=2, default=str)
    (out / "gpu_training.json").write_text(text + "\n", "utf-8")
    tables = [_table([r for r in results if type(r) is kind]) for kind in (Trained, Written)]
    lines = ["# Training on a device", "", *as_list(facts), "", *"\n\n".join(tables).splitlines()]
    (out / "gpu_training.md").write_text("\n".join(lines) + "\n", "utf-8")


def _table(results: list[Any]) -> str:
    if not results:
        return ""
    rows = [asdict(result) for result in results]
    told = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    head = [name.replace("_", " ") for name in rows[0]]
    lines = [head, ["---"] * len(head), *told]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    app()
