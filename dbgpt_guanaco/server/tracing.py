"""Exchanges → OpenTelemetry spans, one for each answer, below the caller's own span.

A span is made when all is over, from what is known then, so nothing is done for it before. The
names of attributes are those of the conventions for generative models, in version 1.38; the
texts that these also have names for are never sent.
"""

import re
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from dbgpt_guanaco import __version__
from dbgpt_guanaco.server.exchange import Exchange
from dbgpt_guanaco.server.progress import Progress

DBGPT_HEADER = "DB-GPT-Trace-Span-Id"
# As today's DB-GPT writes it. Early versions took UUIDs, which are too long for a span.
DBGPT_SPAN = re.compile(r"([0-9a-f]{32}):([0-9a-f]{16})")
# By the end of a path; the first that fits. What is not here asks no model for an answer.
OPERATIONS = (
    ("/chat/completions", "chat"),
    ("/completions", "text_completion"),
    ("/generate_stream", "chat"),
    ("/generate", "chat"),
    ("/embeddings", "embeddings"),
    ("/embedding", "embeddings"),
)
SEND_TIMEOUT_S = 3.0


class Tracing:
    """Makes the spans, and hands them to a thread that sends them.

    Args:
        processor: What a finished span goes to.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create(
            {"service.name": "dbgpt_guanaco", "service.version": __version__}
        )
        # Not the global one: another application in this process may have its own.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("dbgpt_guanaco", __version__)

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Return one that sends to a collector, in batches; what does not fit a queue is dropped.

        Args:
            endpoint: Its address for OTLP over HTTP; the usual path is added if it has none.
        """
        url = endpoint.rstrip("/")
        url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
        return cls(BatchSpanProcessor(OTLPSpanExporter(url, timeout=SEND_TIMEOUT_S)))

    def on_end(self, exchange: Exchange) -> None:
        """Make the span of an exchange, if it asked for an answer or for vectors."""
        operation = operation_of(exchange)
        if not operation:
            return
        model = exchange.asked[0].model if exchange.asked else None
        span = self._tracer.start_span(
            f"{operation} {model}" if model else operation,
            parent_of(exchange.headers),
            SpanKind.SERVER,
            attributes=attributes_of(exchange, operation),
            start_time=exchange.arrived_at_ns,
        )
        if problem_of(exchange):
            span.set_status(StatusCode.ERROR)
        span.end(exchange.arrived_at_ns + int(exchange.total_s * 1e9))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def operation_of(exchange: Exchange) -> str | None:
    """Return the conventions' word for what was asked; None for what no model is asked for."""
    if exchange.method != "POST" or exchange.dialect not in ("openai", "worker", "llmserver"):
        return None
    return next((name for end, name in OPERATIONS if exchange.path.endswith(end)), None)


def parent_of(headers: Mapping[str, str]) -> Context:
    """Return the caller's span: DB-GPT's own header first, then the W3C's; else a new trace."""
    match = DBGPT_SPAN.fullmatch(headers.get(DBGPT_HEADER, "").lower())
    if not match:
        return TraceContextTextMapPropagator().extract(dict(headers), Context())
    trace_id, span_id = (int(part, 16) for part in match.groups())
    caller = SpanContext(trace_id, span_id, True, TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(caller), Context())


def problem_of(exchange: Exchange) -> str | None:
    """Return the kind of what went wrong on our side."""
    failed = next((p.problem for p in exchange.asked if p.outcome == "failed"), None)
    if failed:
        return failed
    return exchange.problem or "internal" if (exchange.status or 0) >= 500 else None


def attributes_of(exchange: Exchange, operation: str) -> dict[str, AttributeValue]:
    """Return what a span tells of an exchange: names, counts and times."""
    refused = next((p.problem for p in exchange.asked if p.problem), exchange.problem)
    found: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "dbgpt_guanaco",
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "error.type": problem_of(exchange) or refused,
        "guanaco.dialect": exchange.dialect,
        "guanaco.request.id": exchange.request_id,
        **(_asked(exchange.asked) if exchange.asked else {}),
    }
    return {name: value for name, value in found.items() if value is not None}


def _asked(asked: list[Progress]) -> dict[str, AttributeValue | None]:
    first = asked[0]
    sampling = first.sampling
    waited = [p.first_token_s for p in asked if p.first_token_s is not None]
    queued = [p.queue_s for p in asked if p.queue_s is not None]
    return {
        "gen_ai.request.model": first.model,
        "gen_ai.request.choice.count": len(asked) if len(asked) > 1 else None,
        "gen_ai.request.max_tokens": sampling.max_new_tokens if sampling else None,
        "gen_ai.request.temperature": sampling.temperature if sampling else None,
        "gen_ai.request.top_p": sampling.top_p if sampling else None,
        "gen_ai.response.model": first.model,
        "gen_ai.response.id": first.asked_id or None,
        "gen_ai.response.finish_reasons": [p.outcome for p in asked if p.outcome and sampling],
        "gen_ai.response.time_to_first_chunk": min(waited, default=None),
        "gen_ai.usage.input_tokens": sum(p.usage.prompt_tokens for p in asked),
        "gen_ai.usage.output_tokens": sum(p.usage.completion_tokens for p in asked),
        "gen_ai.usage.cache_read.input_tokens": sum(p.usage.cached_tokens for p in asked),
        "guanaco.queue_s": min(queued, default=None),
    }
