"""Requests that our own OpenAPI document allows, and ones that it forbids: nothing breaks.

schemathesis makes them; the document is the server's.
"""

from typing import Any

import pytest
import schemathesis
from fakes import ScriptedEngine
from hypothesis import given
from schemathesis import GenerationMode

from dbgpt_guanaco.server.app import create_app
from fuzzing.checks import ADMIN_KEY, REQUESTS, Target, examples

SCHEMA = schemathesis.openapi.from_dict(create_app(ScriptedEngine()).openapi())
OPERATIONS: dict[str, Any] = {
    result.ok().label: result.ok()  # type: ignore[union-attr] # a wrong document must raise
    for result in SCHEMA.get_all_operations()
}
CASES = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    # Where there is neither a body nor a query, nothing can be wrong.
    if mode is GenerationMode.POSITIVE or operation.body or operation.query
]
# Those without anything to vary are asked a few times only.
EACH = REQUESTS // 2 // sum(1 for label, _ in CASES if OPERATIONS[label].body)


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_no_request_breaks_the_server(target: Target, label: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[label]

    @examples(EACH)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        # A key that may do everything: what is fuzzed stands behind the door.
        response = case.call(
            base_url=target.stage.address, headers={"Authorization": f"Bearer {ADMIN_KEY}"}
        )
        headers = {name: values[0] for name, values in response.headers.items()}
        target.judge(
            operation.path, response.status_code, headers, response.content, response.elapsed
        )

    ask()


def test_the_document_names_every_dialect() -> None:
    paths = {label.partition(" ")[2] for label in OPERATIONS}

    assert {"/v1/chat/completions", "/generate_stream", "/api/worker/generate_stream"} <= paths
