"""Which models ``cpu_decoder.py`` understands: those whose code transformers wrote like LLaMA's.

Every class, every part and every size is looked at, because a part that is not known here would
be left out of the sums without a word.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from dbgpt_guanaco.engine.kernels.decoder_structs import (
    HEAD_SIZE_STEP,
    MAX_GROUP,
    MAX_HEAD_SIZE,
    NF4_COLUMNS,
    NF4_GROUP,
)
from dbgpt_guanaco.engine.lora_layers import AddLora

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
ACTIVATIONS = ("SiLU", "SiLUActivation")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# Where the calls of layers may lead instead of to their own class.
_HOMES = {
    "Linear": ("dbgpt_guanaco.adapters.cpu_linear",),
    "Linear4bit": ("dbgpt_guanaco.adapters.linear4bit", "dbgpt_guanaco.engine.packed_linear"),
}


def why_not(model: Any) -> str | None:  # noqa: ANN401
    """Say what about a model is not understood; None if it is."""
    name = type(model).__name__
    family = next((f for f in FAMILIES if name == f"{f}ForCausalLM"), None)
    if family is None:
        return f"{name} is none of {', '.join(f'{f}ForCausalLM' for f in FAMILIES)}"
    return _wrong_part(model, family) or _wrong_call(model) or _wrong_size(model)


def linear_layers(model: Any) -> list[Any]:  # noqa: ANN401
    """Return all layers that multiply, the output head included."""
    found = [model.lm_head]
    for layer in model.model.layers:
        found += [getattr(layer.self_attn, name) for name in _PROJECTIONS]
        found += [getattr(layer.mlp, name) for name in _MLP]
    return found


def window(attention: Any) -> int:  # noqa: ANN401
    """Return how many newest keys a layer's queries see; 0 is all."""
    # Mistral's attention asks the configuration, Qwen's itself, LLaMA's nobody.
    holders = {"LlamaAttention": None, "MistralAttention": attention.config}
    holder = holders.get(type(attention).__name__, attention)
    return int(getattr(holder, "sliding_window", None) or 0)


def _wrong_part(model: Any, family: str) -> str | None:  # noqa: ANN401
    """Compare classes and names of all parts with those that are known."""
    norms = ("q_norm", "k_norm") if family == "Qwen3" else ()
    layer = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    known = {
        f"{family}ForCausalLM": ("model", "lm_head"),
        f"{family}Model": ("embed_tokens", "layers", "norm", "rotary_emb"),
        f"{family}DecoderLayer": layer,
        f"{family}Attention": (*_PROJECTIONS, *norms),
        f"{family}MLP": (*_MLP, "act_fn"),
        f"{family}RMSNorm": (),
        f"{family}RotaryEmbedding": (),
        "Embedding": (),
        "ModuleList": None,
        "Linear": (),
        "Linear4bit": (),
        **dict.fromkeys(ACTIVATIONS, ()),
    }
    for name, part in model.named_modules():
        kind = type(part)
        parts = tuple(child for child, _ in part.named_children())
        if kind.__name__ not in known or not kind.__module__.startswith(
            ("torch.nn.", "bitsandbytes.nn.", "transformers.activations", "transformers.models.")
        ):
            return f"{name or 'the model'} is a {kind.__module__}.{kind.__name__}"
        expected = known[kind.__name__]
        if expected is not None and set(parts) != set(expected):
            return f"{name or 'the model'} has the parts {', '.join(parts) or 'none'}"
    return None


def _wrong_call(model: Any) -> str | None:  # noqa: ANN401
    """Look for calls that somebody wrapped, which would not be made."""
    if model.training:
        return "it is in training mode"
    for name, part in model.named_modules():
        # Ours only adds LoRAs, which compiled code does as well.
        hooks = [h for h in part._forward_hooks.values() if not isinstance(h, AddLora)]
        if hooks or part._forward_pre_hooks or hasattr(part, "_hf_hook"):
            return f"{name or 'the model'} has a hook"
        if "forward" in vars(part) and not _is_own_call(part):
            return f"somebody replaced the call of {name or 'the model'}"
    return None


