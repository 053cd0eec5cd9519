"""Objects → bytes: server-sent events, and the NUL-ended JSON of a 2023 DB-GPT."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sse_starlette import ServerSentEvent

from dbgpt_guanaco.types import Usage

KEEP_ALIVE = b"\0"
DONE = ServerSentEvent("[DONE]", sep="\n")


def event(value: Mapping[str, Any]) -> ServerSentEvent:
    """Return one event: ``data: `` and JSON on a single line.

    Nothing else: a 2023 DB-GPT cannot read comments, names or ids in a stream.
    """
    return ServerSentEvent(_json(value), sep="\n")


def nul_frame(value: Mapping[str, Any]) -> bytes:
    """Return one frame. The NUL ends each frame, the last one too."""
    return _json(value).encode() + b"\0"


async def json_rows(rows: Iterable[Any]) -> bytes:
    """Return a JSON list. Others run between its rows: a thousand vectors take half a second."""
    written = []
    for row in rows:
        written.append(json.dumps(row, separators=(",", ":")))
        await asyncio.sleep(0)
    return f"[{','.join(written)}]".encode()


def usage_object(usage: Usage) -> dict[str, int]:
    """Return token counts under OpenAI's names, which DB-GPT uses too."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _json(value: Mapping[str, Any]) -> str:
    # ASCII only: half a surrogate pair is legal in JSON and illegal in UTF-8.
    return json.dumps(value, separators=(",", ":"))
