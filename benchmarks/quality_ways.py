"""How weights are stored, and in which arithmetic the model then computes.

Only linear layers are quantized; embeddings and output head stay in 16 bits, as in serving.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.quality_scores import Logits
from dbgpt_guanaco.checkpoints.layout import meta_model
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.cpu_decoder import CpuDecoder
from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.engine.kernels.decoder_structs import BLOCK_TOKENS

BLOCK, NESTED = 64, 256  # weights that share a constant, constants that share one
FLOAT32 = "torch, float32"
TORCH = "torch, bfloat16"
BITSANDBYTES = "bitsandbytes"
RESTORED = "restored to bfloat16, torch"
COMPILED = "this server's decoder"


@dataclass(frozen=True, slots=True)
class Storage:
    """One way to store the weight of a linear layer.

    Attributes:
        bits: What [outputs, inputs] weights take, their constants included.
        restored: A weight, stored and read again; None where nothing does that.
        config: What lets transformers quantize; None where it cannot.
    """

    bits: Callable[[int, int], float]
    restored: Callable[[Tensor], Tensor] | None = None
    config: Mapping[str, Any] | None = None


def _four_bits(kind: str, *, nested: bool) -> Storage:
    def restored(weight: Tensor) -> Tensor:
        codes, state = functional.quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=nested, quant_type=kind
        )
        found: Tensor = functional.dequantize_4bit(codes, state)
        return found

    constants = 8 / BLOCK + 32 / (BLOCK * NESTED) if nested else 32 / BLOCK
    config = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    return Storage(lambda outputs, inputs: outputs * inputs * (4 + constants), restored, config)


def linear_int4(weight: Tensor) -> Tensor:
    """Round to 15 even steps from -absmax to absmax, 0 among them, in blocks of 64."""
    blocks = weight.float().view(-1, BLOCK)
    step = blocks.abs().amax(dim=1, keepdim=True) / 7
    codes = (blocks / step.clamp_min(torch.finfo().tiny)).round()
    return (codes * step).view(weight.shape).to(weight.dtype)


STORAGES: Mapping[str, Storage] = {
    "fp32": Storage(lambda outputs, inputs: outputs * inputs * 32),
    "bf16": Storage(lambda outputs, inputs: outputs * inputs * 16),
    # A float32 constant for each output.
    "int8": Storage(
        lambda outputs, inputs: outputs * (inputs * 8 + 32), config={"load_in_8bit": True}
    ),
    "Int4": Storage(lambda outputs, inputs: outputs * inputs * (4 + 32 / BLOCK), linear_int4),
    "FP4": _four_bits("fp4", nested=False),
    "NF4": _four_bits("nf4", nested=False),
    "NF4 + DQ": _four_bits("nf4", nested=True),
}


@dataclass(frozen=True, slots=True)
class Way:
    """A storage and an arithmetic."""

    storage: str
    arithmetic: str

    def why_not(self) -> str | None:
        """Say why it cannot be measured on this machine; None if it may be tried."""
        return compiled.why_not() if self.arithmetic == COMPILED else None

    def open(self, folder: Path, tokens: int) -> Logits:
        """Load a model, for passes of so many tokens at most."""
        storage = STORAGES[self.storage]
        is_quantized = self.arithmetic in (BITSANDBYTES, COMPILED)
        model = _load(
            folder,
            torch.float32 if self.arithmetic == FLOAT32 else torch.bfloat16,
            storage.config if is_quantized else None,
        )
        if self.arithmetic == RESTORED and storage.restored:
            for layer in _linear_layers(model).values():
                layer.weight.data = storage.restored(layer.weight.data)
        if self.arithmetic == COMPILED:
            return _compiled(model, tokens)
        return lambda ids: model(input_ids=ids[None], use_cache=False).logits[0]


REFERENCE = Way("bf16", TORCH)
# The reference comes first.
WAYS = (
    REFERENCE,
    Way("fp32", FLOAT32),
    *(Way(storage, BITSANDBYTES) for storage in ("int8", "NF4 + DQ", "NF4", "FP4")),
    *(Way(storage, RESTORED) for storage in ("NF4 + DQ", "NF4", "FP4", "Int4")),
    *(Way(storage, COMPILED) for storage in ("bf16", "NF4 + DQ")),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model's weights take.

    Attributes:
        linear: Outputs and inputs of each linear layer that is quantized.
        others: Number of all other weights.
    """

    linear: tuple[tuple[int, int], ...]
    others: int

    def bits_a_weight(self, storage: str) -> float:
        """Bits of a weight in the linear layers, its share of the constants included."""
        stored = sum(STORAGES[storage].bits(*shape) for shape in self.linear)
        return stored / sum(outputs * inputs for outputs, inputs in self.linear)

    def model_bytes(self, storage: str) -> float:
        """Bytes of all weights: what is not quantized has 16 bits, or 32 beside ``fp32``."""
        linear = sum(STORAGES[storage].bits(*shape) for shape in self.linear)
        return (linear + self.others * (32 if storage == "fp32" else 16)) / 8


def sizes_of(folder: Path) -> Sizes:
    """Read a model's sizes off its config."""
    model = meta_model(folder)
    layers = _linear_layers(model).values()
    linear = tuple((layer.out_features, layer.in_features) for layer in layers)
    inner = sum(outputs * inputs for outputs, inputs in linear)
    return Sizes(linear, sum(p.numel() for p in model.parameters()) - inner)


def _linear_layers(model: Any) -> dict[str, nn.Linear]:  # noqa: ANN401
    """Return the layers that transformers would quantize: all but the output head."""
    return {
        name: part
        for name, part in model.named_modules()
        if type(part) is nn.Linear and part is not model.get_output_embeddings()
    }


def _load(folder: Path, dtype: torch.dtype, config: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(**config) if config else None,
        device_map={"": "cpu"},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    ).eval()


def _compiled(model: Any, tokens: int) -> Logits:  # noqa: ANN401
    first, config = model.model.layers[0].self_attn, model.config
    shapes = [(config.num_key_value_heads, first.head_dim)] * config.num_hidden_layers
    blocks = -(-tokens // BLOCK_TOKENS)
    cache = KVCache(shapes, blocks, BLOCK_TOKENS, torch.bfloat16, torch.device("cpu"))
    decoder = CpuDecoder(model, cache)

    def logits(ids: Tensor) -> Tensor:
        return decoder.compute(ids, [Span(0, len(ids), len(ids), range(blocks))], None)

    return logits
