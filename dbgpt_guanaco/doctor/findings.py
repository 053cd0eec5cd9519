"""What a check returns: OK, a warning or a failure, with what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        status: ``failure`` where the server would not start, or would do wrong or unsafe things;
            ``skipped`` where nothing could be found out, for a reason that another check tells.
        text: For a person; may have several lines.
        remedy: What to do, a command where there is one; empty where nothing is to be done.
    """

    status: Status
    text: str
    remedy: str = ""


class NotCheckedError(Exception):
    """A check cannot say anything, for a reason that another check tells."""


def ok(text: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", text)


def warning(text: str, remedy: str = "") -> Finding:
    """Return that the server works, but not as it should."""
    return Finding("warning", text, remedy)


def failure(text: str, remedy: str = "") -> Finding:
    """Return that the server would not start, or would do wrong or unsafe things."""
    return Finding("failure", text, remedy)


def skipped(text: str) -> Finding:
    """Return that nothing could be found out."""
    return Finding("skipped", text)
