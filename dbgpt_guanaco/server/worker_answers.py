"""Dialect W, answers: ``/generate_stream`` and ``/generate`` of a cluster worker.

A stream is JSON objects, each ended by a NUL byte, each with the whole text so far. The client
looks at no status: what is not a frame with a text is lost, so every failure is one.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from dbgpt_guanaco.engine.base import Engine, Generation
from dbgpt_guanaco.errors import GuanacoError, OutOfMemoryError
from dbgpt_guanaco.server import bodies, errors, frames
from dbgpt_guanaco.server.dependencies import EngineDep, SaltDep, SettingsDep
from dbgpt_guanaco.server.pacing import paced
from dbgpt_guanaco.server.responses import CLIENT_LEFT, FrameStream, unless_client_leaves
from dbgpt_guanaco.server.worker_models import find_llm
from dbgpt_guanaco.server.worker_requests import AnswerRequest
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import TextDelta

# The clients up to v0.4.5 cut a prompt off the front of a text unless they are told otherwise.
MODEL_CONTEXT = {"prompt_echo_len_char": 0, "echo": False}
EMPTY_ANSWER = "(the model gave an empty answer)"

logger = logging.getLogger(__name__)


class AnswerRoute(APIRoute):
    """Answers every failure as a frame with a status of 200, a failure of ours too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=CLIENT_LEFT)
            except Exception as error:
                return refusal(request, error)

        return handle


router = APIRouter(route_class=AnswerRoute)


@router.post("/generate_stream")
async def generate_stream(
    request: Request, engine: EngineDep, settings: SettingsDep, salt: SaltDep
) -> Response:
    """Stream an answer as NUL-ended frames of whole texts."""
    body = await bodies.read(request, AnswerRequest)
    generation = await _submit(body, engine, settings, salt)
    return FrameStream(answer_frames(generation, settings, with_usage=body.wants_usage), generation)


@router.post("/generate")
async def generate(
    request: Request, engine: EngineDep, settings: SettingsDep, salt: SaltDep
) -> Response:
    """Answer whole, as one object with a frame's keys."""
    body = await bodies.read(request, AnswerRequest)
    generation = await _submit(body, engine, settings, salt)

    async def whole() -> Response:
        text = ""
        async for delta in generation:
            text += delta.text
        return JSONResponse(_last_frame(text, delta, with_usage=body.wants_usage))

    try:
        return await unless_client_leaves(request, whole())
    finally:
        generation.cancel()


async def answer_frames(
    generation: Generation, settings: ServerSettings, *, with_usage: bool
) -> AsyncIterator[bytes]:
    """Write a generation as frames of the whole text so far; break silence by a lone NUL.

    What goes wrong is the last frame, after the text so far.

    Args:
        generation: What is written.
        settings: How often frames and signs of life are sent.
        with_usage: The client can read token counts and a finish reason.
    """
    whole, shown = "", ""
    try:
        async with aclosing(paced(generation, settings)) as deltas:
            async for delta in deltas:
                if delta is None:
                    yield frames.KEEP_ALIVE
                    continue
                whole += delta.text
                if delta.is_last:
                    yield frames.nul_frame(_last_frame(whole, delta, with_usage=with_usage))
                elif whole != shown:
                    shown = whole
                    yield frames.nul_frame(_frame(whole))
    except Exception as error:
        told = _told(error)
        yield frames.nul_frame(_frame(f"{whole}\n{told}" if whole else told, code=1))


def _frame(text: str, code: int = 0) -> dict[str, Any]:
    return {"text": text, "error_code": code, "model_context": MODEL_CONTEXT}


def _last_frame(text: str, last: TextDelta, *, with_usage: bool) -> dict[str, Any]:
    """Return the frame of a whole answer.

    DB-GPT takes a blank answer for none and then fails on its own. The clients up to v0.4.0
    fail on a key that they do not know; none of them sends a context.
    """
    frame = _frame(text if text.strip() else EMPTY_ANSWER)
    if not with_usage:
        return frame
    usage = frames.usage_object(last.usage)
    return frame | {"finish_reason": last.finish_reason, "usage": usage}


def refusal(request: Request, error: Exception, status: int = 200) -> Response:
    """Return a failure as a frame; clients look at no status."""
    frame = _frame(_told(error), code=1)
    parameter = getattr(error, "parameter", None)
    errors.log_refusal(request, status, type(error).__name__, parameter)
    headers = errors.headers_of(error) if status >= 400 else {}
    if request.url.path.endswith("/generate"):
        return JSONResponse(frame, status, headers)
    return Response(frames.nul_frame(frame), status, headers)


def _told(error: Exception) -> str:
    """Return what DB-GPT's user reads; a bug is told to the log instead."""
    if isinstance(error, OutOfMemoryError):
        return "**GPU OutOfMemory, Please Refresh.**"
    if isinstance(error, GuanacoError):
        text = str(error)
    elif isinstance(error, HTTPException):
        text = str(error.detail)
    else:
        logger.error("an answer failed", exc_info=error)
        text = "internal error; the server's log says more"
    # A client's own words may be in it.
    text = text[: errors.MAX_MESSAGE_CHARACTERS]
    return f"**LLMServer Generate Error, Please CheckErrorInfo.**: {text}"


async def _submit(
    body: AnswerRequest, engine: Engine, settings: ServerSettings, salt: str
) -> Generation:
    model = find_llm(engine, body.model)
    request = await asyncio.to_thread(
        body.to_generation_request, model.template, settings, f"worker-{uuid.uuid4().hex}"
    )
    return await engine.submit(model.of(request, salt))
