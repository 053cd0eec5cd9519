"""Command line: what counting, logging and tracing add to an answer, in this process.

::

    python -m benchmarks.observation

The deltas are made beforehand, so what is timed is the way from an engine to a reader and nothing
else, once bare and once observed. The smallest of several rounds is shown: what else the machine
does can only add.
"""

import asyncio
import io
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

if not __package__:
    # Run as a script, imports start in this folder; they have to start in the one above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from fakes import ScriptedEngine

from benchmarks.facts import as_list, run_facts
from dbgpt_guanaco.engine.base import Generation
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.exchange import Exchange
from dbgpt_guanaco.server.exchange_log import log_exchange
from dbgpt_guanaco.server.logs import JsonLines
from dbgpt_guanaco.server.observed import ObservedEngine
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.types import GenerationRequest, SamplingParams, TextDelta, Usage

TOKENS, ROUNDS, CALLS = 20_000, 15, 2_000


class Deltas:
    """A generation whose text is there already."""

    prompt_text, prompt_tokens = "", 7

    def __init__(self, deltas: Sequence[TextDelta]) -> None:
        self._deltas = deltas

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        """See ``Generation``."""
        for delta in self._deltas:
            yield delta

    def cancel(self) -> None:
        """See ``Generation``."""


class ReadyEngine(ScriptedEngine):
    """Gives every request the same deltas."""

    def __init__(self) -> None:
        super().__init__()
        self.deltas = [TextDelta("a", Usage(7, i + 1)) for i in range(TOKENS - 1)]
        self.deltas.append(TextDelta("a", Usage(7, TOKENS), "stop"))

    async def submit(self, _: GenerationRequest) -> Any:  # noqa: ANN401
        """See ``Engine``."""
        generation: Generation = Deltas(self.deltas)
        return generation


def main() -> None:
    """Print a row for each thing that is added."""
    engine, exchange = (
        ReadyEngine(),
        Exchange.of({"method": "POST", "path": "/v1/completions", "headers": []}),
    )
    metrics = Metrics(LifeCycle.of(engine))
    observed = ObservedEngine(engine, exchange, metrics)
    print("\n".join(as_list(run_facts())))
    bare_us = least_us(lambda: asyncio.run(read(engine)), TOKENS)
    seen_us = least_us(lambda: asyncio.run(read(observed)), TOKENS)
    delta_us = least_us(
        lambda: [TextDelta("a", engine.deltas[0].usage) for _ in range(CALLS)], CALLS
    )
    del exchange.asked[1:]
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonLines())
    logging.basicConfig(level="INFO", handlers=[handler])
    rows = {
        "a delta, bare": bare_us,
        "a delta, observed": seen_us,
        "added to a delta": seen_us - bare_us,
        "making a delta, its time included": delta_us,
        "the line at the end of a request": least_us(lambda: again(log_exchange, exchange), CALLS),
        "counting the response": least_us(lambda: again(metrics.on_end, exchange), CALLS),
        "the span of a request": least_us(lambda: again(tracer(), exchange), CALLS),
        "a scrape, in its own thread": least_us(lambda: generate_latest(metrics.registry), 1),
    }
    print("\n| | microseconds |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:,.2f} |")


async def read(engine: Any) -> None:  # noqa: ANN401
    """Read an answer to its end."""
    generation = await engine.submit(GenerationRequest("x", SamplingParams()))
    async for _ in generation:
        pass


def again(tell: Callable[[Exchange], None], exchange: Exchange) -> None:
    """Tell somebody of an exchange many times."""
    for _ in range(CALLS):
        tell(exchange)


def tracer() -> Callable[[Exchange], None]:
    """Return what makes spans, which nobody sends."""
    from opentelemetry.sdk.trace import SpanProcessor

    from dbgpt_guanaco.server.tracing import Tracing

    return Tracing(SpanProcessor()).on_end


def least_us(work: Callable[[], Any], calls: int) -> float:
    """Return the time of one of so many calls, from the fastest round."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / calls * 1e6


if __name__ == "__main__":
    main()
