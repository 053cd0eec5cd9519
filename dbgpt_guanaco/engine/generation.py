"""A generation between the engine's thread, which writes it, and an event loop, which reads it."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from dbgpt_guanaco.adapters.lora import Lora
from dbgpt_guanaco.engine.structure import StructureMatcher
from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.types import GenerationRequest, TextDelta, Usage

logger = logging.getLogger(__name__)


class StreamingGeneration:
    """One request being answered by an engine's thread."""

    def __init__(
        self,
        request: GenerationRequest,
        input_ids: Sequence[int],
        max_new_tokens: int,
        give_up: Callable[["StreamingGeneration"], bool],
        decode: Callable[[Sequence[int]], str],
        matcher: StructureMatcher | None = None,
        *,
        stop_token_ids: frozenset[int] = frozenset(),
        lora: Lora | None = None,
    ) -> None:
        self.request, self.input_ids, self.max_new_tokens = request, input_ids, max_new_tokens
        self.matcher, self.lora = matcher, lora
        self.stop_token_ids = stop_token_ids | set(request.sampling.stop_token_ids)
        self.is_cancelled = False
        self.cancelled_at_s: float | None = None
        self._give_up, self._decode = give_up, decode
        self.loop = asyncio.get_running_loop()
        self.deltas: asyncio.Queue[TextDelta | GuanacoError] = asyncio.Queue()

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values this request may come to need."""
        return len(self.input_ids) + self.max_new_tokens

    @property
    def cache_salt(self) -> str:
        """Only generations of one salt share keys and values; those of a LoRA are its own."""
        own = f" {self.lora.key}" if self.lora else ""
        return self.request.cache_salt + own

    @property
    def prompt_text(self) -> str:
        """See ``Generation``."""
        return self._decode(self.input_ids)

    @property
    def prompt_tokens(self) -> int:
        """See ``Generation``."""
        return len(self.input_ids)

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """See ``Generation``."""
        return self._read()

    async def _read(self) -> AsyncIterator[TextDelta]:
        while True:
            item = await self.deltas.get()
            if isinstance(item, GuanacoError):
                raise item
            yield item
            if item.is_last:
                return

    def cancel(self) -> None:
        """See ``Generation``. A waiting request gives up its place at once."""
        self.cancelled_at_s = self.cancelled_at_s or time.monotonic()
        self.is_cancelled = True
        if self._give_up(self):
            self.post(TextDelta("", Usage(self.prompt_tokens, 0), "cancelled"))

    def post(self, item: TextDelta | GuanacoError) -> None:
        """Hand something to the reader, from any thread; a loop that is gone reads nothing."""
        try:
            self.loop.call_soon_threadsafe(self.deltas.put_nowait, item)
        except RuntimeError:
            logger.debug("request %s: nobody is left to read", self.request.request_id)


def post_all(items: Iterable[tuple[StreamingGeneration, TextDelta | GuanacoError]]) -> None:
    """Hand something to many readers, waking each event loop once."""
    by_loop = defaultdict(list)
    for generation, item in items:
        by_loop[generation.loop].append((generation.deltas, item))
    for loop, posts in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put_all, posts)
        except RuntimeError:
            logger.debug("nobody is left to read %d deltas", len(posts))


def _put_all(
    posts: Iterable[tuple[asyncio.Queue[TextDelta | GuanacoError], TextDelta | GuanacoError]],
) -> None:
    for deltas, item in posts:
        deltas.put_nowait(item)
