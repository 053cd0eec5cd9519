"""The environment and ``.env`` → settings, read once by an entry point and handed down.

A misspelt ``GUANACO_…`` name is refused; other people's keys are ignored, so that one ``.env``
can serve this program and DB-GPT.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.settings import (
    AccessSettings,
    ClusterSettings,
    EmbeddingSettings,
    EngineSettings,
    Group,
    LifeSettings,
    ModelSettings,
    ObservationSettings,
    ServerSettings,
    Settings,
    setting,
)

# Read by the plugin inside DB-GPT; they may stand in an .env that both programs read.
CLIENT_NAMES = frozenset({"GUANACO_API_BASE", "GUANACO_API_KEY"})
# Their values stand in no message.
SECRET_NAMES = frozenset({"GUANACO_API_KEYS", "GUANACO_ADMIN_KEY"})


class _Environment(
    BaseSettings,
    ModelSettings,
    EngineSettings,
    EmbeddingSettings,
    ServerSettings,
    ClusterSettings,
    ObservationSettings,
    LifeSettings,
    AccessSettings,
):
    """Every field of every group, filled from the environment and a dotenv file."""

    # Not by field name: a shell's HOST or NAME would be taken for a setting.
    model_config = SettingsConfigDict(
        extra="ignore", env_ignore_empty=True, populate_by_name=False, frozen=True
    )
    cuda_visible_devices: str | None = setting("CUDA_VISIBLE_DEVICES", None, "GPUs to use")


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
    ours = {name for name in given if name.startswith("GUANACO_")}
    unknown = sorted(ours - known.keys() - CLIENT_NAMES)
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

    def group(kind: type[Group]) -> dict[str, Any]:
        return {name: values[name] for name in kind.model_fields}

    return Settings(
        model=ModelSettings(**group(ModelSettings)),
        engine=EngineSettings(**group(EngineSettings)),
        embedding=EmbeddingSettings(**group(EmbeddingSettings)),
        server=ServerSettings(**group(ServerSettings)),
        cluster=ClusterSettings(**group(ClusterSettings)),
        observation=ObservationSettings(**group(ObservationSettings)),
        life=LifeSettings(**group(LifeSettings)),
        access=AccessSettings(**group(AccessSettings)),
    )


def _explain(error: ValidationError) -> str:
    return "\n".join(_explain_one(problem) for problem in error.errors())


def _explain_one(problem: ErrorDetails) -> str:
    name = ".".join(map(str, problem["loc"]))
    is_secret = str(problem["loc"][0]).upper() in SECRET_NAMES
    given = name if is_secret else f"{name}={problem['input']}"
    return f"{given}: {problem['msg'].removeprefix('Value error, ')}"
