"""Fields of request bodies, each with a ceiling.

The ceilings stop what no client means, before it costs anything; what a model, an engine or a
setting allows is less and is checked where that is known. A test walks all bodies and refuses a
number, text or list that has none.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from dbgpt_guanaco.types import (
    MAX_BIASES,
    MAX_SEED,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_LOGPROBS,
)

MAX_FIELDS = 64
MAX_CHARACTERS = 2**24
MAX_MESSAGES = 4096
MAX_TOKENS = 2**31 - 1
# More than any model's context; a list of so many is read in some milliseconds.
MAX_TOKEN_IDS = 2**17
MAX_EMBEDDED_TEXTS = 2048  # as OpenAI's own, which some clients fill to the brim

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Name = Annotated[str, Field(max_length=1000)]
# The caller's own remarks, which have no effect on an answer.
Note = Annotated[str, Field(max_length=1024)]
Host = Annotated[str, Field(max_length=64)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TopK = Annotated[int, Field(ge=-1, le=MAX_TOKENS)]
Seed = Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
# A list ends with its first wrong item, else a complaint about each of a million would be written.
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)]
StopStrings = Annotated[
    list[Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]],
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
]
EmbeddedTexts = Annotated[list[Text], Field(max_length=MAX_EMBEDDED_TEXTS, fail_fast=True)]
LogitBias = Annotated[
    dict[Annotated[str, Field(max_length=20)], float], Field(max_length=MAX_BIASES)
]
# Of a schema or another object that is read by somebody else.
Anything = Annotated[dict[Annotated[str, Field(max_length=1000)], Any], Field(max_length=1000)]


class FewFields(BaseModel):
    """A JSON object that is refused at once when it has far more fields than any of ours."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"{len(value)} fields are more than the {MAX_FIELDS} allowed")
        return value
