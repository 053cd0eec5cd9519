"""What a run on a device found → Markdown for people, JSON for programs; written after each row."""

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_checks import KERNEL_TOLERANCE, MARGIN, Agreement, KernelResult
from benchmarks.gpu_timing import Bandwidth

GIB = 2**30
_PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "accelerate", "peft")


@dataclass(frozen=True, slots=True)
class Row:
    """One decoder on one model, batch and context.

    Attributes:
        context: Tokens before the first step that was timed.
        bytes_per_step: What a step must read, by the formula.
        fraction: Of the bandwidth's limit.
        note: Why there are no numbers.
    """

    model: str
    decoder: str
    batch: int
    context: int
    steps: int = 0
    step_ms: float | None = None
    step_ms_p10: float | None = None
    step_ms_p90: float | None = None
    tokens_per_s: float | None = None
    bytes_per_step: float | None = None
    fraction: float | None = None
    predicted_gib: float | None = None
    allocated_gib: float | None = None
    device_gib: float | None = None
    note: str = ""


@dataclass(slots=True)
class Report:
    """A run so far."""

    device: torch.device
    parameters: dict[str, Any]
    bandwidth: Bandwidth | None = None
    kernels: list[KernelResult] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether all that was compared agrees."""
        return all(k.error <= KERNEL_TOLERANCE for k in self.kernels) and all(
            a.holds for a in self.agreements
        )

    def save(self, folder: Path) -> None:
        """Write ``gpu.json`` and ``gpu.md``, over those of the row before."""
        text = json.dumps(self._as_json(), indent=2) + "\n"
        (folder / "gpu.json").write_text(text, "utf-8")
        (folder / "gpu.md").write_text(self.as_markdown(), "utf-8")

    def _as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": _device_name(self.device),
            "versions": _versions(),
            "parameters": self.parameters,
            "bandwidth": asdict(self.bandwidth) if self.bandwidth else None,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "rows": [asdict(row) for row in self.rows],
        }

    def as_markdown(self) -> str:
        """Return everything as tables."""
        lines = [f"# {_device_name(self.device)}", ""]
        lines += [", ".join(f"{name} {number}" for name, number in _versions().items()), ""]
        if self.bandwidth:
            copy, read = self.bandwidth.copy / 1e12, self.bandwidth.read / 1e12
            lines += [f"Memory: copy {copy:.3f} TB/s, read {read:.3f} TB/s.", ""]
        if self.agreements:
            lines += [
                f"Tokens within {MARGIN:.0%} of transformers' best logit:",
                "",
                *_table(
                    "tokens of|compared|first choice|worst gap", map(_agreement, self.agreements)
                ),
            ]
        if self.kernels:
            title = "kernel, one layer|batch|context|error|µs|TB/s"
            lines += _table(title, map(_kernel, self.kernels))
        title = (
            "model|decoder|batch|context|ms a step|p10–p90|tok/s|of the limit|"
            "predicted GiB|allocated GiB|device GiB|note"
        )
        lines += _table(title, map(_row, self.rows))
        return "\n".join(lines)


def _agreement(a: Agreement) -> list[object]:
    return [a.name, a.tokens, a.equal, f"{a.worst_gap:.2%}{'' if a.holds else ' **wrong**'}"]


def _kernel(k: KernelResult) -> list[object]:
    wrong = "" if k.error <= KERNEL_TOLERANCE else " **wrong**"
    microseconds = k.seconds and k.seconds * 1e6
    speed = k.bytes_per_s and k.bytes_per_s / 1e12
    told = [_number(microseconds, 1), _number(speed, 3)]
    return [k.name, k.batch, k.context, f"{k.error:.1e}{wrong}", *told]


def _row(row: Row) -> list[object]:
    spread = "" if row.step_ms is None else f"{row.step_ms_p10:.3g}–{row.step_ms_p90:.3g}"
    return [
        row.model,
        row.decoder,
        row.batch,
        row.context,
        _number(row.step_ms, 3),
        spread,
        _number(row.tokens_per_s, 1),
        "" if row.fraction is None else f"{row.fraction:.1%}",
        _number(row.predicted_gib, 2),
        _number(row.allocated_gib, 2),
        _number(row.device_gib, 2),
        row.note,
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(title: str, rows: Any) -> list[str]:  # noqa: ANN401
    names = title.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{platform.machine()}, {torch.get_num_threads()} threads (no GPU)"
    total = torch.cuda.mem_get_info(device)[1] / GIB
    return f"{torch.cuda.get_device_name(device)}, {total:.1f} GiB, CUDA {torch.version.cuda}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
