"""The seam: the one door between HTTP and models. Knows neither."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.types import (
    EmbeddingCard,
    Embeddings,
    EngineLoad,
    GenerationRequest,
    ModelCard,
    TextDelta,
)


class Generation(Protocol):
    """One request being answered. Iterate it for text; cancel it to free its slot."""

    @property
    def prompt_text(self) -> str:
        """The prompt as the model reads it: special tokens left out, truncation applied."""
        ...

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """Return the deltas, once.

        Raises:
            GenerationFailedError: An exception ended it.
            OutOfMemoryError: The device had no memory left for it.
            EngineStoppedError: The engine was closed.
        """
        ...

    def cancel(self) -> None:
        """Stop as soon as possible. Never waits; harmless when already over."""
        ...


class Engine(Protocol):
    """A loaded model that answers requests."""

    @property
    def card(self) -> ModelCard:
        """What clients are told of the model."""
        ...

    @property
    def template(self) -> PromptTemplate:
        """How to turn messages into a prompt for this model."""
        ...

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is."""
        ...

    @property
    def is_alive(self) -> bool:
        """The engine takes requests."""
        ...

    @property
    def problem(self) -> str | None:
        """Why it takes none; None where it does."""
        ...

    async def submit(self, request: GenerationRequest) -> Generation:
        """Accept a request; the caller must iterate it to the end or cancel it.

        Raises:
            InvalidRequestError: A value does not fit this model.
            PromptTooLongError: No room is left for an answer.
            EngineBusyError: Every slot and queue place is taken.
            EngineStoppedError: The engine is closed.
        """
        ...

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Return the token ids of a text, as ``submit`` would make them.

        Raises:
            InvalidRequestError: The text is far longer than the context.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included.

        Raises:
            InvalidRequestError: An id is not in the vocabulary.
        """
        ...

    async def embed(self, text: str) -> Sequence[float]:
        """Return the mean of a text's input embeddings, as a 2023 DB-GPT asks for it.

        Raises:
            InvalidRequestError: The text is far longer than the context.
        """
        ...

    def close(self) -> None:
        """End every request, then the engine. Waits until both are gone."""
        ...


class Embedder(Protocol):
    """A loaded embedding model, beside the engine or without one."""

    @property
    def card(self) -> EmbeddingCard:
        """What clients are told of it."""
        ...

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return a vector for each text. Stops between two batches when it is cancelled.

        Raises:
            InvalidRequestError: A text holds half a surrogate pair.
            EngineBusyError: Too many requests wait already.
            EngineStoppedError: It is closed.
            GenerationFailedError: The model failed; the log says why.
        """
        ...

    def close(self) -> None:
        """Refuse what waits, end what runs after its batch. Returns when that is done."""
        ...
