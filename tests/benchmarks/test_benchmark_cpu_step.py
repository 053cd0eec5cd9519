"""The benchmark of a step's parts runs on a model of two small layers."""

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_model

from benchmarks import cpu_step
from benchmarks.event_loop import loop_time
from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.settings import ModelSettings


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(
        tmp_path_factory.mktemp("tiny") / "tiny", hidden_size=128, intermediate_size=192
    )
    make_bpe_tokenizer(folder, CHAT_TEMPLATE)
    settings = ModelSettings(name="tiny", quantization_override="nf4", device="cpu")
    return load_model(ModelSource("tiny", folder, None, ("tiny",)), settings, default_registry())


@pytest.mark.skipif(compiled.why_not() is not None, reason=str(compiled.why_not()))
@torch.inference_mode()
def test_every_part_of_a_step_is_timed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_step, "NEW_TOKENS", 16)

    for params in (cpu_step.GREEDY, *cpu_step.SAMPLED.values()):
        found = cpu_step.step_ms(loaded.model, Vocabulary(loaded.tokenizer), 2, params)

        assert set(found) == set(cpu_step.PARTS)
        assert all(milliseconds > 0 for milliseconds in found.values()), found


def test_the_event_loop_is_timed_beside_the_engine(loaded: LoadedModel) -> None:
    found = loop_time(loaded, streams=2, tokens=8)

    assert 0 < found.loop < found.wall
