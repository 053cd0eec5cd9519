"""Settings, in the groups that the layers take. ``environment.py`` reads them.

Where DB-GPT has a key, that key is read; what DB-GPT has no key for is called ``GUANACO_…``.
"""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from dbgpt_guanaco.errors import ConfigurationError

DEMO_MODEL = "smollm2-135m-instruct"
# What clients call a LoRA: DB-GPT takes no @ in the name of a model.
LORA_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"


Quantization = Literal["nf4", "int8", "none"]
LegacyEcho = Literal["auto", "none", "pad11", "prompt"]
Network = IPv4Network | IPv6Network


def setting(name: str, default: Any, description: str, **limits: Any) -> Any:  # noqa: ANN401
    """Return a field that the environment gives under this name."""
    return Field(default, validation_alias=name, description=description, **limits)


def _parts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _network(text: str) -> Network:
    try:
        return ip_network(text.strip())
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a network such as 10.0.0.0/24") from None


class Group(BaseModel):
    """Settings that one layer takes. They are read by their names in code or in ``.env``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


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
        return _parts(value)

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


class EngineSettings(Group):
    """How many requests are answered, and how."""

    engine: Literal["auto", "batching", "streaming"] = setting(
        "GUANACO_ENGINE", "auto", "batching, streaming, or auto: batching where it can run"
    )
    kv_cache: str | None = setting(
        "GUANACO_KV_CACHE", None, "cap on the memory for keys and values, such as 4GiB"
    )

    loras: Annotated[tuple[tuple[str, str], ...], NoDecode] = setting(
        "GUANACO_LORAS", (), "LoRAs that requests may choose: name=folder, comma-separated"
    )
    max_loras: int = setting("GUANACO_MAX_LORAS", 16, "LoRAs that may be loaded", ge=0, le=256)
    lora_dir: Path = setting(
        "GUANACO_LORA_DIR", Path("models"), "folder below which LoRAs may be loaded over HTTP"
    )
    slots: int = setting("LIMIT_MODEL_CONCURRENCY", 32, "requests answered at a time", ge=1, le=256)
    queue_size: int = setting("GUANACO_QUEUE_SIZE", 64, "requests that may wait", ge=0, le=10_000)
    prefill_chunk_tokens: int | None = setting(
        "GUANACO_PREFILL_CHUNK",
        None,
        "prompt tokens of one step; up to 64 on a CPU, on a GPU 256 beside others and 2048 alone",
        ge=16,
        le=8192,
    )

    @field_validator("loras", mode="before")
    @classmethod
    def _are_named(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        named = [tuple(part.strip().partition("=")[::2]) for part in value.split(",")]
        for name, folder in named if value.strip() else ():
            if not re.fullmatch(LORA_NAME, name) or not folder:
                raise ValueError(f"{name!r} is not like name=folder")
        return tuple(named) if value.strip() else ()

    @field_validator("kv_cache")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            memory_bytes(value)
        return value


class ServerSettings(Group):
    """Where to listen, and what HTTP clients get by default."""

    host: str = setting("GUANACO_HOST", "127.0.0.1", "address to listen on")
    port: int = setting("MODEL_PORT", 8000, "port to listen on", ge=0, le=65535)
    temperature: float = setting(
        "TEMPERATURE",
        0.2,
        "temperature of requests that name none",
        ge=0,
        le=100,
        allow_inf_nan=False,
    )
    max_body_bytes: int = setting(
        "GUANACO_MAX_BODY_BYTES", 4 * 1024 * 1024, "largest request body, in bytes", ge=1024
    )
    max_choices: int = setting("GUANACO_MAX_N", 8, "largest n of a request", ge=1, le=128)
    keep_alive_s: float = setting(
        "GUANACO_KEEP_ALIVE", 10.0, "seconds of silence before a sign of life", gt=0, le=60
    )
    admin_key: SecretStr | None = setting(
        "GUANACO_ADMIN_KEY", None, "key for loading LoRAs over HTTP; without one nobody can"
    )
    legacy_frame_s: float = setting(
        "GUANACO_LEGACY_FRAME_INTERVAL",
        0.05,
        "least seconds between two whole-text frames to DB-GPT",
        ge=0,
        le=5,
    )
    legacy_echo: LegacyEcho = setting(
        "GUANACO_LEGACY_ECHO", "auto", "what a 2023 client cuts off: auto, none, pad11, prompt"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "GUANACO_LOG_LEVEL", "info", "least severity that is logged"
    )


class EmbeddingSettings(Group):
    """Which embedding model to serve, for knowledge bases."""

    embedding_model: str | None = setting(
        "EMBEDDING_MODEL",
        None,
        "a folder, a known name or a hub name; none serves no embedding model",
    )
    embedding_device: Literal["cpu", "cuda"] = setting(
        "GUANACO_EMBEDDING_DEVICE", "cpu", "where embeddings are computed"
    )


class ClusterSettings(Group):
    """How this server is part of a DB-GPT cluster."""

    controllers: Annotated[tuple[str, ...], NoDecode] = setting(
        "GUANACO_CONTROLLER", (), "addresses of DB-GPT's model controllers, comma-separated"
    )
    advertise_host: str | None = setting(
        "GUANACO_ADVERTISE_HOST", None, "host under which DB-GPT reaches this server"
    )
    advertise_port: int | None = setting(
        "GUANACO_ADVERTISE_PORT",
        None,
        "port under which DB-GPT reaches this server, if not MODEL_PORT",
        ge=1,
        le=65535,
    )
    worker_networks: Annotated[tuple[Network, ...], NoDecode] = setting(
        "GUANACO_WORKER_NETWORKS",
        (),
        "networks whose workers may register here, comma-separated, such as 10.0.0.0/24",
    )

    @field_validator("controllers", mode="before")
    @classmethod
    def _split_controllers(cls, value: object) -> object:
        return _parts(value)

    @field_validator("worker_networks", mode="before")
    @classmethod
    def _are_networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_network(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("controllers")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            url = urlsplit(address)
            is_plain = url.scheme in ("http", "https") and "@" not in url.netloc
            if not is_plain or not url.hostname or url.query or url.fragment or url.port == 0:
                raise ValueError(f"{address!r} is not an address such as http://10.0.0.5:8000")
        return tuple(address.rstrip("/") for address in value)

    @field_validator("advertise_host")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        looks_right = value is None or re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9.-]*|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*]?", value
        )
        if not looks_right or value in ("0.0.0.0", "::", "[::]"):  # noqa: S104  # refused here
            raise ValueError(f"{value!r} is not a host such as 10.0.0.5 or models.example")
        return value


class Settings(Group):
    """All settings, in the groups that the layers take."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    server: ServerSettings = ServerSettings()
    cluster: ClusterSettings = ClusterSettings()


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
