"""The names that need no hub name, and what is known of them before a file is there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbgpt_guanaco.settings import DEMO_MODEL

if TYPE_CHECKING:
    from dbgpt_guanaco.adapters.shapes import ModelShape

# Of the LoRAs among the known names, which are on all linear layers.
GUANACO_RANK = 64
# hidden, intermediate, layers, heads of the first LLaMA, by what stands in a known name.
LLAMA_SIZES = {
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
    "33b": (6656, 17920, 60, 52),
    "65b": (8192, 22016, 80, 64),
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
    """Return the shape of a known LLaMA, or of a known LoRA's base; None of another name."""
    from dbgpt_guanaco.adapters.shapes import llama_shape

    sizes = next((LLAMA_SIZES[part] for part in name.split("-") if part in LLAMA_SIZES), None)
    return llama_shape(*sizes) if sizes and name in KNOWN_MODELS else None


def guanaco_lora_bytes(shape: "ModelShape") -> int:
    """Return what an un-merged Guanaco LoRA on a base of this shape takes, in 16 bits."""
    return sum(2 * GUANACO_RANK * (m.inputs + m.outputs) for m in shape.matrices)
