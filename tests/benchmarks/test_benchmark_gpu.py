"""The benchmark of a GPU, on a model of two small layers and without the GPU."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu_checks import Agreement, KernelResult, compare_tokens
from benchmarks.gpu_decoders import Generate, Ours, OursRecorded
from benchmarks.gpu_engine import OursEngine
from benchmarks.gpu_models import SHAPES, TINY, build
from benchmarks.gpu_report import Report, Row
from benchmarks.gpu_timing import Bandwidth

CPU = torch.device("cpu")
OPTIONS = ("--tiny", "--device", "cpu", "--batches", "1,2", "--contexts", "20", "--steps", "4")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are done before a second thread has woken up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole run has written."""
    folder = tmp_path_factory.mktemp("gpu")
    done = CliRunner().invoke(gpu.app, ["--out", str(folder), *OPTIONS])
    assert done.exit_code == 0, done.output
    return folder


def test_every_decoder_is_measured_at_every_batch(folder: Path) -> None:
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    found = {(row["decoder"], row["batch"]) for row in rows}
    names = {kind.name for kind in gpu.DECODERS.values()}
    assert found == {(name, batch) for name in names for batch in (1, 2)}
    for row in rows:
        assert not row["note"], row
        assert row["step_ms_p10"] <= row["step_ms"] <= row["step_ms_p90"]
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["step_ms"] * 1000)
        assert row["fraction"] > 0


def test_our_tokens_are_compared_with_those_of_transformers(folder: Path) -> None:
    agreements = json.loads((folder / "gpu.json").read_text())["agreements"]
    assert [a["name"] for a in agreements] == [Ours.name, OursRecorded.name]
    assert all(a["tokens"] == 96 for a in agreements)


def test_the_table_says_which_machine_and_which_versions(folder: Path) -> None:
    text = (folder / "gpu.md").read_text()
    assert "no GPU" in text
    assert f"torch {torch.__version__}" in text
    assert "| tiny | ours, passes only, in graphs | 2 | 20 |" in text
    assert "| tiny | ours, engine | 2 | 20 |" in text


def test_peers_are_measured_without_our_hooks() -> None:
    built = build(TINY, CPU)
    for kind in (Ours, OursRecorded, OursEngine):
        kind(built).step_seconds(1, 8, 2)
    assert len(Generate(built).step_seconds(1, 8, 2)) == 2

    Ours(built).start(1, 8)  # and nobody ends it
    with pytest.raises(RuntimeError, match="15 layers have hooks"):
        Generate(built).step_seconds(1, 8, 2)


def test_wrong_keys_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that come from a cache of other numbers are no longer transformers'."""
    built = build(TINY, CPU)
    right = compare_tokens(built, OursRecorded(built))
    start = OursRecorded.start

    def confused(self: OursRecorded, batch: int, tokens: int) -> object:
        decoding = start(self, batch, tokens)
        decoding.tables = [decoding.tables[0]] * batch
        return decoding

    monkeypatch.setattr(OursRecorded, "start", confused)
    wrong = compare_tokens(built, OursRecorded(built))
    assert right.holds
    assert not wrong.holds


@pytest.mark.parametrize(
    ("name", "parameters", "step_gb", "kv_kib"),
    [("7b", 6.476e9, 3.603, 512), ("13b", 12.688e9, 6.874, 800), ("33b", 32.102e9, 16.988, 1560)],
)
def test_the_shapes_are_those_of_llama(
    name: str, parameters: float, step_gb: float, kv_kib: int
) -> None:
    """What a step reads: 4.127 bits a linear weight, the head and the norms in 16 bits."""
    s = SHAPES[name]
    linear = s.layers * (4 * s.hidden**2 + 3 * s.hidden * s.intermediate)
    plain = s.vocabulary * s.hidden + (2 * s.layers + 1) * s.hidden
    assert linear == pytest.approx(parameters, rel=1e-4)
    assert (linear * 0.515869140625 + 2 * plain) / 1e9 == pytest.approx(step_gb, rel=1e-3)
    assert s.kv_bytes_per_token == kv_kib * 1024


def test_the_bytes_of_a_step_are_those_that_are_stored() -> None:
    built = build(TINY, CPU)
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    plain = 2 * (256 * 64 + 5 * 64)
    # Beside each of the 14 matrices stand its two tables of codes and an offset.
    tables = 14 * (64 + 1024 + 4)
    # Small matrices leave their last block of 256 constants half empty.
    nested = sum(math.ceil(n / 64 / 256) * 4 for n in [64 * 64] * 8 + [64 * 128] * 6)
    assert built.step_bytes == linear / 2 + linear / 64 + nested + tables + plain
    kv_bytes = 2 * 2 * 64 * 2
    assert built.bytes_read(3, 10.5) - built.step_bytes == 3 * 10.5 * kv_bytes


def test_a_run_with_a_wrong_result_is_not_right() -> None:
    report = Report(CPU, {})
    assert report.is_right
    report.agreements.append(Agreement("ours", 10, 9, 0.02))
    report.kernels.append(KernelResult("paged_decode", 1, 512, 1e-3, 1e-5, 1e12))
    assert report.is_right
    report.kernels.append(KernelResult("paged_prefill", 1, 512, math.nan))
    assert not report.is_right
    assert "nan **wrong**" in report.as_markdown()
    report.kernels.pop()
    report.agreements.append(Agreement("ours", 10, 9, math.inf))
    assert not report.is_right


def test_a_row_without_numbers_says_why() -> None:
    report = Report(CPU, {}, bandwidth=Bandwidth(1e12, 2e12))
    report.rows.append(Row("33b", "ours", 32, 2048, note="does not fit: 70 GiB are there"))
    assert "does not fit: 70 GiB are there |" in report.as_markdown()
    assert report.bandwidth is not None
    assert report.bandwidth.limit == 2e12


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tiny"], "no CUDA device"),
        (["--only", "8b", "--device", "cpu"], "unknown: 8b"),
        (["--tiny", "--device", "cpu", "--decoders", "vllm"], "unknown: vllm"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.app, ["--out", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert told in done.output
