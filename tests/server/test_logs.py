import logging

import pytest

from dbgpt_guanaco.server.logs import is_worth_a_line


@pytest.mark.parametrize(
    ("path", "status", "is_logged"),
    [
        ("/health", 200, False),
        ("/ready", 503, True),
        ("/api/health", 200, False),
        ("/api/controller/heartbeat", 200, False),
        ("/api/controller/models?model_name=x", 200, False),
        ("/api/controller/models", 403, False),
        ("/api/controller/models", 503, True),
        ("/v1/chat/completions", 200, True),
        ("/api/worker/generate_stream", 200, True),
    ],
)
def test_what_is_asked_all_the_time_is_logged_only_when_it_fails(
    path: str, status: int, is_logged: bool
) -> None:
    arguments = ("127.0.0.1:1", "GET", path, "1.1", status)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "%s", arguments, None)
    assert is_worth_a_line(record) is is_logged
