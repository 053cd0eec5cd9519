"""Which weights to load, and how."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import field_validator
from pydantic_settings import NoDecode

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings.fields import Group, memory_bytes, parts_of, setting

DEMO_MODEL = "smollm2-135m-instruct"

Quantization = Literal["nf4", "int8", "none"]


class ModelSettings(Group):
    """Which weights to load, and how."""

    name: str = setting("LLM_MODEL", DEMO_MODEL, "a folder, a known name or a hub name")
    aliases: Annotated[tuple[str, ...], NoDecode] = setting(
        "GUANACO_ALIASES", (), "further names clients may use, comma-separated"
    )
    models_dir: Path = setting("GUANACO_MODELS_DIR", Path("models"), "where models are kept")
    adapter: str | None = setting("GUANACO_ADAPTER", None, "use this family, match nothing")
    lora: str | None = setting("GUANACO_LORA", None, "LoRA folder or hub name to lay on LLM_MODEL")
    base_model: str | None = setting(
        "GUANACO_BASE_MODEL", None, "base of a LoRA, else from its card"
    )
    quantization_override: Quantization | None = setting(
        "GUANACO_QUANTIZATION", None, "nf4, int8 or none; overrides the QUANTIZE_ keys"
    )
    quantize_qlora: bool | None = setting("QUANTIZE_QLORA", None, "DB-GPT's 4-bit switch")
    quantize_4bit: bool | None = setting("QUANTIZE_4BIT", None, "DB-GPT's later 4-bit switch")
    quantize_8bit: bool | None = setting("QUANTIZE_8BIT", None, "DB-GPT's 8-bit switch")
    trust_remote_code: bool = setting(
        "GUANACO_TRUST_REMOTE_CODE", False, "run Python code that LLM_MODEL's folder brings"
    )
    compute_dtype: Literal["auto", "bfloat16", "float16"] = setting(
        "GUANACO_COMPUTE_DTYPE", "auto", "dtype of the arithmetic"
    )
    device: Literal["auto", "cuda", "cpu"] = setting("GUANACO_DEVICE", "auto", "where to run")
    max_gpu_memory: str | None = setting("MAX_GPU_MEMORY", None, "cap for each GPU, such as 22GiB")
    context_tokens: int | None = setting(
        "MAX_POSITION_EMBEDDINGS", None, "cap on prompt and answer together, in tokens", ge=16
    )

    @field_validator("aliases", mode="before")
    @classmethod
    def _split_aliases(cls, value: object) -> object:
        return parts_of(value)

    @field_validator("max_gpu_memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            memory_bytes(value)
        return value

    @property
    def quantization(self) -> Quantization:
        """How weights are to be stored.

        DB-GPT's stock ``.env`` sets both ``QUANTIZE_QLORA`` and ``QUANTIZE_8bit``; there the
        first is the switch of 4-bit families, so it wins.

        Raises:
            ConfigurationError: 4-bit and 8-bit are both asked for.
        """
        if self.quantization_override:
            return self.quantization_override
        if self.quantize_4bit and self.quantize_8bit and not self.quantize_qlora:
            raise ConfigurationError(
                "QUANTIZE_4bit and QUANTIZE_8bit are both on; keep one, or set GUANACO_QUANTIZATION"
            )
        if self.quantize_qlora or self.quantize_4bit:
            return "nf4"
        if self.quantize_8bit:
            return "int8"
        return "none" if False in (self.quantize_qlora, self.quantize_4bit) else "nf4"

    @property
    def is_quantization_given(self) -> bool:
        """Somebody asked for a quantization; else nf4 is only the default."""
        switches = (self.quantize_qlora, self.quantize_4bit, self.quantize_8bit)
        return bool(self.quantization_override) or any(s is not None for s in switches)
