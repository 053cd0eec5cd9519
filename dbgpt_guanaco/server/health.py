"""Is the server there, does it take requests, how busy is it?"""

from fastapi import APIRouter
from starlette.responses import JSONResponse

from dbgpt_guanaco.server.dependencies import EngineDep

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(engine: EngineDep) -> JSONResponse:
    """Say that the process answers, and how busy its engine is."""
    return _report(engine, "ok" if engine.is_alive else "failed")


@router.get("/ready")
async def ready(engine: EngineDep) -> JSONResponse:
    """Say whether a request would be taken now."""
    return _report(engine, "ready" if engine.is_alive else "failed")


def _report(engine: EngineDep, status: str) -> JSONResponse:
    load = engine.load
    body = {
        "status": status,
        "model": engine.card.name,
        "running": load.running,
        "waiting": load.waiting,
        "slots": load.slots,
        "queue_size": load.queue_size,
        "kv_blocks": load.kv_blocks,
        "kv_blocks_free": load.kv_blocks_free,
        "prompt_tokens": load.prompt_tokens,
        "cached_tokens": load.cached_tokens,
        "preemptions": load.preemptions,
    }
    if engine.problem:
        body["problem"] = engine.problem
    return JSONResponse(body, 200 if engine.is_alive else 503)
