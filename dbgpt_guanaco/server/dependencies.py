"""What routes are given: the engine and the settings that ``create_app`` was built with."""

from typing import Annotated, cast

from fastapi import Depends, Request

from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.settings import ServerSettings


async def _engine(request: Request) -> Engine:
    return cast(Engine, request.app.state.engine)


async def _settings(request: Request) -> ServerSettings:
    return cast(ServerSettings, request.app.state.settings)


EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[ServerSettings, Depends(_settings)]
