"""Training, merging and quantizing on a device, tried on a small model without one."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu_training

OPTIONS = ("--tiny", "--device", "cpu", "--rank", "4", "--tokens", "32", "--layers", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-training")
    done = CliRunner().invoke(gpu_training.app, ["--out", str(folder), *OPTIONS])
    assert done.exit_code == 0, done.output
    return folder


# peft asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_run_trains_merges_and_quantizes(folder: Path) -> None:
    rows = json.loads((folder / "gpu_training.json").read_text())["rows"]

    assert [row.get("job", "train") for row in rows] == ["train", "merge", "quantize"]
    assert rows[0]["measured_gib"] > 0
    assert rows[0]["tokens_per_s"] == pytest.approx(2 * 32 / rows[0]["step_s"])
    assert all(row["gb_per_s"] > 0 for row in rows[1:])


def test_the_tables_say_what_was_predicted(folder: Path) -> None:
    text = (folder / "gpu_training.md").read_text()

    assert "| predicted gib | measured gib |" in text
    assert "| tiny | merge |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_try_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(gpu_training.app, ["--out", str(tmp_path)])

    assert done.exit_code == 2
    assert "--tiny --device cpu" in done.output
