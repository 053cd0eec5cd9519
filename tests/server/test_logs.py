import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes import ScriptedEngine
from rich.console import Console

from dbgpt_guanaco.server.exchange_log import is_routine
from dbgpt_guanaco.server.logs import JsonLines, TextLines, set_up_logging

CLASHES = "half a \ud800 pair, a line\nbreak"


@pytest.mark.parametrize(
    ("path", "status", "is_told"),
    [
        ("/health", 200, False),
        ("/ready", 503, False),
        ("/metrics", 200, False),
        ("/api/health", 200, False),
        ("/api/controller/heartbeat", 200, False),
        ("/api/controller/models", 403, False),
        ("/api/controller/models", 503, True),
        ("/v1/chat/completions", 200, True),
        ("/api/worker/generate_stream", 200, True),
    ],
)
def test_what_is_asked_all_the_time_is_logged_only_when_it_fails(
    path: str, status: int, is_told: bool
) -> None:
    assert is_routine(path, status) is not is_told


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, "", 0, message, None, None)
    made.fields = fields
    return made


def test_a_json_line_is_one_line_with_its_fields() -> None:
    line = JsonLines().format(record(CLASHES, request_id="r1", total_s=0.5))

    assert line.isascii()
    assert "\n" not in line
    read = json.loads(line)
    assert read.pop("time").endswith("+00:00")
    assert read == {
        "level": "warning", "logger": "a.logger", "message": CLASHES, "request_id": "r1",
        "total_s": 0.5,
    }  # fmt: skip


def test_a_json_line_holds_a_trace() -> None:
    failed = record("it failed")
    try:
        int("why")
    except ValueError:
        failed.exc_info = sys.exc_info()

    assert "ValueError: invalid literal" in json.loads(JsonLines().format(failed))["exception"]


def test_a_text_line_shows_its_fields_behind_the_message() -> None:
    assert TextLines().format(record("done", request_id="r1", n=2)) == "done request_id=r1 n=2"


def test_every_line_of_a_json_log_is_an_object(
    bare_logging: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bare_logging()
    set_up_logging("info", Console(file=io.StringIO()), "json")

    logging.getLogger("some.library").info("one %s", "thing")
    logging.getLogger("some.library").debug("nothing")

    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["one thing"]


def test_a_log_file_has_one_line_for_each_record(bare_logging: Callable[[], None]) -> None:
    bare_logging()
    file = io.StringIO()
    set_up_logging("info", Console(file=file, width=40))

    logging.getLogger("a.logger").info("word " * 50, extra={"fields": {"status": 429}})

    (line,) = file.getvalue().splitlines()
    assert line.endswith("status=429")
    assert " INFO " in line


def test_a_text_log_goes_to_the_console(bare_logging: Callable[[], None]) -> None:
    bare_logging()
    written = io.StringIO()
    set_up_logging("info", Console(file=written, width=80))

    logging.getLogger("some.library").info("one", extra={"fields": {"n": 2}})

    assert "one n=2" in written.getvalue()


@pytest.mark.parametrize("path", ["/%1b%5b2J", "/" + "a" * 5000])
async def test_a_path_cannot_write_on_the_operators_terminal(
    path: str, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    await connect(ScriptedEngine()).post(path, json={})

    assert "\x1b" not in caplog.text
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("dbgpt_guanaco")]
    assert 0 < max(map(len, ours)) < 300
