"""The OpenAI dialect: ``/v1`` and ``/api/v1``, for any OpenAI client and today's DB-GPT."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dbgpt_guanaco.engine.base import Engine, Generation
from dbgpt_guanaco.errors import InvalidRequestError, NoEmbedderError
from dbgpt_guanaco.server import openai_embeddings, openai_loras, served
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.dependencies import EmbedderDep, EngineDep, SaltDep, SettingsDep
from dbgpt_guanaco.server.exchange import KEY, Exchange
from dbgpt_guanaco.server.openai_answers import Answer
from dbgpt_guanaco.server.openai_embeddings import EmbeddingsRequest
from dbgpt_guanaco.server.openai_requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    chat_messages,
)
from dbgpt_guanaco.server.responses import EventStream, cancel_all, unless_client_leaves
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import GenerationRequest

router = APIRouter(tags=["openai"], route_class=JsonRoute)
router.include_router(openai_loras.router)


@router.get("/models")
async def list_models(engine: EngineDep, embedder: EmbedderDep) -> dict[str, Any]:
    """Name the loaded model, its aliases, and the embedding model."""
    models = [_model(engine, name) for name in served.names(engine)]
    if embedder:
        models.append(openai_embeddings.model_object(embedder.card))
    return {"object": "list", "data": models}


@router.get("/models/{name:path}")
async def get_model(name: str, engine: EngineDep, embedder: EmbedderDep) -> dict[str, Any]:
    """Describe one model."""
    if embedder and name == embedder.card.name:
        return openai_embeddings.model_object(embedder.card)
    return _model(engine, served.find(engine, name).name)


@router.post("/chat/completions")
async def create_chat_completion(
    request: Request,
    body: ChatCompletionRequest,
    engine: EngineDep,
    settings: SettingsDep,
    salt: SaltDep,
) -> Response:
    """Answer a conversation, as one object or as a stream of events."""
    model = served.find(engine, body.model)
    _check_count(body.choices, request, engine, settings)
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    wanted = await asyncio.to_thread(
        body.to_generation_requests, model.template, settings.temperature, request_id
    )
    generations = await _submit_all(engine, [model.of(one, salt) for one in wanted])
    answer = Answer(
        kind="chat",
        request_id=request_id,
        model=model.name,
        generations=generations,
        with_logprobs=bool(body.logprobs),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        choices_per_prompt=body.choices,
    )
    return await _respond(request, answer, settings, is_stream=bool(body.stream))


@router.post("/completions")
async def create_completion(
    request: Request,
    body: CompletionRequest,
    engine: EngineDep,
    settings: SettingsDep,
    salt: SaltDep,
) -> Response:
    """Continue a text, as one object or as a stream of events."""
    model = served.find(engine, body.model)
    _check_count(len(body.prompts) * body.choices, request, engine, settings)
    request_id = f"cmpl-{uuid.uuid4().hex}"
    wanted = await asyncio.to_thread(body.to_generation_requests, settings.temperature, request_id)
    generations = await _submit_all(engine, [model.of(one, salt) for one in wanted])
    answer = Answer(
        kind="completion",
        request_id=request_id,
        model=model.name,
        generations=generations,
        echo=bool(body.echo),
        with_logprobs=body.logprobs is not None,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        choices_per_prompt=body.choices,
    )
    return await _respond(request, answer, settings, is_stream=bool(body.stream))


@router.post("/embeddings")
async def create_embeddings(
    request: Request, body: EmbeddingsRequest, embedder: EmbedderDep
) -> Response:
    """Turn texts into vectors."""
    if not embedder:
        raise NoEmbedderError
    body.check(embedder.card)
    as_base64 = body.encoding_format == "base64"

    async def whole() -> Response:
        embeddings = await embedder.embed(body.input)
        return await openai_embeddings.respond(embeddings, embedder.card.name, as_base64=as_base64)

    return await unless_client_leaves(request, whole())


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, engine: EngineDep) -> dict[str, Any]:
    """Count a text's or a conversation's tokens, as a request with it would be charged."""
    model = served.find(engine, body.model)
    if body.messages is None:
        text, add_special_tokens = body.prompt or "", body.add_special_tokens is not False
    else:
        prompt = await asyncio.to_thread(model.template.render, chat_messages(body.messages))
        text, add_special_tokens = prompt.text, prompt.add_special_tokens
    token_ids = await engine.tokenize(text, add_special_tokens=add_special_tokens)
    return {
        "count": len(token_ids),
        "max_model_len": engine.card.context_tokens,
        "tokens": list(token_ids),
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, engine: EngineDep) -> dict[str, Any]:
    """Return the text of token ids."""
    served.find(engine, body.model)
    return {"prompt": await engine.detokenize(body.tokens)}


async def _respond(
    request: Request, answer: Answer, settings: ServerSettings, *, is_stream: bool
) -> Response:
    if is_stream:
        return EventStream(
            answer.events(),
            answer.generations,
            keep_alive=answer.keep_alive,
            keep_alive_s=settings.keep_alive_s,
        )

    async def whole() -> Response:
        return JSONResponse(await answer.whole())

    try:
        return await unless_client_leaves(request, whole())
    finally:
        cancel_all(answer.generations)


async def _submit_all(engine: Engine, wanted: Sequence[GenerationRequest]) -> list[Generation]:
    """Submit every request or none.

    Raises:
        GuanacoError: The first refusal; what was accepted before it is cancelled.
    """
    accepted: list[Generation] = []
    try:
        for one in wanted:
            accepted.append(await engine.submit(one))  # noqa: PERF401  # kept if the next fails
    except BaseException:
        cancel_all(accepted)
        raise
    return accepted


def _check_count(count: int, request: Request, engine: Engine, settings: ServerSettings) -> None:
    """Refuse more answers than are allowed, or than could ever be taken together.

    Raises:
        InvalidRequestError: There are more.
        QuotaExceededError: The key has not so many places now.
    """
    most = min(settings.max_choices, engine.load.slots + engine.load.queue_size)
    if count > most:
        raise InvalidRequestError("n", f"{count} answers are more than the {most} allowed")
    exchange: Exchange = request.scope[KEY]
    exchange.reserve(count)


def _model(engine: Engine, name: str) -> dict[str, Any]:
    card = engine.card
    lora = engine.loras.get(name) if name in engine.loras.names else None
    return {
        "id": name,
        "object": "model",
        "created": lora.created if lora else card.created,
        "owned_by": "dbgpt_guanaco",
        "root": lora.folder if lora else card.name,
        "parent": card.name if lora else None,
        "kind": "chat",
        "max_model_len": card.context_tokens,
        "family": card.family,
        "quantization": card.quantization,
        "compute_dtype": card.compute_dtype,
        "lora": lora.folder if lora else card.lora,
    }
