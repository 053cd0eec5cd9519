"""The real server, started as a person starts it, over a scripted engine: ready in a second.

``python quick_server.py`` reads the usual settings. An answer is as many words as it may have
tokens, said slowly. The times of the cluster are shortened, all in the same measure.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from types import ModuleType

from fakes import ScriptedEmbedder, ScriptedEngine, ScriptedGeneration

from dbgpt_guanaco.server import instances, registration
from dbgpt_guanaco.server.__main__ import main
from dbgpt_guanaco.types import GenerationRequest, TextDelta

WORD_S = 0.05
FASTER = 30  # times as fast as real


class SlowGeneration(ScriptedGeneration):
    """Says a word every twentieth of a second."""

    async def _deltas(self) -> AsyncIterator[TextDelta]:
        async for delta in super()._deltas():
            await asyncio.sleep(WORD_S)
            yield delta


class SlowEngine(ScriptedEngine):
    """Takes its time, and dies when the process is told so (SIGUSR1)."""

    async def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        self.requests.append(request)
        words = ["word "] * (request.sampling.max_new_tokens or 1)
        return SlowGeneration(words, endless=False, logprobs=False)

    def die(self) -> None:
        self.is_alive = False


def create_engine(_: object) -> SlowEngine:
    engine = SlowEngine()
    signal.signal(signal.SIGUSR1, lambda *_: engine.die())
    return engine


def create_embedder(_: object) -> ScriptedEmbedder:
    return ScriptedEmbedder()


def quicken() -> None:
    """Make heartbeats, and what is concluded from their absence, faster."""
    registration.LEAST_BEAT_S /= FASTER
    registration.MOST_BEAT_S /= FASTER
    registration.FIRST_RETRY_S /= FASTER
    registration.LAST_RETRY_S /= FASTER
    registration.LOOK_S /= FASTER
    instances.SILENT_AFTER_S /= FASTER
    registration.LINGER_S = 1.0  # longer: a busy machine must not miss it


if __name__ == "__main__":
    factory = ModuleType("dbgpt_guanaco.engine.factory")
    vars(factory).update(create_engine=create_engine, create_embedder=create_embedder)
    sys.modules[factory.__name__] = factory
    quicken()
    sys.exit(main())
