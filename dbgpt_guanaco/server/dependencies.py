"""What routes are given: the engine, while there is one, and the settings of ``create_app``."""

from typing import Annotated, cast

from fastapi import Depends, Request

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import AccessDeniedError
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.exchange import KEY
from dbgpt_guanaco.server.keys import Caller
from dbgpt_guanaco.server.observed import ObservedEmbedder, ObservedEngine
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings, ServerSettings


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
    """Return what keeps apart the cached prompts of different callers."""
    return cast(Caller, request.state.caller).identity


async def _check_admin(request: Request) -> None:
    """Refuse whoever has not the admin's key.

    Raises:
        AccessDeniedError: Another key was sent, or none, or there is none.
    """
    if not cast(AccessSettings, request.app.state.access).admin_key:
        raise AccessDeniedError("this needs an admin key; the server has none: GUANACO_ADMIN_KEY")
    if not cast(Caller, request.state.caller).is_admin:
        raise AccessDeniedError("this needs the admin key, as Authorization: Bearer …")


MetricsDep = Annotated[Metrics, Depends(_metrics)]
EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
EmbedderDep = Annotated[Embedder | None, Depends(_embedder)]
SaltDep = Annotated[str, Depends(_salt)]
ClusterDep = Annotated[ClusterSettings, Depends(_cluster)]
OnlyAdmin = Depends(_check_admin)
