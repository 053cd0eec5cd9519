"""Where to listen, and what HTTP clients get by default."""

from typing import Literal

from dbgpt_guanaco.settings.fields import Group, setting

LegacyEcho = Literal["auto", "none", "pad11", "prompt"]


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
