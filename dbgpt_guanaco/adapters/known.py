"""The names that need no hub name, and what is known of them before a file is there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbgpt_guanaco.settings import DEMO_MODEL

if TYPE_CHECKING:
    from dbgpt_guanaco.adapters.shapes import ModelShape

# Of the LoRAs among the known names, which are on all linear layers.
GUANACO_RANK = 64
# hidden, intermediate, layers, heads of the first LLaMA, arXiv 2302.13971.
LLAMA_SIZES = {
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
    "33b": (6656, 17920, 60, 52),
    "65b": (8192, 22016, 80, 64),
}
SIZES = {
    "huggyllama/llama-7b": LLAMA_SIZES["7b"],
    "huggyllama/llama-13b": LLAMA_SIZES["13b"],
    "huggyllama/llama-30b": LLAMA_SIZES["33b"],
    "huggyllama/llama-65b": LLAMA_SIZES["65b"],
    "timdettmers/guanaco-33b-merged": LLAMA_SIZES["33b"],
    "timdettmers/guanaco-65b-merged": LLAMA_SIZES["65b"],
    "lmsys/vicuna-13b-v1.5": LLAMA_SIZES["13b"],
    "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 1536, 30, 9),
}
# From the first LLaMA, as config.json has it.
DIFFERENCES: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-13b-v1.5": {"max_position_embeddings": 4096},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A name that needs no hub name.

    Attributes:
        hub: Name on the Hugging Face hub.
        base: Hub name of the base model, for a LoRA.
    """

    hub: str
    base: str | None = None


KNOWN_MODELS = {
    "guanaco-7b": KnownModel("timdettmers/guanaco-7b", base="huggyllama/llama-7b"),
    "guanaco-13b": KnownModel("timdettmers/guanaco-13b", base="huggyllama/llama-13b"),
    "guanaco-33b": KnownModel("timdettmers/guanaco-33b", base="huggyllama/llama-30b"),
    "guanaco-65b": KnownModel("timdettmers/guanaco-65b", base="huggyllama/llama-65b"),
    "guanaco-33b-merged": KnownModel("timdettmers/guanaco-33b-merged"),
    "guanaco-65b-merged": KnownModel("timdettmers/guanaco-65b-merged"),
    "vicuna-13b": KnownModel("lmsys/vicuna-13b-v1.5"),
    DEMO_MODEL: KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct"),
}


def known_shape(name: str) -> "ModelShape | None":
    """Return the shape of a known model, or of a known LoRA's base; None of another name.

    Args:
        name: A known name, or one of those that the hub has for them and their bases.
    """
    from dbgpt_guanaco.adapters.shapes import llama_shape

    known = KNOWN_MODELS.get(name)
    hub = (known.base or known.hub) if known else name
    sizes = SIZES.get(hub)
    return llama_shape(*sizes, **DIFFERENCES.get(hub, {})) if sizes else None


def guanaco_lora_bytes(shape: "ModelShape") -> int:
    """Return what an un-merged Guanaco LoRA on a base of this shape takes, in 16 bits."""
    return sum(2 * GUANACO_RANK * (m.inputs + m.outputs) for m in shape.matrices)
