"""Sequences for the engine's parts where there is no engine: nobody reads their answers."""

from collections.abc import Sequence as Many
from types import SimpleNamespace
from typing import Any

from dbgpt_guanaco.engine.rows import Row
from dbgpt_guanaco.engine.sequence import Sequence


def stand_in(prompt: Many[int], new_tokens: int, row: Row, answer: Any = None) -> Sequence:  # noqa: ANN401
    """Return a sequence that takes so many tokens; without an answer they become no text."""
    generation: Any = SimpleNamespace(
        input_ids=prompt,
        kv_tokens=len(prompt) + new_tokens,
        request=SimpleNamespace(request_id=""),
        cache_salt="",
        lora=None,
    )
    nothing: Any = SimpleNamespace(cached_tokens=0)
    return Sequence(generation, answer or nothing, row)
