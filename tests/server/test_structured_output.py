"""Forms of answers: from the body of a request to what an engine is asked for, and back."""

import json
from typing import Any

import httpx
import pytest
from fakes import ScriptedEngine

from dbgpt_guanaco.types import Structure

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}
TEXT = json.dumps(SCHEMA)
FORMS: list[tuple[dict[str, Any], Structure | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_json": None, "structured_outputs": None}, None),
    (
        {"response_format": {"type": "json_object"}},
        Structure("json_object", "", "response_format"),
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        Structure("json_schema", TEXT, "response_format"),
    ),
    ({"guided_json": SCHEMA}, Structure("json_schema", TEXT, "guided_json")),
    ({"guided_json": TEXT}, Structure("json_schema", TEXT, "guided_json")),
    ({"guided_regex": "[a-z]+"}, Structure("regex", "[a-z]+", "guided_regex")),
    ({"guided_choice": ["a", "b"]}, Structure("choice", '["a", "b"]', "guided_choice")),
    ({"guided_grammar": 'start: "a"'}, Structure("grammar", 'start: "a"', "guided_grammar")),
    (
        {"structured_outputs": {"json": SCHEMA}},
        Structure("json_schema", TEXT, "structured_outputs"),
    ),
    ({"structured_outputs": {"regex": "a"}}, Structure("regex", "a", "structured_outputs")),
    (
        {"structured_outputs": {"choice": ["a"]}},
        Structure("choice", '["a"]', "structured_outputs"),
    ),
    ({"structured_outputs": {"grammar": "g"}}, Structure("grammar", "g", "structured_outputs")),
    (
        {"structured_outputs": {"json_object": True}},
        Structure("json_object", "", "structured_outputs"),
    ),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("form", "expected"), FORMS)
async def test_a_form_reaches_the_engine(
    connect: Any, path: str, form: dict[str, Any], expected: Structure | None
) -> None:
    engine = ScriptedEngine("a")

    response = await connect(engine).post(path, json=BODIES[path] | form)

    assert response.status_code == 200, response.text
    assert [request.sampling.structure for request in engine.requests] == [expected]


def whole(path: str, response: httpx.Response) -> str:
    choice = response.json()["choices"][0]
    return str(choice["message"]["content"] if path == CHAT else choice["text"])


@pytest.mark.parametrize("path", BODIES)
async def test_answers_have_their_form(connect: Any, demo_engine: Any, path: str) -> None:
    client = connect(demo_engine)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    body = BODIES[path] | {"temperature": 0, "max_tokens": 120, "guided_json": schema}

    found = json.loads(whole(path, await client.post(path, json=body)))

    assert set(found) == {"city", "big"}
    assert isinstance(found["city"], str)
    assert isinstance(found["big"], bool)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("form", "parameter"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "strong"}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "start: b"}, "guided_grammar"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}},
                }
            },
            "response_format",
        ),
    ],
)
async def test_a_form_that_cannot_be_is_a_400_that_names_it(
    connect: Any, demo_engine: Any, form: dict[str, Any], parameter: str, is_streamed: bool
) -> None:
    body = BODIES[CHAT] | form | {"stream": is_streamed}

    response = await connect(demo_engine).post(CHAT, json=body)

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == parameter
    assert len(error["message"]) < 1000
