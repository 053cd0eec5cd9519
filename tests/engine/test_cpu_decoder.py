"""The compiled decoder gives what transformers' code gives, in whatever pieces a pass comes."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from dbgpt_guanaco.engine import attention, cpu_decoder
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.cpu_decoder import CpuDecoder
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.engine.lora_layers import LoraLayers
from dbgpt_guanaco.engine.passes import TransformersPasses
from dbgpt_guanaco.errors import ConfigurationError

pytestmark = pytest.mark.skipif(compiled.why_not() is not None, reason=str(compiled.why_not()))

VOCABULARY = 96
TABLES = ((7, 2, 9), (0, 11, 4), (5, 3, 8), (1, 10, 6))
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama, biases, yarn": lambda: LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, rope_parameters=YARN
    ),
    "one key head, wide": lambda: LlamaConfig(**SIZES | {"num_key_value_heads": 1, "head_dim": 64}),
    "no shared keys": lambda: LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral, a window": lambda: MistralConfig(**SIZES, sliding_window=7),
    "qwen2": lambda: Qwen2Config(**without(SIZES, "head_dim")),
    "qwen2, windows": lambda: Qwen2Config(
        **without(SIZES, "head_dim"), use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SIZES),
}
# Of one token's logits, relative to the root mean square of all: bfloat16 leaves up to 0.024.
MAX_ERROR = 0.03


def without(sizes: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != name}


def make(config: PreTrainedConfig, kind: str) -> Any:
    """A random model in bfloat16, its layers in NF4 where wanted."""
    torch.manual_seed(1)
    config.initializer_range = 0.1
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    model.requires_grad_(requires_grad=False)
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.normal_(std=0.3)
        if "norm" in name.rpartition(".")[2]:
            part.weight.uniform_(0.5, 1.5)
        if kind == "nf4" and isinstance(part, nn.Linear) and name != "lm_head":
            model.set_submodule(name, quantized(part))
    return model


def quantized(linear: nn.Linear) -> Linear4bit:
    has_bias = linear.bias is not None
    layer = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features,
        linear.out_features,
        bias=has_bias,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
    )
    layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    if has_bias:
        layer.bias = linear.bias
    layer.to("cpu")
    return layer.eval()


class Pair:
    """The same model twice: transformers' code and the compiled one, each with its cache."""

    def __init__(self, config: PreTrainedConfig, kind: str) -> None:
        attention.register()
        self.model = make(config, kind)
        self.model.set_attn_implementation(attention.NAME)
        first = self.model.model.layers[0].self_attn
        shape = (config.num_key_value_heads, first.head_dim)
        self.caches = [
            KVCache([shape] * config.num_hidden_layers, 12, 16, torch.bfloat16, torch.device("cpu"))
            for _ in range(2)
        ]
        self.reference = TransformersPasses(self.model, self.caches[0], LoraLayers(self.model))
        self.decoder = CpuDecoder(self.model, self.caches[1])

    def both(
        self, ids: Tensor, spans: list[Span], wanted: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            expected = self.reference.compute(ids, spans, wanted)
            return self.decoder.compute(ids, spans, wanted).float(), expected.float()


def text(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def ragged(texts: list[list[int]], cuts: list[tuple[int, int]]) -> tuple[Tensor, list[Span]]:
    """Of each text the tokens from a cut to the next, as one pass."""
    spans: list[Span] = []
    ids: list[int] = []
    for (begin, end), whole, table in zip(cuts, texts, TABLES, strict=False):
        if end > begin:
            spans.append(Span(len(ids), end - begin, end, table))
            ids += whole[begin:end]
    return torch.tensor(ids), spans


def error(found: Tensor, expected: Tensor) -> float:
    size = expected.square().mean().sqrt()
    return float((found - expected).square().mean(dim=-1).sqrt().max() / size)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_in_pieces_and_decoding_beside_them_are_as_transformers_has_them(
    name: str, kind: str
) -> None:
    pair = Pair(CONFIGS[name](), kind)
    texts = [text(40, seed) for seed in range(4)]
    # A step takes each text from one cut to the next; those of one token stand first.
    cuts = [(0, 0, 0, 0), (3, 17, 1, 20), (4, 18, 18, 33), (5, 19, 35, 34), (6, 20, 36, 40)]
    for before, after in pairwise(cuts):
        steps = sorted(zip(zip(before, after, strict=True), texts, TABLES, strict=True), key=longer)
        spans: list[Span] = []
        ids: list[int] = []
        for (begin, end), whole, table in steps:
            spans.append(Span(len(ids), end - begin, end, table))
            ids += whole[begin:end]
        found, expected = pair.both(torch.tensor(ids), spans)
        assert error(found, expected) < MAX_ERROR


def longer(step: tuple[tuple[int, int], list[int], tuple[int, ...]]) -> int:
    return step[0][1] - step[0][0]


def test_a_lost_block_of_keys_is_far_beyond_the_bound() -> None:
    pair = Pair(CONFIGS["llama"](), "nf4")
    ids = torch.tensor(text(30))
    pair.both(ids[:29], [Span(0, 29, 29, TABLES[0])])
    for layer in pair.caches[1].keys:
        layer[:, 16 * TABLES[0][1] : 16 * TABLES[0][1] + 16].zero_()
    found, expected = pair.both(ids[29:], [Span(0, 1, 30, TABLES[0])])
    assert error(found, expected) > 3 * MAX_ERROR


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
def test_a_sequence_is_the_same_to_the_bit_alone_and_among_others(kind: str) -> None:
    pair = Pair(CONFIGS["llama"](), kind)
    texts = [text(40, seed) for seed in range(4)]
    ids, spans = ragged(texts, [(0, 33), (0, 7), (0, 20), (0, 40)])
    together = pair.decoder.compute(ids, spans, None)
    for span in spans:
        own = ids[span.start : span.start + span.count]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = [
                pair.decoder.compute(own[i : i + 1], [Span(0, 1, i + 1, span.blocks)], None)
                for i in range(span.count)
            ]
            assert torch.equal(torch.cat(alone), together[span.start : span.start + span.count])


def test_only_the_wanted_logits_are_computed() -> None:
    pair = Pair(CONFIGS["qwen3"](), "nf4")
    ids, spans = ragged([text(20), text(9, 1)], [(0, 20), (0, 9)])
    everything = pair.decoder.compute(ids, spans, None)
    some = pair.decoder.compute(ids, spans, [19, 4, 28])
    assert torch.equal(some, everything[[19, 4, 28]])
    assert pair.decoder.compute(ids, spans, []).shape == (0, VOCABULARY)


def test_what_would_reach_outside_the_tensors_is_refused() -> None:
    pair = Pair(CONFIGS["llama"](), "bf16")
    one = torch.tensor([5])
    wrong: list[tuple[Tensor, Span, list[int] | None]] = [
        (one, Span(0, 1, 1, (12,)), None),
        (one, Span(0, 1, 1, (-1,)), None),
        (one, Span(0, 1, 17, (3,)), None),
        (one, Span(1, 1, 1, (3,)), None),
        (one, Span(0, 2, 1, (3,)), None),
        (one, Span(0, 2, 2, (3,)), None),
        (one, Span(0, 1, 1, (3,)), [1]),
        (torch.tensor([VOCABULARY]), Span(0, 1, 1, (3,)), None),
    ]
    for ids, span, wanted in wrong:
        with pytest.raises((ValueError, IndexError)):
            pair.decoder.compute(ids, [span], wanted)


def test_where_the_time_went_is_told_if_asked() -> None:
    pair = Pair(CONFIGS["llama"](), "nf4")
    pair.decoder.seconds = torch.zeros(4, dtype=torch.float64)
    pair.decoder.compute(*ragged([text(20)], [(0, 20)]), None)
    assert bool((pair.decoder.seconds > 0).all())
    assert float(pair.decoder.seconds.sum()) < 10


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook": (lambda m: m.model.norm.register_forward_hook(lambda *_: None), "hook"),
    "another activation": (lambda m: m.model.layers[1].mlp.set_submodule("act_fn", nn.GELU()), ""),
    "a replaced call": (lambda m: setattr(m.lm_head, "forward", print), "replaced"),
    "float32 weights": (lambda m: m.model.layers[0].mlp.down_proj.float(), "not bfloat16"),
    "float32 norms": (lambda m: m.model.norm.float(), "norms"),
    "training": (lambda m: m.train(), "training"),
    "a part more": (lambda m: m.model.layers[0].mlp.add_module("gate", nn.Linear(2, 2)), "parts"),
    "another size": (
        lambda m: m.model.layers[2].mlp.set_submodule("up_proj", nn.Linear(128, 64).bfloat16()),
        "up_proj",
    ),
    "another scale": (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 1.0), "scale"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(name: str) -> None:
    change, reason = REFUSED[name]
    model = make(CONFIGS["llama"](), "bf16")
    assert cpu_decoder.why_not(model) is None
    change(model)
    assert reason in (cpu_decoder.why_not(model) or "understood")
    assert cpu_decoder.why_not(model) is not None
    with pytest.raises(ConfigurationError):
        CpuDecoder(model, KVCache([(2, 32)] * 3, 2, 16, torch.bfloat16, torch.device("cpu")))


def test_a_cache_of_another_kind_is_refused() -> None:
    model = make(CONFIGS["llama"](), "bf16")
    with pytest.raises(ConfigurationError, match="keys and values"):
        CpuDecoder(model, KVCache([(2, 32)] * 3, 2, 16, torch.float32, torch.device("cpu")))


def test_other_families_are_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=VOCABULARY)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert "GPT2" in (cpu_decoder.why_not(model) or "")
