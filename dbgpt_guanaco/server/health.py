"""Is the process there, does it take requests, how far is it, how busy is it?"""

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from dbgpt_guanaco.errors import EngineStartingError
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.dependencies import LifeDep, MetricsDep
from dbgpt_guanaco.server.errors import RETRY_AFTER_S
from dbgpt_guanaco.server.starting import LifeCycle

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(life: LifeDep, metrics: MetricsDep) -> JSONResponse:
    """Say that the process lives, and how busy it is; 503 where only a new process helps."""
    body = _report(life, metrics)
    if body["status"] == "ready":
        body["status"] = "ok"
    is_lost = life.engine is not None and life.engine.is_lost
    return JSONResponse(body, 503 if is_lost else 200)


@router.get("/ready")
async def ready(life: LifeDep, metrics: MetricsDep) -> JSONResponse:
    """Say whether a request would be taken now, and if not, why."""
    body = _report(life, metrics)
    if body["status"] == "ready":
        return JSONResponse(body)
    is_loading = body["status"] == "loading"
    headers = {"Retry-After": str(RETRY_AFTER_S[EngineStartingError])} if is_loading else None
    return JSONResponse(body, 503, headers)


def _report(life: LifeCycle, metrics: Metrics) -> dict[str, Any]:
    body: dict[str, Any] = {"status": life.state}
    engine = life.engine
    if engine is None:
        return body | _start(life)
    body |= {"model": engine.card.name, **metrics.vitals(engine).as_json()}
    return body | ({"problem": engine.problem} if engine.problem else {})


def _start(life: LifeCycle) -> dict[str, Any]:
    progress = life.progress
    counted = {"done": progress.done, "total": progress.total, "unit": progress.unit}
    return {
        "stage": progress.stage,
        **(counted if progress.total else {}),
        "seconds": round(life.seconds, 1),
    }
