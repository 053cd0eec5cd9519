"""What is counted and timed of answers: names and buckets as vLLM's, where they mean the same.

vLLM's ``vllm:`` is ``guanaco_`` here, because Prometheus keeps the colon for rules that people
write themselves. What follows is equal, so a dashboard is carried over by replacing that.
"""

from dataclasses import dataclass, field
from functools import cached_property

from prometheus_client import CollectorRegistry, Histogram

from dbgpt_guanaco.server.progress import Progress

PREFIX = "guanaco_"
MODEL = "model_name"  # vLLM's label

LATENCY_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
ENDINGS = ("stop", "length", "abort")  # vLLM's words
ERRORS = ("generation_failed", "out_of_memory", "engine_stopped", "internal")
REFUSALS = ("engine_busy", "engine_stopped", "invalid_request", "prompt_too_long")
# More names than that can only come from LoRAs that come and go; they share one.
MOST_MODELS, REST = 257, "other"


def count_buckets(most: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, 50 … up to ``most``."""
    steps = (factor * 10**power for power in range(len(str(most))) for factor in (1, 2, 5))
    return tuple(float(step) for step in steps if step <= most)


class Histograms:
    """The distributions, over all models.

    Args:
        registry: Where they are exported.
        context_tokens: Most tokens of a prompt, or of an answer.
    """

    def __init__(self, registry: CollectorRegistry, context_tokens: int) -> None:
        def histogram(name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, told, [MODEL], registry=registry, buckets=buckets)

        latency, tokens = LATENCY_BUCKETS_S, count_buckets(context_tokens)
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the question to its first text.",
            FIRST_TOKEN_BUCKETS_S,
        )  # fmt: skip
        self.between_tokens = histogram(
            "inter_token_latency_seconds", "From one text to the next, for each of its tokens.",
            TOKEN_BUCKETS_S,
        )  # fmt: skip
        self.mean_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time for each token after the first, one value for each answer.",
            TOKEN_BUCKETS_S,
        )
        self.total = histogram("e2e_request_latency_seconds", "From question to end.", latency)
        self.queue = histogram("request_queue_time_seconds", "Waiting for a slot.", latency)
        self.prefill = histogram(
            "request_prefill_time_seconds", "From the slot to the first text.", latency
        )
        self.decode = histogram(
            "request_decode_time_seconds", "From the first text to the last.", latency
        )
        self.inference = histogram(
            "request_inference_time_seconds", "From the slot to the last text.", latency
        )
        self.prompt_tokens = histogram(
            "request_prompt_tokens", "Tokens of a prompt that was answered.", tokens
        )
        self.answer_tokens = histogram(
            "request_generation_tokens", "Tokens of a finished answer.", tokens
        )
        self.of_answers = tuple(vars(self).values())  # all until here
        self.embedding = histogram(
            "embedding_latency_seconds", "From texts to their vectors.", FIRST_TOKEN_BUCKETS_S
        )


@dataclass(slots=True)
class Counts:
    """Plain numbers of one model; written on the event loop only, read from anywhere."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    embedded_texts: int = 0
    embedded_tokens: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)


def add_one(counts: dict[str, int], kind: str) -> None:
    """Count one more of a kind."""
    counts[kind] = counts.get(kind, 0) + 1


class ModelInstruments:
    """The counts and distributions of one model."""

    def __init__(self, histograms: Histograms, model: str) -> None:
        self._all, self._model = histograms, model
        self.counts = Counts()

    # Looked up once, because they are used for each token, and only where there are tokens.
    @cached_property
    def _first_token(self) -> Histogram:
        return self._all.first_token.labels(self._model)

    @cached_property
    def _between_tokens(self) -> Histogram:
        return self._all.between_tokens.labels(self._model)

    def start_at_zero(self) -> None:
        """Export what may come before it comes: a rate over its first rise is a rate then."""
        for histogram in self._all.of_answers:
            histogram.labels(self._model)
        self.counts.endings = dict.fromkeys(ENDINGS, 0)
        self.counts.errors = dict.fromkeys(ERRORS, 0)
        self.counts.refusals = dict.fromkeys(REFUSALS, 0)

    def on_tokens(self, progress: Progress, new: int, before_s: float | None) -> None:
        """Note new tokens of an answer. Called for each delta, so it does little.

        Args:
            progress: Of the answer, with the delta taken.
            new: How many tokens it brought.
            before_s: When the delta before it was made; None before the first.
        """
        self.counts.generation_tokens += new
        if before_s is None:
            self.counts.prompt_tokens += progress.usage.prompt_tokens
            self._first_token.observe(progress.first_token_s or 0.0)
        elif progress.last_at_s is not None:
            self._between_tokens.observe((progress.last_at_s - before_s) / new)

    def on_end(self, progress: Progress) -> None:
        """Note how an answer, or its refusal, ended."""
        match progress.outcome:
            case "refused":
                add_one(self.counts.refusals, progress.problem or "other")
            case "failed":
                add_one(self.counts.errors, progress.problem or "other")
            case "cancelled":
                add_one(self.counts.endings, "abort")
            case "stop" | "length":
                add_one(self.counts.endings, progress.outcome)
                self._on_finished(progress)
            case _:
                pass

    def on_embedded(self, texts: int, tokens: int, seconds: float) -> None:
        """Note texts that have got their vectors."""
        self.counts.embedded_texts += texts
        self.counts.embedded_tokens += tokens
        self._all.embedding.labels(self._model).observe(seconds)

    def _on_finished(self, progress: Progress) -> None:
        asked, first, last = progress.asked_at_s, progress.first_at_s, progress.last_at_s
        if first is None or last is None:
            return
        admitted = asked if progress.admitted_at_s is None else progress.admitted_at_s
        tokens = progress.usage.completion_tokens
        values = {
            self._all.total: last - asked,
            self._all.queue: admitted - asked,
            self._all.prefill: first - admitted,
            self._all.decode: last - first,
            self._all.inference: last - admitted,
            self._all.prompt_tokens: progress.usage.prompt_tokens,
            self._all.answer_tokens: tokens,
        }
        if tokens > 1:
            values[self._all.mean_token] = (last - first) / (tokens - 1)
        for histogram, value in values.items():
            histogram.labels(self._model).observe(value)
