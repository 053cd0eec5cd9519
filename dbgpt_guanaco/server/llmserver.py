"""The dialect of DB-GPT's own llmserver of 2023 (v0.1.0 to v0.3.6), at the server's root.

A stream is JSON objects, each ended by a NUL byte, each with the whole text so far. What such
a client cannot read is not sent: errors, too, come as frames it shows to its user.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from sse_starlette import ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dbgpt_guanaco.engine.base import Generation
from dbgpt_guanaco.errors import GuanacoError, OutOfMemoryError
from dbgpt_guanaco.server import bodies, errors, frames, served
from dbgpt_guanaco.server.dependencies import EmbedderDep, EngineDep, SaltDep, SettingsDep
from dbgpt_guanaco.server.llmserver_requests import (
    EmbeddingRequest,
    LegacyRequest,
    echo_padding,
)
from dbgpt_guanaco.server.pacing import paced
from dbgpt_guanaco.server.responses import EventStream, FrameStream, unless_client_leaves
from dbgpt_guanaco.settings import ServerSettings

# ``echo`` false and a length of 0 make every client that reads them cut nothing off.
MODEL_CONTEXT = {"prompt_echo_len_char": 0, "echo": False}
EMPTY_ANSWER = "(the model gave an empty answer)"


class LegacyRoute(APIRoute):
    """Answers errors as the frames of this dialect, under a true status code.

    The clients look only at the body, so people with other tools get the status as well.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except (GuanacoError, HTTPException) as error:
                return refusal(request, error)

        return handle


router = APIRouter(tags=["llmserver"], route_class=LegacyRoute)


@router.post("/generate_stream")
async def generate_stream(
    request: Request, engine: EngineDep, settings: SettingsDep, salt: SaltDep
) -> Response:
    """Stream an answer: NUL-ended frames of whole texts, or SSE deltas for who accepts those."""
    body = await bodies.read(request, LegacyRequest)
    padding = echo_padding(body, settings.legacy_echo)
    try:
        generation = await _submit(body, engine, settings, salt)
    except GuanacoError as error:  # such a client cuts an error as it cuts an answer
        return refusal(request, error, padding)
    if "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(
            delta_events(generation),
            [generation],
            keep_alive=frames.event({"text": "", "error_code": 0}),
            keep_alive_s=settings.keep_alive_s,
        )
    return FrameStream(text_frames(generation, padding, settings), generation)


@router.post("/generate")
async def generate(
    request: Request, engine: EngineDep, settings: SettingsDep, salt: SaltDep
) -> Response:
    """Answer whole, in a body that the clients of all those versions can read."""
    body = await bodies.read(request, LegacyRequest)
    generation = await _submit(body, engine, settings, salt)

    async def whole() -> Response:
        text = "".join([delta.text async for delta in generation])
        return JSONResponse(_superset(text.strip() or EMPTY_ANSWER))

    try:
        return await unless_client_leaves(request, whole())
    finally:
        generation.cancel()


@router.post("/embedding")
async def embedding(request: Request, engine: EngineDep, embedder: EmbedderDep) -> dict[str, Any]:
    """Return a text's vector; without an embedding model, the mean of its input embeddings.

    The mean is what that server computed, from the language model's own table.
    """
    body = await bodies.read(request, EmbeddingRequest)
    if not embedder:
        return {"response": list(await engine.embed(body.prompt))}
    embeddings = await embedder.embed([body.prompt])
    return {"response": list(embeddings.vectors[0])}


async def _submit(
    body: LegacyRequest, engine: EngineDep, settings: ServerSettings, salt: str
) -> Generation:
    """Ask the engine. A name chooses a LoRA; any other is the loaded model, as it was there."""
    is_lora = body.model in engine.loras.names
    model = served.find(engine, body.model if is_lora else None)
    request = await asyncio.to_thread(body.to_generation_request, model.template, settings, _id())
    return await engine.submit(model.of(request, salt))


async def text_frames(
    generation: Generation, padding: str, settings: ServerSettings
) -> AsyncIterator[bytes]:
    """Write a generation as frames of the whole text so far.

    Silence is broken by a lone NUL, which is no frame to a client and keeps its read timeout
    (20 s) from firing.
    """
    whole, shown = "", ""
    try:
        async with aclosing(paced(generation, settings)) as deltas:
            async for delta in deltas:
                if delta is None:
                    yield frames.KEEP_ALIVE
                    continue
                whole += delta.text
                if delta.is_last and not whole.strip():
                    whole = EMPTY_ANSWER
                if whole != shown or delta.is_last:
                    shown = whole
                    yield frames.nul_frame(_frame(padding + whole))
    except GuanacoError as error:
        told = error_text(error)
        yield frames.nul_frame(_frame(padding + (f"{whole}\n{told}" if whole else told), code=1))


async def delta_events(generation: Generation) -> AsyncIterator[ServerSentEvent]:
    """Write a generation as events whose ``text`` is what is new."""
    try:
        async for delta in generation:
            ending: dict[str, Any] = {}
            if delta.is_last:
                usage = frames.usage_object(delta.usage)
                ending = {"finish_reason": delta.finish_reason, "usage": usage}
            yield frames.event({"text": delta.text, "error_code": 0, **ending})
    except GuanacoError as error:
        yield frames.event({"text": error_text(error), "error_code": 1})


def error_text(error: GuanacoError) -> str:
    """Return what that server wrote into the chat when something failed."""
    if isinstance(error, OutOfMemoryError):
        return "**GPU OutOfMemory, Please Refresh.**"
    return _told(str(error))


def _frame(text: str, code: int = 0) -> dict[str, Any]:
    return {"text": text, "error_code": code, "model_context": MODEL_CONTEXT}


def _superset(text: str) -> dict[str, Any]:
    # v0.1 and v0.2 read ``response`` and parse it again, v0.3 reads the other two keys. A code
    # other than 0 makes some of them fail on their own error message, so errors are text.
    inner = frames.nul_frame({"text": text, "error_code": 0}).decode()
    return {"response": inner, "text": text, "error_code": 0}


def refusal(request: Request, error: GuanacoError | HTTPException, padding: str = "") -> Response:
    """Return an error in the form of the path that was asked."""
    if isinstance(error, GuanacoError):
        status, text, kind = errors.status_of(error), error_text(error), type(error).__name__
    else:
        status, text, kind = error.status_code, _told(str(error.detail)), "invalid body"
    errors.log_refusal(request, status, kind)
    headers = errors.headers_of(error)
    if request.url.path.endswith("/generate"):
        return JSONResponse(_superset(text), status, headers)
    if "text/event-stream" in request.headers.get("accept", ""):
        event = frames.event({"text": text, "error_code": 1}).encode()
        return Response(event, status, headers, media_type="text/event-stream")
    if request.url.path.endswith("/embedding"):
        return JSONResponse(errors.error_body(text, status), status, headers)
    return Response(frames.nul_frame(_frame(padding + text, code=1)), status, headers)


def _told(text: str) -> str:
    return f"**LLMServer Generate Error, Please CheckErrorInfo.**: {text}"


def _id() -> str:
    return f"legacy-{uuid.uuid4().hex}"
