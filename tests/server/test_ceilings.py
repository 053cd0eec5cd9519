"""Everything that a request can hold has a ceiling: each number, text, list and object."""

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import ScriptedEmbedder, ScriptedEngine
from pydantic import BaseModel, ValidationError

from dbgpt_guanaco.server import openai_embeddings, worker_requests
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.llmserver_requests import EmbeddingRequest, LegacyRequest
from dbgpt_guanaco.server.openai_requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
)
from dbgpt_guanaco.server.openai_structure import StructuredOutputs
from dbgpt_guanaco.server.worker_requests import AnswerRequest

# What a route reads for itself stands in no list of the framework's.
READ_BY_ROUTES: tuple[type[BaseModel], ...] = (LegacyRequest, EmbeddingRequest, AnswerRequest)
NEEDED = {
    "integer": ("minimum", "maximum"),
    "string": ("maxLength",),
    "array": ("maxItems",),
}


def open_ends(schema: Any, place: str) -> Iterator[str]:
    """Yield where in a JSON schema something has no ceiling."""
    if isinstance(schema, list):
        for index, each in enumerate(schema):
            yield from open_ends(each, f"{place}[{index}]")
    if not isinstance(schema, dict):
        return
    kind = str(schema.get("type"))  # a field may be called type, too
    is_fixed = "enum" in schema or "const" in schema
    if kind in NEEDED and not is_fixed and not all(key in schema for key in NEEDED[kind]):
        yield place
    is_mapping = bool(schema.get("additionalProperties")) and "properties" not in schema
    if kind == "object" and is_mapping and "maxProperties" not in schema:
        yield place
    for key, value in schema.items():
        if key not in ("default", "enum", "const", "examples"):
            yield from open_ends(value, f"{place}.{key}")


def test_every_field_that_a_route_takes_has_a_ceiling() -> None:
    described = create_app(ScriptedEngine(), embedder=ScriptedEmbedder()).openapi()
    found: list[str] = []
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            # Paths and headers are no longer than a request's head may be.
            asked = [p["schema"] for p in route.get("parameters", ()) if p["in"] == "query"]
            found += open_ends([asked, route.get("requestBody")], f"{method} {path}")
    bodies = {
        name: schema
        for name, schema in described["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")  # which are answers
    }
    assert {"ChatCompletionRequest", "InstanceBody", "ApplyRequest"} < set(bodies)
    assert found + list(open_ends(bodies, "")) == []


@pytest.mark.parametrize("model", READ_BY_ROUTES)
def test_every_field_that_a_route_reads_has_a_ceiling(model: type[BaseModel]) -> None:
    assert list(open_ends(model.model_json_schema(), model.__name__)) == []


def test_the_walk_sees_what_has_none() -> None:
    class Open(BaseModel):
        number: int
        text: str | None
        items: list[bool]
        nested: dict[str, bool]

    assert len(list(open_ends(Open.model_json_schema(), ""))) == 4


def lists_in(model: type[BaseModel]) -> list[str]:
    return [
        name
        for name, field in model.model_json_schema()["properties"].items()
        if any(each.get("type") == "array" for each in [field, *field.get("anyOf", ())])
    ]


LISTS = [
    (model, name)
    for model in (
        ChatCompletionRequest,
        CompletionRequest,
        DetokenizeRequest,
        openai_embeddings.EmbeddingsRequest,
        StructuredOutputs,
        LegacyRequest,
        AnswerRequest,
        worker_requests.EmbeddingsRequest,
    )
    for name in lists_in(model)
]


@pytest.mark.parametrize("wrong", [None, -1, {}, [], [[]]])
@pytest.mark.parametrize(("model", "name"), LISTS)
def test_a_list_of_wrong_items_ends_with_the_first(
    model: type[BaseModel], name: str, wrong: Any
) -> None:
    needed = {"messages": [], "prompt": "", "model": "", "input": [], "tokens": []}
    given = {key: needed[key] for key in needed if key in model.model_fields}
    with pytest.raises(ValidationError) as refused:
        model.model_validate(given | {name: [wrong] * 1000})

    assert refused.value.error_count() < 10


def test_every_body_is_read_aside() -> None:
    def routes(holder: Any) -> Iterator[Any]:
        for route in getattr(holder, "routes", ()):
            yield from routes(getattr(route, "original_router", None))
            yield route

    taking = [r for r in routes(create_app(ScriptedEngine())) if getattr(r, "body_field", None)]

    assert len(taking) >= 10
    assert all(isinstance(route, JsonRoute) for route in taking)
