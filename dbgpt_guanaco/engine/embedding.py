"""Texts → vectors: sentence-transformers in a thread of its own, batch by batch.

A request is cut into batches that fit in memory. Those of several requests take turns in the
order in which they come, so a large upload does not keep a short question waiting, and a
request whose client has left ends with the batch that runs.
"""

import asyncio
import logging
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from dbgpt_guanaco.adapters.embedding import LoadedEmbedder
from dbgpt_guanaco.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationFailedError,
    InvalidRequestError,
)
from dbgpt_guanaco.types import EmbeddingCard, Embeddings

logger = logging.getLogger(__name__)

T = TypeVar("T")

HALF_PAIR = re.compile("[\ud800-\udfff]")

# Texts times the tokens of the longest: what one forward pass takes. Its attention scores
# need 12 heads · 256 tokens · 4 bytes for each token, 100 MB in all, with all-MiniLM-L6-v2.
BATCH_TOKENS = 8192
MAX_BATCH = 64
# Of a text that is too long anyway, so many characters are tokenized for each token that is read. A
# word of more than 100 characters is one unknown token to BERT's tokenizers.
CHARACTERS_PER_TOKEN = 100


class SentenceEmbedder:
    """Answers embedding requests from one model, in one thread.

    Args:
        loaded: The model.
        max_requests: Requests that may be under way; one more is refused.
    """

    def __init__(self, loaded: LoadedEmbedder, max_requests: int) -> None:
        self.card: EmbeddingCard = loaded.card
        self._model = loaded.model
        self._max_requests, self._requests = max_requests, 0
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guanaco-embedder")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """See ``Embedder``."""
        if self._requests >= self._max_requests:
            raise EngineBusyError(self._requests, 0)
        if any(HALF_PAIR.search(text) for text in texts):
            raise InvalidRequestError("input", "holds half a surrogate pair")
        self._requests += 1
        try:
            return await self._embed(texts)
        finally:
            self._requests -= 1

    def close(self) -> None:
        """See ``Embedder``."""
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _embed(self, texts: Sequence[str]) -> Embeddings:
        longest = self.card.max_tokens * CHARACTERS_PER_TOKEN
        read = [text[:longest] for text in texts]
        lengths: list[int] = []
        for start in range(0, len(read), MAX_BATCH):
            some = read[start : start + MAX_BATCH]
            if len(some) == len(read):  # few: not two waits behind the batches of others
                return await self._in_thread(partial(self._count_and_encode, some))
            lengths += await self._in_thread(partial(self._count, some))
        vectors: dict[int, array[float]] = {}
        for batch in cut(lengths):
            rows = await self._in_thread(partial(self._encode, [read[i] for i in batch]))
            vectors |= zip(batch, rows, strict=True)
        return Embeddings(tuple(vectors[i] for i in range(len(read))), sum(lengths))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise EngineStoppedError
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except asyncio.CancelledError:
            if self._is_closed:  # the batch was dropped, the request was not
                raise EngineStoppedError from None
            raise
        except Exception as error:
            if self._is_closed:
                raise EngineStoppedError from None
            logger.exception("an embedding failed")
            raise GenerationFailedError("the embedding model failed; the log says why") from error

    def _count_and_encode(self, texts: list[str]) -> Embeddings:
        lengths = self._count(texts)
        vectors: dict[int, array[float]] = {}
        for batch in cut(lengths):
            vectors |= zip(batch, self._encode([texts[i] for i in batch]), strict=True)
        return Embeddings(tuple(vectors[i] for i in range(len(texts))), sum(lengths))

    def _count(self, texts: list[str]) -> list[int]:
        """Return how many tokens of each text are read."""
        encoded = self._model.tokenizer(texts, truncation=True, max_length=self.card.max_tokens)
        return [len(ids) for ids in encoded["input_ids"]]

    def _encode(self, texts: list[str]) -> list["array[float]"]:
        """Return the vectors of one batch, [n, dimension].

        Raises:
            ArithmeticError: A vector holds a NaN or an infinity.
        """
        encoded = self._model.encode(texts, batch_size=len(texts), show_progress_bar=False)
        rows = np.asarray(encoded, dtype=np.float32)
        if not np.isfinite(rows).all():
            raise ArithmeticError("a vector is not finite")
        # A quarter of what Python's own numbers would take, until they are written.
        return [array("f", row.tobytes()) for row in rows]


def cut(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut texts into batches that fit, texts of like length together, the longest first.

    Args:
        lengths: Tokens of each text.

    Yields:
        Indices of one batch. Padded to its longest text it has at most ``BATCH_TOKENS``
        tokens, or is one text.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        # The first is the longest, so it says what a row costs.
        most = min(MAX_BATCH, BATCH_TOKENS // max(1, lengths[batch[0]])) if batch else 1
        if batch and len(batch) >= most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
