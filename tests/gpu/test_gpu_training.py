"""Training, merging and quantizing on a GPU: the predicted memory, the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu_models import SHAPES, TINY
from benchmarks.gpu_training import make_checkpoint, train
from dbgpt_guanaco.adapters.training_memory import TrainingRun
from dbgpt_guanaco.checkpoints.merging import merge_lora, open_merge
from dbgpt_guanaco.checkpoints.quantizing import quantize_model
from dbgpt_guanaco.checkpoints.source import open_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    # peft asks transformers by a name that is going away.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]
RUNS = {
    "7b": TrainingRun(rank=64, tokens=512),
    "33b": TrainingRun(rank=64, tokens=512),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_training_takes_what_was_predicted(name: str) -> None:
    trained = train(SHAPES[name], RUNS[name], torch.device("cuda"))

    assert trained.predicted_gib == pytest.approx(trained.measured_gib, rel=0.05)


def weights_of(folder: Path) -> dict[str, Any]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_merged_and_quantized_on_the_gpu_is_as_on_the_cpu(tmp_path: Path) -> None:
    base, lora = make_checkpoint(tmp_path, TINY, layers=2)
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        merge_lora(open_merge(base, lora, "fp16", device), tmp_path / f"m-{name}", lambda _: None)
        source = open_source(base)
        quantize_model(source, "nf4", tmp_path / f"q-{name}", device, lambda _: None)

    found = {
        f"{job}-{name}": weights_of(tmp_path / f"{job}-{name}")
        for job in ("m", "q")
        for name in ("cpu", "cuda")
    }
    assert found["q-cpu"].keys() == found["q-cuda"].keys()
    # The order of the sums differs, and so may the last bit of bfloat16.
    torch.testing.assert_close(found["m-cuda"], found["m-cpu"])
