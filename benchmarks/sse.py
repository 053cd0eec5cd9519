"""Bytes of a streamed response → server-sent events. Knows nothing of chunks or clocks.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, "Interpreting an
event stream".
"""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event that carries data.

    Attributes:
        data: The ``data:`` lines, joined by line feeds.
        name: The ``event:`` field, empty when the server gives none.
    """

    data: str
    name: str = ""


class EventReader:
    """Collects bytes into events.

    What all ``feed`` calls return adds up to the same events however the bytes were split,
    and an event is returned as soon as the line end that completes it has arrived. An event
    that is never completed is never returned, as the specification says.
    """

    def __init__(self) -> None:
        self._held = b""
        self._skips_line_feed = False
        self._is_first_line = True
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Event]:
        """Take the next bytes, return the events they complete."""
        if self._skips_line_feed and piece:
            # The line ended at the CR; waiting for its LF would have delayed the event.
            piece = piece.removeprefix(b"\n")
            self._skips_line_feed = False
        if piece.endswith(b"\r"):
            self._skips_line_feed = True
        *lines, self._held = _LINE_END.split(self._held + piece)
        events = [self._take_line(line) for line in lines]
        return [event for event in events if event is not None]

    def _take_line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            line, self._is_first_line = line.removeprefix(_BOM), False
        if not line:
            return self._complete()
        field, _, value = line.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        # The rest is a comment (an empty field), "id", "retry" or unknown: all ignored.
        return None

    def _complete(self) -> Event | None:
        event = Event("\n".join(self._data), self._name) if self._data else None
        self._data, self._name = [], ""
        return event
