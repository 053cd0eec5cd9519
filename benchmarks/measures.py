"""What was measured, and the numbers made of it. Pure arithmetic: no clock, no network.

Definitions are those of ``vllm bench serve``. All times are seconds, taken at the client.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

TokenSource = Literal["usage", "chunks"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request that was answered to its end.

    Attributes:
        outputs_s: When each piece of text arrived, in seconds since the request was sent;
            never empty, never falling.
        e2e_s: When the last chunk with a choice arrived, in seconds since the request was sent.
        output_tokens: Generated tokens, as ``token_source`` counts them.
        token_source: ``usage`` is the server's own count; ``chunks`` counts pieces of text.
        prompt_tokens: Tokens of the prompt, if the server says so.
        finish_reason: Why the server says it ended.
        cached_tokens: Prompt tokens that a prefix cache held, if the server says so.
        was_resent: The server had closed the connection, so the request was sent again.
    """

    outputs_s: tuple[float, ...]
    e2e_s: float
    output_tokens: int
    token_source: TokenSource
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    cached_tokens: int | None = None
    was_resent: bool = False

    def __post_init__(self) -> None:
        if not self.outputs_s:
            raise ValueError("an answer has at least one output")

    @property
    def ttft_s(self) -> float:
        """Request sent to first streamed output, in seconds."""
        return self.outputs_s[0]

    @property
    def itls_s(self) -> list[float]:
        """Every gap between streamed outputs, in seconds; empty for a single output."""
        return [later - earlier for earlier, later in pairwise(self.outputs_s)]

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first; None when there is no second one."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered to its end.

    Attributes:
        kind: Short and countable, such as ``http 429`` or ``timeout``.
        detail: What the server or the network said, shortened.
        after_s: Seconds from sending to the failure.
        retry_after: When to come back, in the server's own words.
    """

    kind: str
    detail: str
    after_s: float
    retry_after: str | None = None


Outcome = Answer | Failure


@dataclass(frozen=True, slots=True)
class Stage:
    """One load on one server, from the first request to the last answer.

    Attributes:
        server: Name of the server.
        streams: Clients that asked at the same time.
        round_number: Counts from 1.
        duration_s: Wall time of the whole stage in seconds, warm-up not counted.
        outcomes: One for every measured request.
        warmup_failures: Requests that failed before measuring began.
    """

    server: str
    streams: int
    round_number: int
    duration_s: float
    outcomes: tuple[Outcome, ...]
    warmup_failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one measure, in the unit of its values."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Return the spread of ``values``, or None when there are none."""
        if not values:
            return None
        p50, p90, p99 = (percentile(values, percent) for percent in (50, 90, 99))
        return cls(mean=sum(values) / len(values), p50=p50, p90=p90, p99=p99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between neighbours as numpy does by default.

    Args:
        values: In any order, not empty.
        percent: In [0, 100].
    """
    if not values:
        raise ValueError("no values, so no percentile")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be in [0, 100], got {percent}")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one load on one server, over one round or several.

    Attributes:
        answered: Requests answered to their end; only these enter the measures.
        errors: Failed requests by kind.
        warmup_errors: Failed warm-up requests by kind.
        duration_s: Wall time in seconds, that of failed requests included.
        requests_per_s: Answered requests a second.
        output_tokens: All tokens of answered requests.
        output_tokens_per_s: The same a second, all streams together.
        token_sources: How the tokens were counted, sorted; one entry unless answers differ.
        ttft_s, itl_s, tpot_s, e2e_s: Spreads in seconds; None without a value.
    """

    answered: int
    errors: dict[str, int]
    warmup_errors: dict[str, int]
    duration_s: float
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    token_sources: tuple[TokenSource, ...]
    ttft_s: Spread | None
    itl_s: Spread | None
    tpot_s: Spread | None
    e2e_s: Spread | None

    @property
    def failed(self) -> int:
        """Measured requests that failed."""
        return sum(self.errors.values())


def summarize(stages: Iterable[Stage]) -> Summary:
    """Pool stages of one server and one number of streams: times add up, requests mix."""
    stages = list(stages)
    outcomes = [outcome for stage in stages for outcome in stage.outcomes]
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    duration_s = sum(stage.duration_s for stage in stages)
    tokens = sum(answer.output_tokens for answer in answers)
    return Summary(
        answered=len(answers),
        errors=_count(outcome for outcome in outcomes if isinstance(outcome, Failure)),
        warmup_errors=_count(failure for stage in stages for failure in stage.warmup_failures),
        duration_s=duration_s,
        requests_per_s=len(answers) / duration_s if duration_s > 0 else 0.0,
        output_tokens=tokens,
        output_tokens_per_s=tokens / duration_s if duration_s > 0 else 0.0,
        token_sources=tuple(sorted({answer.token_source for answer in answers})),
        ttft_s=Spread.of([answer.ttft_s for answer in answers]),
        itl_s=Spread.of([gap for answer in answers for gap in answer.itls_s]),
        tpot_s=Spread.of([a.tpot_s for a in answers if a.tpot_s is not None]),
        e2e_s=Spread.of([answer.e2e_s for answer in answers]),
    )


def _count(failures: Iterable[Failure]) -> dict[str, int]:
    return dict(sorted(Counter(failure.kind for failure in failures).items()))


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ours divided by the peer's, each None when a side has no value or the peer's is 0.

    More than 1 is good for ``output_tokens_per_s``, less than 1 for the times.
    """

    output_tokens_per_s: float | None
    ttft_p50: float | None
    itl_p50: float | None


def compare(ours: Summary, peer: Summary) -> Ratios:
    """Divide our numbers by the peer's."""
    both_answered = ours.answered and peer.answered
    return Ratios(
        output_tokens_per_s=_divide(ours.output_tokens_per_s, peer.output_tokens_per_s)
        if both_answered
        else None,
        ttft_p50=_divide_p50(ours.ttft_s, peer.ttft_s),
        itl_p50=_divide_p50(ours.itl_s, peer.itl_s),
    )


def _divide(ours: float, peer: float) -> float | None:
    return ours / peer if peer > 0 else None


def _divide_p50(ours: Spread | None, peer: Spread | None) -> float | None:
    return _divide(ours.p50, peer.p50) if ours and peer else None
