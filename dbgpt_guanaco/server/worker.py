"""Dialect W: DB-GPT's cluster worker (v0.3.7 to today), under ``/api/worker``.

Whoever answers with bare JSON here fails with a true status and OpenAI's error object: DB-GPT
v0.7 and later show the body of any other status than 200 and 201. Answers of the language
model are another matter, see ``worker_answers``.
"""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dbgpt_guanaco.server import frames, worker_answers, worker_management, worker_models
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.dependencies import EmbedderDep, EngineDep
from dbgpt_guanaco.server.responses import unless_client_leaves
from dbgpt_guanaco.server.worker_requests import (
    CountTokenRequest,
    EmbeddingsRequest,
    MetadataRequest,
)

router = APIRouter(prefix="/api/worker", tags=["worker"], route_class=JsonRoute)
router.include_router(worker_answers.router)
router.include_router(worker_management.router)


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingsRequest, embedder: EmbedderDep) -> Response:
    """Turn texts into vectors, in their order."""
    chosen = worker_models.find_embedder(embedder, body.model, body.wanted_type)

    async def whole() -> Response:
        vectors = (await chosen.embed(body.input)).vectors if body.input else ()
        return Response(await frames.json_rows(map(list, vectors)), media_type="application/json")

    return await unless_client_leaves(request, whole())


@router.post("/count_token")
async def count_token(body: CountTokenRequest, engine: EngineDep) -> int:
    """Count a text's tokens as DB-GPT's own worker does, with the one that opens a text."""
    if body.model is not None:
        worker_models.find_llm(engine, body.model)
    return len(await engine.tokenize(body.prompt, add_special_tokens=True))


@router.post("/model_metadata")
async def model_metadata(
    body: MetadataRequest, engine: EngineDep, embedder: EmbedderDep
) -> dict[str, Any]:
    """Describe a model under the name it was asked for: DB-GPT looks it up by that again."""
    if embedder and body.model == embedder.card.name:
        return worker_models.metadata(body.model, embedder.card.max_tokens, is_chat_model=False)
    worker_models.find_llm(engine, body.model)
    return worker_models.metadata(body.model, engine.card.context_tokens, is_chat_model=True)
