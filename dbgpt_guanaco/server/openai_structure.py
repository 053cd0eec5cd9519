"""Fields of the OpenAI dialect that hold an answer to a form: OpenAI's own, and vLLM's."""

import json
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server.fields import Anything, FewFields, Note
from dbgpt_guanaco.types import Structure, StructureKind

# What is allowed is less, and said by the engine.
StructureText = Annotated[str, Field(max_length=2**20)]
Choices = Annotated[list[StructureText], Field(max_length=10_000, fail_fast=True)]


class Body(FewFields):
    """A JSON object of which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextFormat(Body):
    """No form at all."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A schema as OpenAI wraps it; it is always followed, ``strict`` or not."""

    name: Note | None = None
    description: StructureText | None = None
    form: Anything | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
Schema = Anything | StructureText


class StructuredOutputs(Body):
    """vLLM's newer name for ``guided_*``."""

    schema_or_text: Schema | None = Field(default=None, alias="json")
    regex: StructureText | None = None
    choice: Choices | None = None
    grammar: StructureText | None = None
    json_object: bool | None = None


class StructureFields(Body):
    """What a body may say about the form of its answers; one of these at most."""

    response_format: ResponseFormat | None = None
    guided_json: Schema | None = None
    guided_regex: StructureText | None = None
    guided_choice: Choices | None = None
    guided_grammar: StructureText | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def structure(self) -> Structure | None:
        """The form that is asked for.

        Raises:
            InvalidRequestError: There are several, or none where one was announced.
        """
        wanted = [
            *self._format(),
            *_given("guided_json", "json_schema", self.guided_json),
            *_given("guided_regex", "regex", self.guided_regex),
            *_given("guided_choice", "choice", self.guided_choice),
            *_given("guided_grammar", "grammar", self.guided_grammar),
            *self._outputs(),
        ]
        if len(wanted) > 1:
            fields = " and ".join(dict.fromkeys(structure.parameter for structure in wanted))
            raise InvalidRequestError(
                wanted[-1].parameter, f"an answer has one form, but {fields} ask for several"
            )
        return wanted[0] if wanted else None

    def _format(self) -> list[Structure]:
        match self.response_format:
            case JsonObjectFormat():
                return [Structure("json_object", "", "response_format")]
            case JsonSchemaFormat(json_schema=JsonSchema(form=None)):
                raise InvalidRequestError("response_format", "json_schema needs a schema")
            case JsonSchemaFormat(json_schema=JsonSchema(form=form)):
                return _given("response_format", "json_schema", form)
            case _:
                return []

    def _outputs(self) -> list[Structure]:
        name, outputs = "structured_outputs", self.structured_outputs
        if outputs is None:
            return []
        found = [
            *_given(name, "json_schema", outputs.schema_or_text),
            *_given(name, "regex", outputs.regex),
            *_given(name, "choice", outputs.choice),
            *_given(name, "grammar", outputs.grammar),
            *([Structure("json_object", "", name)] if outputs.json_object else []),
        ]
        if not found:
            raise InvalidRequestError(name, "names no form")
        return found


def _given(parameter: str, kind: StructureKind, value: object) -> list[Structure]:
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value)
    return [Structure(kind, text, parameter)]
