"""JSON bodies → Python, without keeping anybody waiting.

A parser cannot be interrupted: while it reads, not even another thread runs. Four megabytes of
brackets keep it busy for seconds, four megabytes of text for one millisecond. So the brackets,
strings and commas are counted first, and too many are refused.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server import errors

# Room for 4096 messages, or for 131,072 token ids. Each takes the parser some 10 ms.
MOST = {b'"': 2**16, b"[": 2**14, b"{": 2**14, b",": 2**17 + 2**14}
# Smaller ones are read in less time than another thread needs to begin.
SMALL_BYTES = 16_384
PIECE_BYTES = 2**18

Kind = TypeVar("Kind", bound=BaseModel)
Result = TypeVar("Result")


class JsonRoute(APIRoute):
    """A route whose body is read here and not by the framework."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401  # as starlette's
        """Return the body.

        Raises:
            HTTPException: It has too many parts.
            json.JSONDecodeError: It is not JSON, in the words that the framework reads.
        """
        body = await self.body()
        try:
            return await aside(len(body), lambda: from_json(checked(body)))
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


async def read(request: Request, kind: type[Kind]) -> Kind:
    """Read a body whatever its content type says.

    Raises:
        HTTPException: It has too many parts.
        InvalidRequestError: It is not JSON, or a field has a wrong type.
    """
    body = await request.body()
    try:
        return await aside(len(body), lambda: kind.model_validate_json(checked(body)))
    except ValidationError as error:
        message, _ = errors.explain_validation(error.errors())
        raise InvalidRequestError("", message) from None


async def aside(size: int, work: Callable[[], Result]) -> Result:
    """Do work beside the event loop, if its size makes that worth while."""
    return work() if size <= SMALL_BYTES else await asyncio.to_thread(work)


def checked(body: bytes) -> bytes:
    """Return a body that a parser can read in some milliseconds.

    Raises:
        HTTPException: It has too many parts.
    """
    if _is_simple(body) or _is_simple(outside_texts(body)):
        return body
    raise HTTPException(400, "the body has too many parts: more than any request here needs")


def outside_texts(body: bytes) -> bytes:
    """Return a body without what stands in its texts; all of it, if it has too many of them."""
    plain = b"".join(_without_escapes(body))
    if plain.count(b'"') > MOST[b'"']:
        return plain
    pieces = plain.split(b'"')
    return b'"'.join(pieces[::2]) + b'"' * (len(pieces) // 2)


def _is_simple(text: bytes) -> bool:
    return all(text.count(sign) <= most for sign, most in MOST.items())


def _without_escapes(body: bytes) -> Iterator[bytes]:
    """Yield a body without escaped quotes, so that all its quotes begin or end a string.

    In pieces, between which others may run. None ends within an escape.
    """
    place = 0
    while place < len(body):
        piece = body[place : place + PIECE_BYTES]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2:
            piece += body[place + len(piece) : place + len(piece) + 1]
        place += len(piece)
        yield piece.replace(b"\\\\", b"").replace(b'\\"', b"")
