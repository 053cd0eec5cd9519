"""What is known of one thing that a model was asked for: counts and times, no text."""

import re
import time
from dataclasses import dataclass, field
from typing import Literal

from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.types import SamplingParams, TextDelta, Usage

NO_TOKENS = Usage(0, 0)
Outcome = Literal["stop", "length", "cancelled", "refused", "failed", "embedded"]


@dataclass(slots=True)
class Progress:
    """One generation, or one request for vectors.

    Times are on the clock of ``time.monotonic``. Those of text are the times at which it was
    made: when a slow client reads it says nothing about the engine.

    Attributes:
        model: Name under which it is served.
        sampling: How tokens were to be drawn; None for vectors.
        asked_id: Name of the answer in the client's own dialect.
        usage: Counts so far.
        outcome: How it ended; None while it goes on.
        problem: Kind of the error behind a refusal or a failure.
    """

    model: str
    sampling: SamplingParams | None = None
    asked_id: str = ""
    asked_at_s: float = field(default_factory=time.monotonic)
    admitted_at_s: float | None = None
    first_at_s: float | None = None
    last_at_s: float | None = None
    usage: Usage = NO_TOKENS
    outcome: Outcome | None = None
    problem: str | None = None

    def take(self, delta: TextDelta) -> int:
        """Note a delta; return how many tokens it brought."""
        new = delta.usage.completion_tokens - self.usage.completion_tokens
        self.usage, self.last_at_s = delta.usage, delta.made_at_s
        if self.first_at_s is None and new:
            self.first_at_s, self.admitted_at_s = delta.made_at_s, delta.admitted_at_s
        return new

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Note how it ended."""
        self.outcome = outcome
        self.problem = kind_of(error) if error and outcome != "cancelled" else None

    @property
    def queue_s(self) -> float | None:
        """Time until it got a slot."""
        return _between(self.asked_at_s, self.admitted_at_s)

    @property
    def first_token_s(self) -> float | None:
        """Time until its first text."""
        return _between(self.asked_at_s, self.first_at_s)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def kind_of(error: BaseException) -> str:
    """Return the kind of an error as one of few words: ``engine_busy``, ``out_of_memory``."""
    if not isinstance(error, GuanacoError):
        return "internal"
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
