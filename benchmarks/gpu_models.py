"""LLaMA's shapes with random weights in NF4, built on the device layer by layer.

No more than one layer is ever there in 16 bits, so a model needs no more room than it takes.
"""

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dbgpt_guanaco.adapters.linear4bit import route_calls
from dbgpt_guanaco.adapters.memory import MemoryPlan, plan_memory
from dbgpt_guanaco.adapters.shapes import shape_of

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a model; every head has its own keys, as in LLaMA 1."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int = 32_000

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, over all layers, in 16 bits."""
        return 2 * self.layers * self.hidden * DTYPE.itemsize


TINY = Shape("tiny", 64, 128, 2, 4, 256)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("7b", 4096, 11_008, 32, 32),
        Shape("13b", 5120, 13_824, 40, 40),
        Shape("33b", 6656, 17_920, 60, 52),
        Shape("65b", 8192, 22_016, 80, 64),
    )
}


@dataclass(frozen=True, slots=True)
class Built:
    """A model on the device.

    Attributes:
        model: A causal LM of transformers.
        step_bytes: Weights that one step reads: all but the embeddings, as they are stored.
        plan: What the server would have predicted.
    """

    shape: Shape
    model: Any
    step_bytes: int
    plan: MemoryPlan

    def bytes_read(self, batch: int, context: float) -> float:
        """What one step must read: weights once, keys and values of every sequence."""
        return self.step_bytes + batch * context * self.shape.kv_bytes_per_token

    def bytes_needed(self, batch: int, tokens: int) -> int:
        """What is predicted for so many sequences of so many tokens."""
        return self.plan.needed_bytes(batch * tokens)


def build(shape: Shape, device: torch.device) -> Built:
    """Make a model of random weights, the same in every run."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        dtype=DTYPE,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config).to(DTYPE)
    plan = plan_memory(shape_of(config), "nf4", on_cuda=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(0)
    quantized = 0
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layer = _nf4(module.in_features, module.out_features, generator)
            setattr(model.get_submodule(parent), child, layer)
            quantized += _stored_bytes(layer)
    plain = 0
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            tensor = _plain(name, parameter, generator)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Parameter(tensor, requires_grad=False))
            plain += 0 if "embed_tokens" in name else tensor.nbytes
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    route_calls(model)
    model.eval()
    model.generation_config = GenerationConfig()
    return Built(shape, model, quantized + plain, plan)


def _nf4(inputs: int, outputs: int, generator: torch.Generator) -> Any:  # noqa: ANN401
    kinds: Any = bnb.nn
    layer = kinds.Linear4bit(
        inputs,
        outputs,
        bias=False,
        compute_dtype=DTYPE,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    weights = torch.empty((outputs, inputs), dtype=DTYPE, device=generator.device)
    weights.normal_(0, 0.02, generator=generator)
    layer.weight = kinds.Params4bit(
        weights, requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to(generator.device)
    return layer


def _plain(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    tensor = torch.empty(parameter.shape, dtype=DTYPE, device=generator.device)
    if "norm" in name:
        return tensor.fill_(1)
    return tensor.normal_(0, 0.02, generator=generator)


def _stored_bytes(layer: Any) -> int:  # noqa: ANN401
    """Return codes and constants of a layer; on the CPU they change with the first pass."""
    state = layer.weight.quant_state
    tensors = (layer.weight, state.absmax, state.code, state.state2.absmax, state.state2.code)
    return sum(int(tensor.nbytes) for tensor in (*tensors, state.offset))
