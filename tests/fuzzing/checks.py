"""What must hold of every response, whatever was sent."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
from faults.stage import Stage
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# Of all fuzzing tests together. The same ones each time, unless somebody says how many.
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "5000"))
IS_LONG = "FUZZ_REQUESTS" in os.environ
KEY, ADMIN_KEY = "fuzzing-client-0123456789", "fuzzing-admin-0123456789"
# What this server says when the fault is its own: some dialects say it with a status of 200.
OUR_FAULT = re.compile(
    rb"Traceback|internal error|the model failed|the engine|no memory left|server_error"
)
# Nothing that is asked here takes half a second of work; the rest is for a busy machine.
PATIENCE_S = 20.0
# What a server says that means well but cannot: nothing that is sent here may get one of those.
FAILURE = 500


def examples(count: int) -> hypothesis_settings:
    """Say how often a test is to be tried."""
    return hypothesis_settings(
        max_examples=count,
        derandomize=not IS_LONG,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


class Target:
    """A server that is asked odd things, and what it said so far.

    Attributes:
        statuses: How often each came, by path.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.statuses: Counter[tuple[str, int]] = Counter()

    def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes = b"",
        headers: Mapping[str, bytes] | None = None,
    ) -> httpx.Response:
        """Send one request, and check what comes."""
        began_s = time.monotonic()
        named = [(name.encode(), value) for name, value in (headers or {}).items()]
        request = self.stage.client.build_request(method, path, content=content, headers=named)
        response = self.stage.client.send(request)
        self.judge(path.partition("?")[0], response.status_code, dict(response.headers),
                   response.content, time.monotonic() - began_s)  # fmt: skip
        return response

    def judge(
        self, path: str, status: int, headers: Mapping[str, str], body: bytes, took_s: float
    ) -> None:
        """Check a response: no failure, no hang, a form that its client can read."""
        self.statuses[path, status] += 1
        assert status < FAILURE, (status, body[:500])
        assert took_s < PATIENCE_S
        assert not OUR_FAULT.search(body), body[-500:]
        kind = {name.lower(): value for name, value in headers.items()}.get("content-type", "")
        if body and kind.startswith("application/json"):
            loads(body)
        elif kind.startswith("text/event-stream"):
            check_events(body.decode())

    def answers_as_ever(self) -> bool:
        """Say whether a plain question still has its answer."""
        body = json.dumps({"prompt": "Hi", "max_tokens": 2}).encode()
        asked = {"Authorization": f"Bearer {KEY}".encode(), "Content-Type": b"application/json"}
        return self.send("POST", "/v1/completions", content=body, headers=asked).status_code == 200

    @property
    def summary(self) -> str:
        """How many requests there were, and what was answered."""
        by_status: Counter[int] = Counter()
        for (_, status), count in self.statuses.items():
            by_status[status] += count
        told = ", ".join(f"{count} × {status}" for status, count in sorted(by_status.items()))
        return f"{self.statuses.total()} requests: {told}"


def check_events(text: str) -> None:
    """A stream ends by saying so, and all in it is JSON; the 2023 dialect's frames end in NUL."""
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert events, text[:500]
    assert events[-1] == "[DONE]" or "error" in loads(events[-1])
    for event in events[:-1]:
        loads(event)


def loads(text: bytes | str) -> Any:
    """Parse JSON as the standard has it: without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)
