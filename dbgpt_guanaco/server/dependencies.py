"""What routes are given: the engine and the settings that ``create_app`` was built with."""

import hashlib
from typing import Annotated, cast

from fastapi import Depends, Request

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.exchange import KEY
from dbgpt_guanaco.server.observed import ObservedEmbedder, ObservedEngine
from dbgpt_guanaco.settings import ClusterSettings, ServerSettings


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


async def _engine(request: Request) -> Engine:
    """Return the engine, seen through what notes all that this request asks of it."""
    state = request.app.state
    return ObservedEngine(state.engine, request.scope[KEY], state.metrics)


async def _settings(request: Request) -> ServerSettings:
    return cast(ServerSettings, request.app.state.settings)


async def _embedder(request: Request) -> Embedder | None:
    state = request.app.state
    if state.embedder is None:
        return None
    return ObservedEmbedder(state.embedder, request.scope[KEY], state.metrics)


async def _cluster(request: Request) -> ClusterSettings:
    return cast(ClusterSettings, request.app.state.cluster)


async def _salt(request: Request) -> str:
    """Return what keeps apart the cached prompts of different keys; nothing without a key.

    Whoever shares a cache can tell from the time of an answer whether a text was sent before.
    """
    key = request.headers.get("authorization", "")
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


MetricsDep = Annotated[Metrics, Depends(_metrics)]
EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
EmbedderDep = Annotated[Embedder | None, Depends(_embedder)]
SaltDep = Annotated[str, Depends(_salt)]
ClusterDep = Annotated[ClusterSettings, Depends(_cluster)]
