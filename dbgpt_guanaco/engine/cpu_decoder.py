"""A whole pass in one call of compiled code, for models that are built like LLaMA.

Gives what transformers' code gives, up to rounding, without its Python between the products.
``llama_layout.py`` says which models, ``kernels/compiled.py`` where; everybody else runs
transformers' code. Weights stay where they are: there is no second copy.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbgpt_guanaco.adapters.lora import Lora
from dbgpt_guanaco.engine import llama_layout
from dbgpt_guanaco.engine.attention import KVCache, Span
from dbgpt_guanaco.engine.kernels import compiled, decoder_structs
from dbgpt_guanaco.engine.kernels.decoder_structs import (
    BLOCK_TOKENS,
    NF4,
    PLAIN,
    Layer,
    LayerCache,
    Linear,
    Model,
    Norm,
    Pass,
    Shape,
)
from dbgpt_guanaco.engine.lora_tables import LoraTables
from dbgpt_guanaco.engine.packed_linear import pack, route_call
from dbgpt_guanaco.engine.passes import Passes, positions_of, slots_of
from dbgpt_guanaco.errors import ConfigurationError


def why_not(model: Any) -> str | None:  # noqa: ANN401
    """Say why a model cannot be run by the compiled decoder here; None if it may be tried."""
    return llama_layout.why_not(model) or compiled.why_not()


class CpuDecoder:
    """Runs passes over one model and one cache, one at a time.

    Attributes:
        seconds: [4] float64 to which the time is added that each of ``decoder_structs.SECONDS``
            took; None where nobody asks.

    Raises:
        ConfigurationError: It cannot, here or with this model; the message says why.
    """

    def __init__(self, model: Any, cache: KVCache) -> None:  # noqa: ANN401
        reason = llama_layout.why_not(model) or _wrong_cache(model, cache)
        if reason:
            raise ConfigurationError(reason)
        self.seconds: Tensor | None = None
        self._library = decoder_structs.load()
        self._kept: list[Tensor] = []  # everything that compiled code points to between passes
        self._cache = cache
        self._embeddings: Tensor = model.model.embed_tokens.weight
        self._rotary = model.model.rotary_emb
        self._layers = (Layer * len(model.model.layers))(
            *(self._layer(model, i) for i in range(len(model.model.layers)))
        )
        self._model = self._describe(model)
        self._loras = LoraTables(len(self._layers))
        self._scratch = torch.empty(0, dtype=torch.bfloat16)
        # Torch aligns what it allocates to 64 bytes, as the phases want it.
        self._phases = torch.empty(
            self._library.guanaco_phase_bytes(self._model), dtype=torch.uint8
        )

    def knows(self, lora: Lora) -> bool:
        """Say whether a LoRA is only for layers that are computed here."""
        return self._loras.knows(lora)

    @torch.no_grad()
    def compute(
        self, input_ids: Tensor, spans: Sequence[Span], wanted: Sequence[int] | None
    ) -> Tensor:
        """See ``Passes``; logits are bfloat16."""
        tokens = input_ids.numel()
        rows = tokens if wanted is None else len(wanted)
        slots = array("q", slots_of(spans, BLOCK_TOKENS))
        kept = array("q", [] if wanted is None else wanted)
        self._check(tokens, slots, spans, kept)
        hidden = functional.embedding(input_ids, self._embeddings)
        positions = torch.tensor(positions_of(spans))
        cos, sin = (t.contiguous() for t in self._rotary(hidden[None], positions[None]))
        logits = torch.empty((rows, self._model.head.outputs), dtype=torch.bfloat16)
        counts, blocks = _tables(spans)
        laid = self._loras.lay(spans)
        self._grow(max(tokens, rows), laid.width)
        # All of these live until the call is over.
        this = Pass(
            tokens=tokens,
            hidden=hidden.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            slots=slots.buffer_info()[0],
            spans=counts.buffer_info()[0],
            num_spans=len(spans),
            blocks=blocks.buffer_info()[0],
            wanted=None if wanted is None else kept.buffer_info()[0],
            num_wanted=rows,
            logits=logits.data_ptr(),
            scratch=self._scratch.data_ptr(),
            phases=self._phases.zero_().data_ptr(),
            threads=torch.get_num_threads(),
            seconds=None if self.seconds is None else self.seconds.data_ptr(),
            loras=laid.tables,
            token_loras=laid.token_loras.buffer_info()[0],
            runs=laid.runs.buffer_info()[0],
            num_runs=laid.num_runs,
            low_width=laid.width,
        )
        self._library.guanaco_run(self._model, this)
        return logits

    def _check(
        self, tokens: int, slots: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]
    ) -> None:
        """Refuse what would make compiled code reach outside its tensors."""
        start = 0
        for span in spans:
            is_whole = span.start == start and 0 < span.count <= span.length
            if not is_whole or span.length > len(span.blocks) * BLOCK_TOKENS:
                raise ValueError(f"a span that cannot be: {span}")
            _check_range("blocks", span.blocks, self._cache.num_blocks)
            start += span.count
        if start != tokens or len(slots) != tokens:
            raise ValueError(f"{tokens} tokens, but spans of {start} and {len(slots)} slots")
        _check_range("wanted tokens", wanted, tokens)

    def _grow(self, tokens: int, low_width: int) -> None:
        needed = self._library.guanaco_scratch_size(self._model, tokens, low_width)
        if needed > self._scratch.numel():
            self._scratch = torch.empty(needed, dtype=torch.bfloat16)

    def _describe(self, model: Any) -> Model:  # noqa: ANN401
        first = model.model.layers[0].self_attn
        config = model.config
        shape = Shape(
            config.num_attention_heads, config.num_key_value_heads, first.head_dim, first.scaling
        )
        return Model(
            layers=self._layers,
            num_layers=len(self._layers),
            hidden=self._embeddings.shape[1],
            shape=shape,
            norm=self._norm(model.model.norm),
            head=self._linear(model.lm_head),
        )

    def _layer(self, model: Any, index: int) -> Layer:  # noqa: ANN401
        layer = model.model.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            norm=self._norm(layer.input_layernorm),
            mlp_norm=self._norm(layer.post_attention_layernorm),
            q_norm=self._norm(getattr(attention, "q_norm", None)),
            k_norm=self._norm(getattr(attention, "k_norm", None)),
            q=self._linear(attention.q_proj),
            k=self._linear(attention.k_proj),
            v=self._linear(attention.v_proj),
            o=self._linear(attention.o_proj),
            gate=self._linear(mlp.gate_proj),
            up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj),
            cache=LayerCache(
                keys=self._cache.keys[index].data_ptr(),
                values=self._cache.values[index].data_ptr(),
                slots=self._cache.keys[index].shape[1],
                window=llama_layout.window(attention),
            ),
        )

    def _norm(self, norm: Any) -> Norm:  # noqa: ANN401
        if norm is None:
            return Norm()
        return Norm(weight=self._pointer(norm.weight), epsilon=norm.variance_epsilon)

    def _linear(self, layer: Any) -> Linear:  # noqa: ANN401
        bias = None if layer.bias is None else self._pointer(layer.bias)
        outputs, inputs = llama_layout.stored_shape(layer)
        if type(layer) is nn.Linear:
            weight = self._pointer(layer.weight)
            return Linear(weight=weight, bias=bias, inputs=inputs, outputs=outputs, kind=PLAIN)
        state = pack(layer)
        weights = Linear(
            weight=self._pointer(layer.weight.data),
            scales=self._pointer(state.absmax),
            bias=bias,
            inputs=inputs,
            outputs=outputs,
            kind=NF4,
        )
        route_call(layer, self._library, weights)
        return weights

    def _pointer(self, tensor: Tensor) -> int:
        """Return where a tensor is, and keep it there."""
        kept = tensor.detach()
        self._kept.append(kept)
        return kept.data_ptr()


class CompiledPasses:
    """Computes in compiled code; a LoRA on layers that it does not know makes transformers' do.

    Args:
        compiled: Compiled code over the same model and cache.
        passes: Transformers' code over them.
    """

    def __init__(self, compiled: CpuDecoder, passes: Passes) -> None:
        self._compiled, self._passes = compiled, passes

    def compute(
        self, input_ids: Tensor, spans: Sequence[Span], wanted: Sequence[int] | None
    ) -> Tensor:
        """See ``Passes``."""
        is_known = all(span.lora is None or self._compiled.knows(span.lora) for span in spans)
        chosen = self._compiled if is_known else self._passes
        return chosen.compute(input_ids, spans, wanted)


def _wrong_cache(model: Any, cache: KVCache) -> str | None:  # noqa: ANN401
    config = model.config
    size = model.model.layers[0].self_attn.head_dim
    shape = (config.num_key_value_heads, cache.num_blocks * BLOCK_TOKENS, size)
    tensors = [*cache.keys, *cache.values]
    is_right = cache.block_size == BLOCK_TOKENS and len(tensors) == 2 * len(model.model.layers)
    if is_right and all(
        t.shape == shape and t.dtype == torch.bfloat16 and t.is_contiguous() for t in tensors
    ):
        return None
    return f"keys and values are not bfloat16 of {shape} in blocks of {BLOCK_TOKENS} tokens"


def _tables(spans: Sequence[Span]) -> tuple["array[int]", "array[int]"]:
    """Return start, count, length and first block of every span, and all blocks."""
    counts, blocks = array("i"), array("i")
    for span in spans:
        counts.extend((span.start, span.count, span.length, len(blocks)))
        blocks.extend(span.blocks)
    return counts, blocks


def _check_range(what: str, numbers: Sequence[int], end: int) -> None:
    if numbers and (min(numbers) < 0 or max(numbers) >= end):
        raise ValueError(f"{what} from {min(numbers)} to {max(numbers)} are not all below {end}")
