"""Errors → HTTP status and OpenAI's error object."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from dbgpt_guanaco import errors
from dbgpt_guanaco.server.exchange import HEADER, KEY, shown_path

logger = logging.getLogger(__name__)

STATUS: dict[type[errors.GuanacoError], int] = {
    errors.InvalidRequestError: 400,
    errors.AccessDeniedError: 401,
    errors.ForeignPageError: 403,
    errors.QuotaExceededError: 429,
    errors.UnknownModelError: 404,
    errors.NoEmbedderError: 404,
    errors.EngineBusyError: 429,
    errors.EngineStartingError: 503,
    errors.EngineStoppedError: 503,
    errors.OutOfMemoryError: 503,
}
# What pydantic puts into a location for a branch that it tried.
UNION_BRANCHES = frozenset({"str", "int"})
MAX_MESSAGE_CHARACTERS = 2000
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
# In seconds: a full queue empties soon; a model is there, or a server is back, a little later.
RETRY_AFTER_S: dict[type[errors.GuanacoError], int] = {
    errors.EngineBusyError: 1,
    errors.EngineStartingError: 5,
    errors.EngineStoppedError: 5,
}
CODE: dict[type[errors.GuanacoError], str] = {
    errors.UnknownModelError: "model_not_found",
    errors.NoEmbedderError: "model_not_found",
    errors.QuotaExceededError: "rate_limit_exceeded",
    errors.PromptTooLongError: "context_length_exceeded",
}


def status_of(error: errors.GuanacoError | HTTPException) -> int:
    """Return the status of the error's nearest listed class, else 500."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((STATUS[c] for c in type(error).__mro__ if c in STATUS), 500)


def headers_of(error: Exception) -> dict[str, str]:
    """Tell clients whether to try again, when, and how. What failed here would fail again."""
    if isinstance(error, errors.AccessDeniedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.QuotaExceededError):
        return {"Retry-After": str(error.retry_after_s)}
    waits = (RETRY_AFTER_S[c] for c in type(error).__mro__ if c in RETRY_AFTER_S)
    if wait_s := next(waits, None):
        return {"Retry-After": str(wait_s)}
    is_refusal = isinstance(error, HTTPException) and error.status_code < 500
    if is_refusal or (isinstance(error, errors.GuanacoError) and status_of(error) < 500):
        return {}
    return {"x-should-retry": "false"}


def as_body(error: errors.GuanacoError | HTTPException) -> dict[str, Any]:
    """Return OpenAI's error object."""
    if isinstance(error, HTTPException):
        return error_body(str(error.detail), error.status_code)
    code = next((CODE[c] for c in type(error).__mro__ if c in CODE), None)
    parameter = getattr(error, "parameter", None) or None
    return error_body(str(error), status_of(error), parameter=parameter, code=code)


def error_body(
    message: str, status: int, *, parameter: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object for any status."""
    kind = {429: "rate_limit_error"}.get(status) or (
        "invalid_request_error" if status < 500 else "server_error"
    )
    told = _readable(message)
    named = _readable(parameter) if parameter else None
    return {"error": {"message": told, "type": kind, "param": named, "code": code}}


def log_refusal(request: Request, status: int, kind: str, parameter: str | None = None) -> None:
    """Say why, for an operator whose client hides it. The value is the client's, so not it.

    A field that does not look like the name of one may be a text in a wrong place.
    """
    named = f" ({parameter!r})" if parameter and FIELD.fullmatch(parameter) else ""
    exchange = request.scope[KEY]
    exchange.problem = kind
    logger.info(
        "%s answered %d: %s%s",
        shown_path(request.url.path),
        status,
        kind,
        named,
        extra={"fields": {"request_id": exchange.request_id}},
    )


def _readable(text: str) -> str:
    """Return what UTF-8 can write, cut to a readable length: a client's own words may be in it."""
    return text[:MAX_MESSAGE_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def explain_validation(problems: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return what is wrong with a body, and the field's name. Values are not repeated.

    Args:
        problems: What pydantic's ``errors()`` lists.
    """
    if problems and problems[0]["type"] == "json_invalid":
        return f"the body is not JSON: {problems[0].get('ctx', {}).get('error', '')}", None
    if problems and tuple(problems[0]["loc"]) in (("body",), ()):
        kind = problems[0]["type"]
        if kind in ("missing", "model_attributes_type", "model_type", "dict_type"):
            return "the body must be a JSON object, sent with Content-Type: application/json", None
    # A union reports each branch; the field and the first complaint are enough for a person.
    first: dict[str, str] = {}
    for problem in problems:
        place = _place(problem["loc"])
        is_unknown = problem["type"] == "extra_forbidden"
        told = "is not a field of this request" if is_unknown else problem["msg"]
        text = told.removeprefix("Value error, ")
        first.setdefault(re.split(r"[.[]", place)[0], f"{place}: {text}" if place else text)
    return "; ".join(first.values()), next(iter(first), None) or None


def _place(location: Sequence[str | int]) -> str:
    """Write where in a body something stands: ``messages[0].role``."""
    written = ""
    for part in location:
        if isinstance(part, int):
            written += f"[{part}]"
        elif part not in ("body", "query") and "[" not in part and part not in UNION_BRANCHES:
            written += f".{part}" if written else part
    return written


# The framework gives each handler errors of its own kind, and types them all as exceptions.


async def on_guanaco_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a deliberate error."""
    error = cast(errors.GuanacoError, error)
    status = status_of(error)
    log_refusal(request, status, type(error).__name__, getattr(error, "parameter", None))
    return JSONResponse(as_body(error), status, headers_of(error))


async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not what the route takes."""
    message, parameter = explain_validation(cast(RequestValidationError, error).errors())
    log_refusal(request, 400, "invalid body", parameter)
    return JSONResponse(error_body(message, 400, parameter=parameter), 400)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unknown path, a wrong method, a body that is too large."""
    error = cast(HTTPException, error)
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {request.url.path}; /openapi.json lists the paths"
        if not request.url.path.startswith(("/v1", "/api")):
            message += ", OpenAI's stand under /v1"
    return JSONResponse(error_body(message, error.status_code), error.status_code, error.headers)


async def on_any_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a bug without telling its text; the server's log has the trace."""
    # This response is written outside of all middleware, so its name is given here.
    headers = headers_of(error) | {HEADER: request.scope[KEY].request_id}
    return JSONResponse(error_body(f"internal error ({type(error).__name__})", 500), 500, headers)
