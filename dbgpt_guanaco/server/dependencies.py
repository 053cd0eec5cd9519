"""What routes are given: the engine, while there is one, and the settings of ``create_app``."""

import hashlib
from typing import Annotated, cast

from fastapi import Depends, Request

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.exchange import KEY
from dbgpt_guanaco.server.observed import ObservedEmbedder, ObservedEngine
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.settings import ClusterSettings, ServerSettings


async def _life(request: Request) -> LifeCycle:
    return cast(LifeCycle, request.app.state.life)


LifeDep = Annotated[LifeCycle, Depends(_life)]


async def admitted(life: LifeDep) -> tuple[Engine, Embedder | None]:
    """Refuse a request that comes too early or too late.

    Raises:
        EngineStartingError, EngineStoppedError: As ``LifeCycle.admit``.
    """
    return life.admit()


AdmittedDep = Annotated[tuple[Engine, Embedder | None], Depends(admitted)]


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


async def _engine(request: Request, admitted: AdmittedDep) -> Engine:
    """Return the engine, seen through what notes all that this request asks of it."""
    return ObservedEngine(admitted[0], request.scope[KEY], request.app.state.metrics)


async def _settings(request: Request) -> ServerSettings:
    return cast(ServerSettings, request.app.state.settings)


async def _embedder(request: Request, admitted: AdmittedDep) -> Embedder | None:
    embedder = admitted[1]
    if embedder is None:
        return None
    return ObservedEmbedder(embedder, request.scope[KEY], request.app.state.metrics)


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
