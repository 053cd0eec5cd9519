"""A generation between the engine's thread, which writes it, and an event loop, which reads it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from dbgpt_guanaco.errors import GuanacoError
from dbgpt_guanaco.types import GenerationRequest, TextDelta, Usage

logger = logging.getLogger(__name__)


class StreamingGeneration:
    """One request being answered by a ``StreamingEngine``."""

    def __init__(
        self,
        request: GenerationRequest,
        input_ids: Sequence[int],
        max_new_tokens: int,
        give_up: Callable[["StreamingGeneration"], bool],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.request, self.input_ids, self.max_new_tokens = request, input_ids, max_new_tokens
        self.is_cancelled = False
        self._give_up, self._decode = give_up, decode
        self._loop = asyncio.get_running_loop()
        self._deltas: asyncio.Queue[TextDelta | GuanacoError] = asyncio.Queue()

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values this request may come to need."""
        return len(self.input_ids) + self.max_new_tokens

    @property
    def prompt_text(self) -> str:
        """See ``Generation``."""
        return self._decode(self.input_ids)

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """See ``Generation``."""
        return self._read()

    async def _read(self) -> AsyncIterator[TextDelta]:
        while True:
            item = await self._deltas.get()
            if isinstance(item, GuanacoError):
                raise item
            yield item
            if item.is_last:
                return

    def cancel(self) -> None:
        """See ``Generation``. A waiting request gives up its place at once."""
        self.is_cancelled = True
        if self._give_up(self):
            self.post(TextDelta("", Usage(len(self.input_ids), 0), "cancelled"))

    def post(self, item: TextDelta | GuanacoError) -> None:
        """Hand something to the reader, from any thread; a loop that is gone reads nothing."""
        try:
            self._loop.call_soon_threadsafe(self._deltas.put_nowait, item)
        except RuntimeError:
            logger.debug("request %s: nobody is left to read", self.request.request_id)