def _is_own_call(part: nn.Module) -> bool:
    """Only these changed the call, and they leave the sums alone."""
    homes, call = _HOMES.get(type(part).__name__, ()), part.forward
    return isinstance(call, partial) and call.func.__module__ in homes


def _wrong_size(model: Any) -> str | None:  # noqa: ANN401
    first = model.model.layers[0].self_attn
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    size, rope = first.head_dim, model.config.rope_parameters
    group = heads / kv_heads
    checks = {
        "its embeddings are not bfloat16 on the CPU": _is_bf16(model.model.embed_tokens.weight),
        f"{group} heads share their keys": group == int(group) <= MAX_GROUP,
        f"its heads are {size} wide, not a multiple of {HEAD_SIZE_STEP} up to {MAX_HEAD_SIZE}": (
            size % HEAD_SIZE_STEP == 0 and 0 < size <= MAX_HEAD_SIZE
        ),
        f"its position embeddings are {rope.get('rope_type')}": rope.get("rope_type") in ROPE_TYPES,
        "only a part of a head is rotated": rope.get("partial_rotary_factor", 1.0) == 1.0,
        "its norms are not bfloat16": all(
            _is_bf16(part.weight) for part in model.modules() if "RMSNorm" in type(part).__name__
        ),
        "its layers scale their attention differently": all(
            layer.self_attn.scaling == first.scaling for layer in model.model.layers
        ),
    }
    wrong = next((text for text, is_right in checks.items() if not is_right), None)
    reasons = (_wrong_linear(layer) for layer in linear_layers(model))
    return (
        wrong
        or next((reason for reason in reasons if reason), None)
        or _wrong_shape(model, heads * size, kv_heads * size)
    )


def _wrong_shape(model: Any, queries: int, keys: int) -> str | None:  # noqa: ANN401
    """Compiled code takes one size for another's word: here all of them are compared."""
    vocabulary, hidden = model.model.embed_tokens.weight.shape
    inner = model.config.intermediate_size
    attention = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    found = [("lm_head", model.lm_head, (vocabulary, hidden))]
    for layer in model.model.layers:
        found += [(name, getattr(layer.self_attn, name), s) for name, s in attention.items()]
        found += [(name, getattr(layer.mlp, name), s) for name, s in mlp.items()]
    for name, linear, shape in found:
        has = (linear.out_features, linear.in_features)
        if has != shape or tuple(stored_shape(linear)) != shape:
            return f"{name} is {has}, not {shape}"
        if linear.bias is not None and linear.bias.shape != shape[:1]:
            return f"the bias of {name} is not {shape[:1]}"
    return None


def stored_shape(linear: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return outputs and inputs as the weights have them."""
    shape = linear.weight.shape if type(linear) is nn.Linear else linear.weight.quant_state.shape
    return int(shape[0]), int(shape[1])


def _wrong_linear(layer: Any) -> str | None:  # noqa: ANN401
    if layer.bias is not None and not _is_bf16(layer.bias):
        return "a bias is not bfloat16"
    if type(layer) is nn.Linear:
        return None if _is_bf16(layer.weight) else "its weights are not bfloat16"
    state = getattr(layer.weight, "quant_state", None)
    if state is None or state.quant_type != "nf4" or state.blocksize != NF4_GROUP:
        return f"its weights are not NF4 in blocks of {NF4_GROUP}"
    if layer.compute_dtype not in (None, torch.bfloat16):
        return "bitsandbytes would not compute in bfloat16"
    outputs, inputs = state.shape
    if outputs % NF4_COLUMNS or inputs % NF4_GROUP:
        return f"an NF4 layer of {outputs} by {inputs} cannot be packed for the CPU"
    return None


def _is_bf16(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and tensor.is_contiguous()
