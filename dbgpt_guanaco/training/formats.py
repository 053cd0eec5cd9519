"""One line of training data → messages. Four formats are told apart by their keys.

Each reader takes a JSON object and returns its turns as (role, text), unchecked.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dbgpt_guanaco.errors import DataError
from dbgpt_guanaco.types import ChatMessage, Role

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# Source: timdettmers/openassistant-guanaco, one text with the markers of Guanaco's template.
_MARKER = re.compile(r"### (Human|Assistant):")

# They change what a conversation means, and no template here writes them.
UNREAD = ("tools", "functions", "history")

Turns = Iterator[tuple[Any, Any]]


def read_messages(line: Mapping[str, Any]) -> list[ChatMessage]:
    """Return the messages of a line: system first, then user and assistant in turn.

    A question after the last answer is left out; there is nothing to learn from it.

    Raises:
        DataError: The line is of no known format, or not such a conversation.
    """
    if unread := [key for key in UNREAD if line.get(key)]:
        raise DataError(f"has {', '.join(unread)}, which is not read")
    for key, reader in READERS.items():
        if key in line:
            messages = [_message(role, text) for role, text in reader(line)]
            return _checked(messages)
    raise DataError(
        f"has none of the keys {', '.join(READERS)}, but {', '.join(sorted(line)) or 'none'}"
    )


def _chat(line: Mapping[str, Any]) -> Turns:
    """``{"messages": [{"role", "content"}]}``, as OpenAI has it."""
    return _pairs(line["messages"], "role", "content")


def _sharegpt(line: Mapping[str, Any]) -> Turns:
    """``{"conversations": [{"from", "value"}]}``."""
    if line.get("system"):
        yield "system", line["system"]
    yield from _pairs(line["conversations"], "from", "value")


def _alpaca(line: Mapping[str, Any]) -> Turns:
    """``{"instruction", "input", "output"}``; an input stands below its instruction."""
    if "output" not in line:
        raise DataError("has an instruction and no output")
    parts = [line["instruction"], line.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise DataError("instruction and input must be text")
    yield "user", "\n\n".join(part for part in parts if part.strip())
    yield "assistant", line["output"]


def _marked_text(line: Mapping[str, Any]) -> Turns:
    """``{"text": "### Human: …### Assistant: …"}``."""
    text = line["text"]
    parts = _MARKER.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise DataError("its text does not begin with '### Human:'")
    yield from zip(map(str.lower, parts[1::2]), parts[2::2], strict=True)


def _tree(line: Mapping[str, Any]) -> Turns:
    """``{"prompt": {"text", "role", "replies": […]}}``: a tree of OpenAssistant.

    The best reply is followed at each turn, as Guanaco's data was made: that of the lowest rank.
    """
    node = line["prompt"]
    while node is not None:
        if not isinstance(node, dict) or not isinstance(node.get("replies", []), list):
            raise DataError("its prompt is no tree of messages with replies")
        yield node.get("role"), node.get("text")
        node = _best(node.get("replies") or [])


def _best(replies: list[Any]) -> Any:  # noqa: ANN401
    def rank(reply: Any) -> float:  # noqa: ANN401
        found = reply.get("rank") if isinstance(reply, dict) else None
        return found if isinstance(found, int | float) else float("inf")

    return min(replies, key=rank, default=None)


READERS: Mapping[str, Callable[[Mapping[str, Any]], Turns]] = {
    "messages": _chat,
    "conversations": _sharegpt,
    "instruction": _alpaca,
    "prompt": _tree,
    "text": _marked_text,
}


def _pairs(turns: Any, role: str, text: str) -> Turns:  # noqa: ANN401
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("its turns are no list of objects")
    return ((turn.get(role), turn.get(text)) for turn in turns)


def _message(role: Any, text: Any) -> ChatMessage:  # noqa: ANN401
    name = str(role).lower()
    if name.removeprefix("### ") not in ROLES:
        raise DataError(f"role {role!r} is none of {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise DataError(f"the text of a {name} turn is {type(text).__name__}, not a string")
    # The blanks around a text belong to the template, which writes its own.
    return ChatMessage(ROLES[name], text.strip())


def _checked(messages: list[ChatMessage]) -> list[ChatMessage]:
    turns = [m for m in messages if m.role != "system"]
    systems = messages[: len(messages) - len(turns)]
    if any(m.role != "system" for m in systems):
        raise DataError("a system message stands between the turns; it must come first")
    for expected, turn in zip(("user", "assistant") * len(turns), turns, strict=False):
        if turn.role != expected:
            raise DataError(f"a turn of the {turn.role} stands where the {expected}'s belongs")
        if not turn.content:
            raise DataError(f"a turn of the {turn.role} is empty")
    if turns and turns[-1].role == "user":
        turns.pop()
    if not turns:
        raise DataError("holds no answer")
    return [*systems, *turns]
