"""Settings: the environment and ``.env``, read once by an entry point and handed down.

Where DB-GPT has a key, that key is read; what DB-GPT has no key for is called ``GUANACO_…``.
A misspelt ``GUANACO_…`` name is refused; other people's keys are ignored, so that one ``.env``
can serve both programs.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dbgpt_guanaco.errors import ConfigurationError

DEMO_MODEL = "smollm2-135m-instruct"

Quantization = Literal["nf4", "int8", "none"]
LegacyEcho = Literal["auto", "none", "pad11", "prompt"]


def _env(name: str, default: Any, description: str, **limits: Any) -> Any:  # noqa: ANN401
    return Field(default, validation_alias=name, description=description, **limits)


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ModelSettings(_Group):
    """Which weights to load, and how."""

    name: str = _env("LLM_MODEL", DEMO_MODEL, "a folder, a known name or a hub name")
    aliases: Annotated[tuple[str, ...], NoDecode] = _env(
        "GUANACO_ALIASES", (), "further names clients may use, comma-separated"
    )
    models_dir: Path = _env("GUANACO_MODELS_DIR", Path("models"), "where models are kept")
    adapter: str | None = _env("GUANACO_ADAPTER", None, "use this family, match nothing")
    lora: str | None = _env("GUANACO_LORA", None, "LoRA folder or hub name to lay on LLM_MODEL")
    base_model: str | None = _env("GUANACO_BASE_MODEL", None, "base of a LoRA, else from its card")
    quantization_override: Quantization | None = _env(
        "GUANACO_QUANTIZATION", None, "nf4, int8 or none; overrides the QUANTIZE_ keys"
    )
    quantize_qlora: bool | None = _env("QUANTIZE_QLORA", None, "DB-GPT's 4-bit switch")
    quantize_4bit: bool | None = _env("QUANTIZE_4BIT", None, "DB-GPT's later 4-bit switch")
    quantize_8bit: bool | None = _env("QUANTIZE_8BIT", None, "DB-GPT's 8-bit switch")
    compute_dtype: Literal["auto", "bfloat16", "float16"] = _env(
        "GUANACO_COMPUTE_DTYPE", "auto", "dtype of the arithmetic"
    )
    device: Literal["auto", "cuda", "cpu"] = _env("GUANACO_DEVICE", "auto", "where to run")
    max_gpu_memory: str | None = _env("MAX_GPU_MEMORY", None, "cap for each GPU, such as 22GiB")
    context_tokens: int | None = _env(
        "MAX_POSITION_EMBEDDINGS", None, "cap on prompt and answer together, in tokens", ge=16
    )

    @field_validator("aliases", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

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


class EngineSettings(_Group):
    """How many requests are answered, and how."""

    slots: int = _env("LIMIT_MODEL_CONCURRENCY", 5, "requests answered at a time", ge=1, le=256)
    queue_size: int = _env("GUANACO_QUEUE_SIZE", 64, "requests that may wait", ge=0, le=10_000)
    prefill_chunk_tokens: int | None = _env(
        "GUANACO_PREFILL_CHUNK",
        None,
        "prompt tokens computed between two looks at the others; 64 on a CPU, 512 on a GPU",
        ge=16,
        le=8192,
    )


class ServerSettings(_Group):
    """Where to listen, and what HTTP clients get by default."""

    host: str = _env("GUANACO_HOST", "127.0.0.1", "address to listen on")
    port: int = _env("MODEL_PORT", 8000, "port to listen on", ge=0, le=65535)
    temperature: float = _env(
        "TEMPERATURE",
        0.2,
        "temperature of requests that name none",
        ge=0,
        le=100,
        allow_inf_nan=False,
    )
    max_body_bytes: int = _env(
        "GUANACO_MAX_BODY_BYTES", 4 * 1024 * 1024, "largest request body, in bytes", ge=1024
    )
    max_choices: int = _env("GUANACO_MAX_N", 8, "largest n of a request", ge=1, le=128)
    keep_alive_s: float = _env(
        "GUANACO_KEEP_ALIVE", 10.0, "seconds of silence before a sign of life", gt=0, le=60
    )
    legacy_frame_s: float = _env(
        "GUANACO_LEGACY_FRAME_INTERVAL",
        0.05,
        "seconds between two whole-text frames to a 2023 client",
        ge=0,
        le=5,
    )
    legacy_echo: LegacyEcho = _env(
        "GUANACO_LEGACY_ECHO", "auto", "what a 2023 client cuts off: auto, none, pad11, prompt"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _env(
        "GUANACO_LOG_LEVEL", "info", "least severity that is logged"
    )


class Settings(_Group):
    """All settings, in the groups that the layers take."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()


class _Environment(BaseSettings, ModelSettings, EngineSettings, ServerSettings):
    """Every field of every group, filled from the environment and a dotenv file."""

    # Not by field name: a shell's HOST or NAME would be taken for a setting.
    model_config = SettingsConfigDict(
        extra="ignore", env_ignore_empty=True, populate_by_name=False, frozen=True
    )
    cuda_visible_devices: str | None = _env("CUDA_VISIBLE_DEVICES", None, "GPUs to use")


def setting_names() -> dict[str, str]:
    """Return every setting with its description, by the name it has in ``.env``."""
    return {
        str(field.validation_alias): field.description or ""
        for field in _Environment.model_fields.values()
    }


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the environment, then ``env_file`` for what the environment leaves out.

    ``CUDA_VISIBLE_DEVICES`` from the file is put into the environment, the one place where
    CUDA looks for it.

    Raises:
        ConfigurationError: A ``GUANACO_`` name is not a setting, or a value is wrong.
    """
    given = {name.upper() for name in (*os.environ, *dotenv_values(env_file))}
    known = setting_names()
    unknown = sorted(n for n in given if n.startswith("GUANACO_") and n not in known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"unknown setting {', '.join(unknown)}; {hint}.env.template lists them all"
        )
    try:
        environment = _Environment(_env_file=env_file)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None
    if environment.cuda_visible_devices is not None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", environment.cuda_visible_devices)
    _ = environment.quantization  # a contradiction is said now, not after the download
    values = environment.model_dump()

    def group(kind: type[_Group]) -> dict[str, Any]:
        return {name: values[name] for name in kind.model_fields}

    return Settings(
        model=ModelSettings(**group(ModelSettings)),
        engine=EngineSettings(**group(EngineSettings)),
        server=ServerSettings(**group(ServerSettings)),
    )


def memory_bytes(text: str) -> int:
    """Read a size such as ``22GiB``, ``16Gib`` (DB-GPT's spelling) or ``24GB``, in bytes.

    Raises:
        ValueError: It is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 22GiB")
    number, unit, binary = match.groups()
    step = 1024 if binary else 1000
    return int(float(number) * step ** ("KMGT".index(unit.upper()) + 1))


def _explain(error: ValidationError) -> str:
    lines = [
        f"{'.'.join(map(str, problem['loc']))}={problem['input']}: "
        f"{problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    ]
    return "\n".join(lines)
