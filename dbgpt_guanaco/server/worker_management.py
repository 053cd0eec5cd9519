"""Dialect W, management: what DB-GPT's page of models and its command line ask of a worker.

One process serves one set of models, so nothing is started or stopped over HTTP.
"""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from dbgpt_guanaco.errors import GuanacoError, InvalidRequestError
from dbgpt_guanaco.server.addresses import own_address
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.dependencies import ClusterDep, EmbedderDep, EngineDep
from dbgpt_guanaco.server.fields import Name
from dbgpt_guanaco.server.worker_models import check_served, supported
from dbgpt_guanaco.server.worker_requests import ApplyRequest, StartupRequest, WorkerType

STOPPING = "no model is stopped over HTTP here; end the server's process, by Ctrl-C or SIGTERM"
CHANGING = "no model is changed over HTTP here; change the settings and start the server again"
REMEDY = {"stop": STOPPING, "restart": CHANGING, "update_params": CHANGING}

router = APIRouter(route_class=JsonRoute)


@router.get("/models/supports")
async def supports(
    request: Request, engine: EngineDep, embedder: EmbedderDep, cluster: ClusterDep
) -> list[dict[str, Any]]:
    """List what this server serves, and under which address."""
    host, port = own_address(request, cluster)
    models = [supported(name, "llm") for name in (engine.card.name, *engine.loras.names)]
    if embedder:
        models.append(supported(embedder.card.name, "text2vec"))
    return [{"host": host, "port": port, "models": models}]


@router.post("/models/startup")
async def startup(body: StartupRequest, engine: EngineDep, embedder: EmbedderDep) -> None:
    """Say that a model runs, if it does."""
    check_served(engine, embedder, body.model, body.worker_type)


@router.post("/models/shutdown")
async def shutdown(_: StartupRequest) -> None:
    """Refuse."""
    raise InvalidRequestError("", STOPPING)


@router.post("/apply")
async def apply(body: ApplyRequest, engine: EngineDep, embedder: EmbedderDep) -> dict[str, Any]:
    """Say that a model runs, or why nothing else can be done with it."""
    refusal = REMEDY.get(body.apply_type)
    try:
        check_served(engine, embedder, body.model, body.worker_type)
    except GuanacoError as error:
        refusal = str(error)
    message = refusal or f"{body.model} is running"
    return {"message": message, "success": refusal is None, "timecost": 0}


@router.get("/parameter/descriptions")
async def parameter_descriptions(
    model: Name, engine: EngineDep, embedder: EmbedderDep, worker_type: WorkerType = "llm"
) -> list[Any]:
    """Return none: nothing about a running model can be changed."""
    check_served(engine, embedder, model, worker_type)
    return []
