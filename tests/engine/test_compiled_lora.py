"""Compiled code adds what the LoRAs of a pass say, each token its own request's, as peft does."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_cpu_decoder import CONFIGS, MAX_ERROR, TABLES, Pair, make, text

from dbgpt_guanaco.adapters.lora import Lora, LoraPair
from dbgpt_guanaco.engine.attention import Span
from dbgpt_guanaco.engine.cpu_decoder import CompiledPasses
from dbgpt_guanaco.engine.kernels import compiled

pytestmark = pytest.mark.skipif(compiled.why_not() is not None, reason=str(compiled.why_not()))

ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_lora(model: Any, rank: int, seed: int, layers: tuple[str, ...] = ALL_LAYERS) -> Lora:
    torch.manual_seed(seed)
    pairs = {}
    for name, part in model.named_modules():
        if name.rpartition(".")[2] in layers:
            a = torch.randn(rank, part.in_features, dtype=torch.bfloat16) / 8
            b = torch.randn(part.out_features, rank, dtype=torch.bfloat16) / 8
            pairs[name] = LoraPair(a, b, 0.5)
    return Lora(f"lora-{seed}", pairs)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
@pytest.mark.parametrize("config", ["llama", "llama, biases, yarn", "qwen3"])
def test_tokens_of_several_loras_and_of_none_share_a_pass(config: str, kind: str) -> None:
    pair = Pair(CONFIGS[config](), kind)
    loras = [
        random_lora(pair.model, 16, 1),
        None,
        random_lora(pair.model, 70, 2, ("q_proj", "up_proj", "down_proj")),  # wider than a strip
        random_lora(pair.model, 3, 3),  # odd
    ]
    texts = [text(20, seed) for seed in range(4)]
    base_logits = {}
    for begin, end in ((0, 9), (9, 19), (19, 20)):
        ids = [i for whole in texts for i in whole[begin:end]]
        spans = [
            Span(n * (end - begin), end - begin, end, table, lora)
            for n, (table, lora) in enumerate(zip(TABLES, loras, strict=True))
        ]
        found, expected = pair.both(torch.tensor(ids), spans)
        assert error(found, expected) < MAX_ERROR
        base_logits[end] = expected
    # They do say something: without them it is another text.
    plain, _ = pair.both(torch.tensor(ids), [replace(span, lora=None) for span in spans])
    assert error(plain, base_logits[20]) > 5 * MAX_ERROR


def test_a_token_has_the_same_bits_alone_and_beside_other_loras() -> None:
    pair = Pair(CONFIGS["llama"](), "nf4")
    loras = [random_lora(pair.model, 16, seed) for seed in range(4)]
    texts = [text(12, seed) for seed in range(4)]
    ids = torch.tensor([i for whole in texts for i in whole])
    spans = [Span(12 * n, 12, 12, TABLES[n], loras[n]) for n in range(4)]
    together, _ = pair.both(ids, spans)

    for n in range(4):
        alone, _ = pair.both(torch.tensor(texts[n]), [replace(spans[n], start=0)])
        assert torch.equal(alone, together[12 * n : 12 * n + 12])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_sums_are_those_of_peft() -> None:
    torch.manual_seed(3)
    model = make(CONFIGS["llama"](), "bf16")
    own = copy.deepcopy(model)
    peft = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=4, target_modules=list(ALL_LAYERS), lora_dropout=0.0)
    )
    pairs = {}
    for name, part in peft.get_base_model().named_modules():
        if hasattr(part, "lora_A"):
            a, b = part.lora_A["default"].weight, part.lora_B["default"].weight
            torch.nn.init.normal_(b, std=0.1)
            pairs[name] = LoraPair(a.detach().bfloat16(), b.detach().bfloat16(), 0.5)
    pair = Pair(CONFIGS["llama"](), "bf16")
    pair.model.load_state_dict(own.state_dict())
    ids = torch.tensor(text(16))
    with torch.no_grad():
        expected = peft.bfloat16()(ids[None], use_cache=False).logits[0].float()

    found, by_hooks = pair.both(ids, [Span(0, 16, 16, TABLES[0], Lora("x", pairs))])

    assert error(found, expected) < MAX_ERROR
    assert error(by_hooks, expected) < MAX_ERROR


def test_a_lora_on_the_output_head_is_left_to_transformers() -> None:
    pair = Pair(CONFIGS["llama"](), "bf16")
    lora = random_lora(pair.model, 4, 1, ("lm_head",))
    passes = CompiledPasses(pair.decoder, pair.reference)
    spans = [Span(0, 8, 8, TABLES[0], lora)]
    ids = torch.tensor(text(8))

    assert not pair.decoder.knows(lora)
    with torch.inference_mode():
        found = passes.compute(ids, spans, None)
        assert torch.equal(found, pair.reference.compute(ids, spans, None))
        assert not torch.equal(found, passes.compute(ids, [replace(spans[0], lora=None)], None))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_a_lora_on_the_output_head_stays_with_its_own_tokens(is_first: bool, apart: bool) -> None:
    """Only the last token of each prompt reaches the head, so rows are counted anew there."""
    pair = Pair(CONFIGS["llama"](), "bf16")
    lora = random_lora(pair.model, 4, 1, ("lm_head",))
    whose = [lora, None, lora] if is_first else [None, lora, None]
    if not apart:
        whose = whose[:2]
    spans = [Span(8 * n, 8, 8, TABLES[n], own) for n, own in enumerate(whose)]
    ids = torch.tensor(text(8 * len(whose)))
    wanted = [8 * n + 7 for n in range(len(whose))]

    with torch.inference_mode():
        found = pair.reference.compute(ids, spans, wanted)
        every = pair.reference.compute(ids, spans, None)

    assert torch.allclose(found, every[wanted], atol=0.01)
    plain = [replace(span, lora=None) for span in spans]
    with torch.inference_mode():
        without = pair.reference.compute(ids, plain, wanted)
    for row, own in enumerate(whose):
        assert torch.allclose(found[row], without[row], atol=0.01) is (own is None)
