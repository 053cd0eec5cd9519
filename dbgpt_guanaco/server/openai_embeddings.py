"""``POST /v1/embeddings``: its body, and the object it is answered with."""

import base64
import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from dbgpt_guanaco.errors import InvalidRequestError, UnknownModelError
from dbgpt_guanaco.server import frames
from dbgpt_guanaco.server.fields import Count, EmbeddedTexts, FewFields, Name, Note
from dbgpt_guanaco.types import EmbeddingCard, Embeddings


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int | list):
        raise ValueError(  # noqa: TRY004 - pydantic hears only this one
            "send text: token ids are those of another model's tokenizer"
        )
    return value


class EmbeddingsRequest(FewFields):
    """``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: Name | None = None
    input: Annotated[EmbeddedTexts, BeforeValidator(_listed), Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: Note | None = None  # the caller's own note

    def check(self, card: EmbeddingCard) -> None:
        """See that the loaded model can do what is asked.

        Raises:
            UnknownModelError: Another model is asked for.
            InvalidRequestError: Vectors of another size are asked for.
        """
        if self.model not in (None, card.name):
            raise UnknownModelError(str(self.model), known=[card.name])
        if self.dimensions not in (None, card.dimension):
            raise InvalidRequestError("dimensions", f"{card.name} has {card.dimension}")


async def respond(embeddings: Embeddings, model: str, *, as_base64: bool) -> Response:
    """Write vectors as OpenAI does: numbers, or base64 of little-endian 32-bit floats."""
    rows = (
        {
            "object": "embedding",
            "index": i,
            "embedding": _base64(vector) if as_base64 else list(vector),
        }
        for i, vector in enumerate(embeddings.vectors)
    )
    rest = {
        "object": "list",
        "model": model,
        "usage": {
            "prompt_tokens": embeddings.prompt_tokens,
            "total_tokens": embeddings.prompt_tokens,
        },
    }
    data = await frames.json_rows(rows)
    body = json.dumps(rest).removesuffix("}").encode() + b', "data": ' + data + b"}"
    return Response(body, media_type="application/json")


def model_object(card: EmbeddingCard) -> dict[str, Any]:
    """Describe the embedding model in the list of models."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "dbgpt_guanaco",
        "root": card.name,
        "parent": None,
        "kind": "embedding",
        "max_model_len": card.max_tokens,
        "dimension": card.dimension,
        "is_normalized": card.is_normalized,
    }


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
