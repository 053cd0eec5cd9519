"""The application: every dialect over one engine."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from dbgpt_guanaco import __version__
from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.server import (
    controller,
    errors,
    health,
    llmserver,
    metrics,
    openai,
    page,
    worker,
)
from dbgpt_guanaco.server.access import Access
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.dependencies import admitted
from dbgpt_guanaco.server.exchange import HEADER, ExchangeMiddleware, Listener
from dbgpt_guanaco.server.exchange_log import log_exchange
from dbgpt_guanaco.server.instances import InstanceTable
from dbgpt_guanaco.server.keys import Keys
from dbgpt_guanaco.server.limits import BodyLimit
from dbgpt_guanaco.server.quotas import Quotas
from dbgpt_guanaco.server.responses import on_client_left
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings, ServerSettings


def create_app(
    engine: Engine | LifeCycle,
    settings: ServerSettings | None = None,
    *,
    embedder: Embedder | None = None,
    cluster: ClusterSettings | None = None,
    listeners: Sequence[Listener] = (),
    access: AccessSettings | None = None,
    keys: Keys | None = None,
) -> FastAPI:
    """Return an application that answers from one engine and closes it when it ends.

    Args:
        engine: What generates text, or what will have that, and an embedder, once it is loaded.
        settings: Limits and defaults of requests.
        embedder: What turns texts into vectors, if anything does.
        cluster: How DB-GPT finds this server, and whether other workers may join it.
        listeners: Who else is told of each request when it has ended; closed with the application.
        access: Who may ask.
        keys: Those of ``access``, where they have been read already.
    """
    settings, access = settings or ServerSettings(), access or AccessSettings()
    cluster = cluster or ClusterSettings()
    life = engine if isinstance(engine, LifeCycle) else LifeCycle.of(engine, embedder)
    is_admitted = [Depends(admitted)]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(life.close)
        for listener in listeners:
            await asyncio.to_thread(listener.close)

    app = FastAPI(
        title="dbgpt_guanaco",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # it would load its scripts from another server
        redoc_url=None,
    )
    app.state.life, app.state.settings = life, settings
    app.state.cluster, app.state.access = cluster, access
    app.state.metrics = Metrics(life)
    app.state.instances, app.state.refusals = InstanceTable(), controller.RefusalLog()
    # Each stands around those above it, so the last one is asked first.
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, body_s=access.body_s)
    if access.has_quotas:
        app.add_middleware(Quotas, settings=access)
    app.add_middleware(
        Access, settings=access, cluster=cluster, keys=keys or Keys(access), host=settings.host
    )
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=[HEADER, "Retry-After"],
        )
    told = [app.state.metrics.on_end, log_exchange, *(each.on_end for each in listeners)]
    app.add_middleware(ExchangeMiddleware, on_end=told)
    app.add_exception_handler(GuanacoError, errors.on_guanaco_error)
    app.add_exception_handler(RequestValidationError, errors.on_validation_error)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_exception_handler(ClientDisconnect, on_client_left)
    app.add_exception_handler(Exception, errors.on_any_error)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(llmserver.router, dependencies=is_admitted)
    for prefix in ("/v1", "/api/v1"):
        in_schema = prefix == "/v1"
        app.include_router(
            openai.router, prefix=prefix, include_in_schema=in_schema, dependencies=is_admitted
        )
    app.include_router(controller.router, prefix="/api")
    app.include_router(worker.router, dependencies=is_admitted)
    app.include_router(page.create_router())
    return app
