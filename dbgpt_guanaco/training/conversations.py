"""A JSONL file → conversations. A line that is none is named by its number."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbgpt_guanaco.errors import DataError
from dbgpt_guanaco.training.formats import read_messages
from dbgpt_guanaco.types import ChatMessage

# So many bad lines are shown; their number is told in full.
SHOWN = 5

Conversation = Sequence[ChatMessage]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a file holds.

    Attributes:
        name: Of the file.
        sha256: Of its content, in hex.
        bad_lines: How many were left out.
    """

    name: str
    sha256: str
    conversations: tuple[Conversation, ...]
    bad_lines: int


def read_data(path: Path, *, skips_bad: bool = False) -> TrainingData:
    """Read conversations, one a line, each of any format that ``read_messages`` knows.

    Args:
        path: JSONL in UTF-8; empty lines do not count.
        skips_bad: Leave bad lines out and count them; else one of them is an error.

    Raises:
        DataError: The file cannot be read, lines are bad, or there is no conversation.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: is not UTF-8") from None
    found, bad = _read_lines(text)
    if bad and not skips_bad:
        raise DataError(_told(path, bad))
    if not found:
        raise DataError(f"{path} holds no conversation" + (f"; {_told(path, bad)}" if bad else ""))
    return TrainingData(path.name, hashlib.sha256(content).hexdigest(), tuple(found), len(bad))


def _read_lines(text: str) -> tuple[list[Conversation], list[tuple[int, str]]]:
    found: list[Conversation] = []
    bad: list[tuple[int, str]] = []
    # Not splitlines: U+2028 and its like may stand inside a string of JSON.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                found.append(_read_line(line))
        except DataError as error:
            bad.append((number, str(error)))
    return found, bad


def _read_line(line: str) -> Conversation:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long"
        raise DataError(f"is not JSON ({problem})") from None
    if isinstance(value, list):
        raise DataError("is a JSON array; write one object a line, as  jq -c '.[]'  does")
    if not isinstance(value, dict):
        raise DataError("is not a JSON object")
    return read_messages(value)


def _told(path: Path, bad: Sequence[tuple[int, str]]) -> str:
    shown = "; ".join(f"line {number} {problem}" for number, problem in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more bad lines" if len(bad) > SHOWN else ""
    return f"{path}: {shown}{more}"
