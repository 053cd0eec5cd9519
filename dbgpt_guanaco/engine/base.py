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

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the model reads first."""
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


class LoraModel(Protocol):
    """A LoRA that requests may choose as their model."""

    @property
    def folder(self) -> str:
        """Last component of where it came from."""
        ...

    @property
    def template(self) -> PromptTemplate:
        """How to turn messages into a prompt for it."""
        ...

    @property
    def created(self) -> int:
        """When it was loaded, in seconds since 1970."""
        ...


class Loras(Protocol):
    """The LoRAs beside a loaded model."""

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may choose."""
        ...

    def get(self, name: str) -> LoraModel:
        """Return a LoRA.

        Raises:
            UnknownModelError: There is none of that name.
        """
        ...

    async def load(self, name: str, path: str) -> None:
        """Offer a LoRA from a path below the folder for LoRAs.

        Raises:
            InvalidRequestError: The path leads elsewhere, or there is no LoRA.
            ConfigurationError: The name is taken, or there are too many.
            ModelLoadError: It cannot be read, does not fit the base, or not the memory.
        """
        ...

    def unload(self, name: str) -> None:
        """Offer a LoRA no more; answers that run go on.

        Raises:
            UnknownModelError: There is none of that name.
        """
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
    def loras(self) -> Loras:
        """What requests may choose in place of the model as it was loaded."""
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

    @property
    def is_lost(self) -> bool:
        """It will never take requests again: only a new process helps."""
        ...

    async def submit(self, request: GenerationRequest) -> Generation:
        """Accept a request; the caller must iterate it to the end or cancel it.

        Raises:
            InvalidRequestError: A value does not fit this model.
            UnknownModelError: There is no such LoRA.
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
