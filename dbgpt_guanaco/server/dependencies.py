"""What routes are given: the engine and the settings that ``create_app`` was built with."""

import hashlib
from typing import Annotated, cast

from fastapi import Depends, Request

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.settings import ClusterSettings, ServerSettings


async def _engine(request: Request) -> Engine:
    return cast(Engine, request.app.state.engine)


async def _settings(request: Request) -> ServerSettings:
    return cast(ServerSettings, request.app.state.settings)


async def _embedder(request: Request) -> Embedder | None:
    return cast(Embedder | None, request.app.state.embedder)


async def _cluster(request: Request) -> ClusterSettings:
    return cast(ClusterSettings, request.app.state.cluster)


async def _salt(request: Request) -> str:
    """Return what keeps apart the cached prompts of different keys; nothing without a key.

    Whoever shares a cache can tell from the time of an answer whether a text was sent before.
    """
    key = request.headers.get("authorization", "")
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
EmbedderDep = Annotated[Embedder | None, Depends(_embedder)]
SaltDep = Annotated[str, Depends(_salt)]
ClusterDep = Annotated[ClusterSettings, Depends(_cluster)]
