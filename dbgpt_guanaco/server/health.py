"""Is the server there, does it take requests, how busy is it?"""

from fastapi import APIRouter
from starlette.responses import JSONResponse

from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.dependencies import EngineDep, MetricsDep

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(engine: EngineDep, metrics: MetricsDep) -> JSONResponse:
    """Say that the process answers, and how busy its engine is."""
    return _report(engine, metrics, "ok" if engine.is_alive else "failed")


@router.get("/ready")
async def ready(engine: EngineDep, metrics: MetricsDep) -> JSONResponse:
    """Say whether a request would be taken now."""
    return _report(engine, metrics, "ready" if engine.is_alive else "failed")


def _report(engine: Engine, metrics: Metrics, status: str) -> JSONResponse:
    body = {"status": status, "model": engine.card.name, **metrics.vitals().as_json()}
    if engine.problem:
        body["problem"] = engine.problem
    return JSONResponse(body, 200 if engine.is_alive else 503)
