"""How many requests are answered, and how."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import field_validator
from pydantic_settings import NoDecode

from dbgpt_guanaco.settings.fields import Group, memory_bytes, setting

# What clients call a LoRA: DB-GPT takes no @ in the name of a model.
LORA_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"


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
    def _is_a_cache_size(cls, value: str | None) -> str | None:
        if value is not None:
            memory_bytes(value)
        return value


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
