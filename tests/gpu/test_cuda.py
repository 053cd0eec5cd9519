"""The same promises on a GPU: what is loaded, what it takes, what comes out."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.memory import plan_memory
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.adapters.shapes import read_shape
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.settings import EngineSettings, ModelSettings, Quantization
from dbgpt_guanaco.types import GenerationRequest, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: Any) -> Path:
    """A LLaMA of 0.2 B random parameters, called guanaco so that its family is found."""
    folder = tmp_path_factory.mktemp("models") / "guanaco-tiny"
    config = LlamaConfig(
        vocab_size=len(llama_tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    llama_tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, quantization: Quantization) -> LoadedModel:
    settings = ModelSettings(name=str(folder), quantization_override=quantization)
    source = ModelSource(folder.name, folder, None, (folder.name,))
    return load_model(source, settings, default_registry())


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_memory_is_predicted_within_five_percent(folder: Path, quantization: Any) -> None:
    before = torch.cuda.memory_allocated()
    model = loaded(folder, quantization)
    used = torch.cuda.memory_allocated() - before

    plan = plan_memory(read_shape(folder), quantization, on_cuda=True)
    assert plan.weight_bytes == pytest.approx(used, rel=0.05)
    assert model.card.weight_bytes == pytest.approx(used, rel=0.05)


async def test_greedy_is_what_transformers_gives(folder: Path) -> None:
    model = loaded(folder, "nf4")
    prompt = (1, *range(5, 60))
    output = model.model.generate(
        input_ids=torch.tensor([prompt], device="cuda"),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device="cuda"),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=[0, 2],
        pad_token_id=0,
    )
    expected = [int(i) for i in output[0, len(prompt) :]]
    engine = StreamingEngine(model, EngineSettings())
    sampling = SamplingParams(temperature=0, max_new_tokens=40, logprobs=True)

    generation = await engine.submit(GenerationRequest(prompt, sampling))
    told = [lp.token_id async for delta in generation for lp in delta.logprobs]

    assert told == expected
    engine.close()


async def test_a_cancel_in_a_long_prompt_frees_the_place(folder: Path) -> None:
    engine = StreamingEngine(loaded(folder, "nf4"), EngineSettings())
    engine.wait_until_warm()
    sampling = SamplingParams(max_new_tokens=20)
    generation = await engine.submit(GenerationRequest((1, *[7] * 2000), sampling))
    await asyncio.sleep(0.01)

    start = time.monotonic()
    generation.cancel()
    deltas = [delta async for delta in generation]

    assert time.monotonic() - start < 0.25
    assert deltas[-1].finish_reason == "cancelled"
    assert engine.load.running == 0
    engine.close()


async def test_a_full_device_is_an_error_and_the_next_request_works(folder: Path) -> None:
    engine = StreamingEngine(loaded(folder, "nf4"), EngineSettings())
    engine.wait_until_warm()
    request = GenerationRequest((1, *[7] * 1500), SamplingParams(max_new_tokens=4))
    hoard = torch.empty(torch.cuda.mem_get_info()[0] - 2**27, dtype=torch.uint8, device="cuda")

    outcome: BaseException | None = None
    try:
        async for _ in await engine.submit(request):
            pass
    except Exception as error:
        outcome = error
    del hoard
    torch.cuda.empty_cache()

    assert outcome is None or "memory" in str(outcome)
    deltas = [delta async for delta in await engine.submit(request)]
    assert deltas[-1].finish_reason in ("length", "stop")
    engine.close()
