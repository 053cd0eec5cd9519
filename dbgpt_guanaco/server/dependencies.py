"""What routes are given: the engine and the settings that ``create_app`` was built with."""

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


EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
EmbedderDep = Annotated[Embedder | None, Depends(_embedder)]
ClusterDep = Annotated[ClusterSettings, Depends(_cluster)]
