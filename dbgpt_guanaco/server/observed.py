"""An engine, and an embedder, as one HTTP request sees them: everything that is asked is noted.

They stand between routes and models, so no dialect knows of it and all are counted alike.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.engine.base import Embedder, Engine, Generation, Loras
from dbgpt_guanaco.errors import GenerationFailedError, GuanacoError, OutOfMemoryError
from dbgpt_guanaco.server.collector import Metrics
from dbgpt_guanaco.server.exchange import Exchange
from dbgpt_guanaco.server.instruments import ModelInstruments
from dbgpt_guanaco.server.progress import Outcome, Progress
from dbgpt_guanaco.types import (
    EmbeddingCard,
    Embeddings,
    EngineLoad,
    GenerationRequest,
    ModelCard,
    TextDelta,
    Usage,
)


class ObservedEngine:
    """An engine that one exchange asks. See ``Engine`` for what its members do."""

    def __init__(self, engine: Engine, exchange: Exchange, metrics: Metrics) -> None:
        self._engine, self._exchange, self._metrics = engine, exchange, metrics

    @property
    def card(self) -> ModelCard:
        """See ``Engine``."""
        return self._engine.card

    @property
    def template(self) -> PromptTemplate:
        """See ``Engine``."""
        return self._engine.template

    @property
    def loras(self) -> Loras:
        """See ``Engine``."""
        return self._engine.loras

    @property
    def load(self) -> EngineLoad:
        """See ``Engine``."""
        return self._engine.load

    @property
    def is_alive(self) -> bool:
        """See ``Engine``."""
        return self._engine.is_alive

    @property
    def problem(self) -> str | None:
        """See ``Engine``."""
        return self._engine.problem

    @property
    def is_lost(self) -> bool:
        """See ``Engine``."""
        return self._engine.is_lost

    async def submit(self, request: GenerationRequest) -> Generation:
        """See ``Engine``. The engine's own log names the request as the response does."""
        lora = request.lora if request.lora in self._engine.loras.names else None
        model = lora or self._engine.card.name
        progress = Progress(model, request.sampling, request.request_id)
        self._exchange.asked.append(progress)
        instruments = self._metrics.of(model)
        named = replace(request, request_id=self._exchange.request_id)
        try:
            generation = await self._engine.submit(named)
        except BaseException as error:
            progress.end(_outcome_of(error), error)
            instruments.on_end(progress)
            raise
        return ObservedGeneration(generation, progress, instruments)

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """See ``Engine``."""
        return await self._engine.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See ``Engine``."""
        return await self._engine.detokenize(token_ids)

    async def embed(self, text: str) -> Sequence[float]:
        """See ``Engine``."""
        return await self._engine.embed(text)

    def close(self) -> None:
        """See ``Engine``."""
        self._engine.close()


class ObservedGeneration:
    """A generation whose deltas are counted as they are read. See ``Generation``."""

    def __init__(
        self, generation: Generation, progress: Progress, instruments: ModelInstruments
    ) -> None:
        self._generation, self._progress = generation, progress
        self._instruments = instruments

    @property
    def prompt_text(self) -> str:
        """See ``Generation``."""
        return self._generation.prompt_text

    @property
    def prompt_tokens(self) -> int:
        """See ``Generation``."""
        return self._generation.prompt_tokens

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """See ``Generation``."""
        return self._read()

    async def _read(self) -> AsyncIterator[TextDelta]:
        progress, instruments = self._progress, self._instruments
        progress.usage = Usage(self.prompt_tokens, 0)
        try:
            async for delta in self._generation:
                before_s = progress.last_at_s
                new = progress.take(delta)
                if new:
                    instruments.on_tokens(progress, new, before_s)
                if delta.finish_reason:
                    self._end(delta.finish_reason)
                yield delta
        except Exception as error:
            self._end("failed", error)
            raise

    def cancel(self) -> None:
        """See ``Generation``."""
        self._generation.cancel()
        self._end("cancelled")

    def _end(self, outcome: Outcome, error: Exception | None = None) -> None:
        if self._progress.outcome is None:
            self._progress.end(outcome, error)
            self._instruments.on_end(self._progress)


class ObservedEmbedder:
    """An embedder that one exchange asks. See ``Embedder``."""

    def __init__(self, embedder: Embedder, exchange: Exchange, metrics: Metrics) -> None:
        self._embedder, self._exchange, self._metrics = embedder, exchange, metrics

    @property
    def card(self) -> EmbeddingCard:
        """See ``Embedder``."""
        return self._embedder.card

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """See ``Embedder``."""
        model = self._embedder.card.name
        progress, instruments = Progress(model), self._metrics.of(model)
        self._exchange.asked.append(progress)
        try:
            embeddings = await self._embedder.embed(texts)
        except BaseException as error:
            progress.end(_outcome_of(error), error)
            instruments.on_end(progress)
            raise
        progress.usage, progress.last_at_s = Usage(embeddings.prompt_tokens, 0), time.monotonic()
        progress.end("embedded")
        seconds = progress.last_at_s - progress.asked_at_s
        instruments.on_embedded(len(texts), embeddings.prompt_tokens, seconds)
        return embeddings

    def close(self) -> None:
        """See ``Embedder``."""
        self._embedder.close()


def _outcome_of(error: BaseException) -> Outcome:
    """Say what became of a question that was not taken."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    is_refused = isinstance(error, GuanacoError) and not isinstance(
        error, GenerationFailedError | OutOfMemoryError
    )
    return "refused" if is_refused else "failed"
