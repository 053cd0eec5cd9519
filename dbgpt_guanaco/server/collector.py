"""All that is counted in one application, and how Prometheus is told of it.

Counts are plain numbers, written on the event loop. They become metrics only when somebody asks
for them, in whatever thread asks, and so do the engine's own numbers.
"""

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dbgpt_guanaco import __version__
from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.server.exchange import Exchange
from dbgpt_guanaco.server.instruments import (
    MODEL,
    MOST_MODELS,
    PREFIX,
    REST,
    Counts,
    Histograms,
    ModelInstruments,
    add_one,
)
from dbgpt_guanaco.server.starting import LifeCycle, State
from dbgpt_guanaco.server.vitals import Vitals
from dbgpt_guanaco.types import DEPARTURE_BOUNDS_S, EngineLoad, ModelCard

STATES = get_args(State)
LIBRARIES = ("torch", "transformers", "bitsandbytes")


class Metrics:
    """Everything that is counted, for one application.

    Attributes:
        registry: Its own, so that two applications in one process do not mix.
    """

    def __init__(self, life: LifeCycle) -> None:
        self.life = life
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelInstruments] = {}
        self.responses: dict[tuple[str, int], int] = {}  # by dialect and status
        self.refusals: dict[str, int] = {}  # of requests that reached no model
        life.when_open(self._begin)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Counters(self))
        self.registry.register(_Gauges(self))

    def _begin(self, engine: Engine) -> None:
        self._histograms = Histograms(self.registry, engine.card.context_tokens)
        self.of(engine.card.name).start_at_zero()

    def of(self, model: str) -> ModelInstruments:
        """Return the instruments of a model.

        Args:
            model: A name that is served here, never one that a client wrote.
        """
        if model not in self._models:
            model = model if len(self._models) < MOST_MODELS else REST
            self._models.setdefault(model, ModelInstruments(self._histograms, model))
        return self._models[model]

    def counts(self) -> Iterator[tuple[str, Counts]]:
        """Return the models with what was counted of each."""
        return ((name, model.counts) for name, model in list(self._models.items()))

    def vitals(self, engine: Engine) -> Vitals:
        """Return how the engine is doing, and what it has written so far."""
        written = sum(counts.generation_tokens for _, counts in self.counts())
        return Vitals.of(engine, written)

    def on_end(self, exchange: Exchange) -> None:
        """Count a response, and a refusal that no model knows of."""
        status = exchange.status or 0
        key = exchange.dialect, status
        self.responses[key] = self.responses.get(key, 0) + 1
        if status == 429 and not exchange.asked:
            add_one(self.refusals, exchange.refusal or "other")


class _Counters(Collector):
    """What was counted on the event loop, as counters."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        plain = {
            "prompt_tokens": _counter("prompt_tokens", "Tokens of prompts.", MODEL),
            "generation_tokens": _counter("generation_tokens", "Tokens written.", MODEL),
            "embedded_texts": _counter("embedding_texts", "Texts that got vectors.", MODEL),
            "embedded_tokens": _counter("embedding_tokens", "Tokens of these texts.", MODEL),
        }
        kinds = {
            "endings": _counter(
                "request_success", "Answers that ended; abort: the client left.", MODEL,
                "finished_reason",
            ),
            "errors": _counter("request_errors", "Answers that failed.", MODEL, "kind"),
            "refusals": _counter(
                "request_refusals", "Questions that were not taken.", MODEL, "cause"
            ),
        }  # fmt: skip
        engine = self._metrics.life.engine
        for model, counts in self._metrics.counts():
            for name, family in plain.items():
                number = getattr(counts, name)
                if number or (engine and model == engine.card.name):
                    family.add_metric([model], number)
            for name, family in kinds.items():
                for kind, number in list(getattr(counts, name).items()):
                    family.add_metric([model, kind], number)
        for cause, number in list(self._metrics.refusals.items()):
            kinds["refusals"].add_metric(["", cause], number)
        responses = _counter("http_responses", "Responses, by status.", "dialect", "code")
        for (dialect, code), number in list(self._metrics.responses.items()):
            responses.add_metric([dialect, str(code)], number)
        return [*plain.values(), *kinds.values(), responses]


class _Gauges(Collector):
    """How the engine is doing at the moment of the scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._life = metrics, metrics.life
        self._build = {"version": __version__, "python": platform.python_version()} | {
            name: _version(name) for name in LIBRARIES
        }

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        state = GaugeMetricFamily(PREFIX + "engine_state", "1 for the state.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == self._life.state))
        yield state
        yield InfoMetricFamily(PREFIX + "build", "What runs here.", value=self._build)
        if engine := self._life.engine:
            yield from self._of(engine)

    def _of(self, engine: Engine) -> Iterable[Metric]:
        vitals, model = self._metrics.vitals(engine), engine.card.name
        load = vitals.load

        def gauge(name: str, told: str, value: float) -> Metric:
            family = GaugeMetricFamily(PREFIX + name, told, labels=[MODEL])
            family.add_metric([model], value)
            return family

        def counter(name: str, told: str, value: float) -> Metric:
            family = _counter(name, told, MODEL)
            family.add_metric([model], value)
            return family

        yield gauge("num_requests_running", "Requests that have a slot.", load.running)
        yield gauge("num_requests_waiting", "Requests that wait for a slot.", load.waiting)
        yield gauge("max_requests_running", "Slots.", load.slots)
        yield gauge("max_requests_waiting", "Queue places.", load.queue_size)
        yield gauge("kv_cache_blocks", "Blocks of keys and values.", load.kv_blocks)
        yield gauge("kv_cache_usage_perc", "Share of blocks that are held.", vitals.kv_usage)
        yield counter("prefix_cache_queries", "Prompt tokens looked for.", load.prompt_tokens)
        yield counter("prefix_cache_hits", "Prompt tokens found.", load.cached_tokens)
        yield counter("num_preemptions", "Requests that gave way.", load.preemptions)
        yield _departures(load, model)
        yield gauge("device_memory_bytes", "Memory taken of the GPUs.", load.device_bytes)
        yield gauge("model_weight_bytes", "Weights.", engine.card.weight_bytes)
        yield InfoMetricFamily(PREFIX + "model", "What is served.", value=_told(engine.card))


def _departures(load: EngineLoad, model: str) -> Metric:
    family = HistogramMetricFamily(
        PREFIX + "request_cancel_time_seconds",
        "From a client's leaving to its slot.",
        labels=[MODEL],
    )
    ends = [*map(str, DEPARTURE_BOUNDS_S), "+Inf"]
    counts = accumulate(load.departures or [0] * len(ends))
    family.add_metric([model], list(zip(ends, counts, strict=True)), load.departures_s)
    return family


def _told(card: ModelCard) -> dict[str, str]:
    return {
        MODEL: card.name,
        "family": card.family,
        "quantization": card.quantization,
        "compute_dtype": card.compute_dtype,
        "device": card.device,
        "context_tokens": str(card.context_tokens),
    }


def _counter(name: str, told: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, told, labels=labels)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
