"""What is refused before a route has seen it, in the form of the dialect that was spoken."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.server import errors, llmserver, worker_answers

# DB-GPT shows its user what stands in a frame, and stumbles over anything else.
LLMSERVER = ("/generate_stream", "/generate", "/embedding")
WORKER = ("/api/worker/generate_stream", "/api/worker/generate")


def refusal(request: Request, error: GuanacoError | HTTPException) -> Response:
    """Return a refusal that the client can read, under its true status."""
    path, status = request.scope["path"], errors.status_of(error)
    if path in LLMSERVER:
        return llmserver.refusal(request, error)
    if path in WORKER:  # there a body that is refused is a failed answer like any other
        is_answer = isinstance(error, HTTPException)
        return worker_answers.refusal(request, error, 200 if is_answer else status)
    errors.log_refusal(request, status, type(error).__name__)
    return JSONResponse(errors.as_body(error), status, errors.headers_of(error))
