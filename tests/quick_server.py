"""The real server, started as a person starts it, over a scripted engine: ready in a second.

``python quick_server.py`` reads the usual settings. An answer is as many words as it may have
tokens, said slowly. The times of the cluster are shortened, all in the same measure. Where
``QUICK_LOAD`` names a pipe, loading lasts until something is written there, and fails if that is
the name of a way to fail. ``wasteful`` leaves 100 MB behind that were freed, with holes in them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

from fakes import ScriptedEmbedder, ScriptedEngine, ScriptedGeneration

from dbgpt_guanaco.errors import EngineStoppedError, ModelLoadError
from dbgpt_guanaco.server import graceful, instances, registration
from dbgpt_guanaco.server.__main__ import main
from dbgpt_guanaco.start import StartProgress, Tell
from dbgpt_guanaco.types import GenerationRequest, TextDelta

WORD_S = 0.05
FASTER = 30  # times as fast as real


class SlowGeneration(ScriptedGeneration):
    """Says a word every twentieth of a second, until its engine is closed."""

    async def _deltas(self) -> AsyncIterator[TextDelta]:
        async for delta in super()._deltas():
            await asyncio.sleep(WORD_S)
            if ENGINE.is_closed:
                raise EngineStoppedError
            yield delta


class SlowEngine(ScriptedEngine):
    """Takes its time; dies for a while (SIGUSR1) or for good (SIGUSR2) when it is told so."""

    async def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        self.requests.append(request)
        words = ["word "] * (request.sampling.max_new_tokens or 1)
        return SlowGeneration(words, endless=False, logprobs=False)

    def die(self, *, for_good: bool) -> None:
        self.is_alive, self.is_lost = False, for_good
        self.problem = "told to die"


def create_engine(_: object, tell: Tell) -> SlowEngine:
    if pipe := os.environ.get("QUICK_LOAD"):
        tell(StartProgress("waiting to be told", 1, 2, "words"))
        outcome = Path(pipe).read_text()
        if error := FAILURES.get(outcome):
            raise error
        if outcome == "wasteful":
            PINS.extend([bytes(1000) for _ in range(100_000)][::100])
    return ENGINE


def create_embedder(_: object, tell: Tell) -> ScriptedEmbedder:
    return ScriptedEmbedder()


ENGINE = SlowEngine()
PINS: list[bytes] = []
FAILURES: dict[str, Exception] = {
    "setting": ModelLoadError("there is no such model; set LLM_MODEL"),
    "bug": ZeroDivisionError("a bug"),
}


def quicken() -> None:
    """Make heartbeats, and what is concluded from their absence, faster."""
    registration.LEAST_BEAT_S /= FASTER
    registration.MOST_BEAT_S /= FASTER
    registration.FIRST_RETRY_S /= FASTER
    registration.LAST_RETRY_S /= FASTER
    registration.LOOK_S /= FASTER
    instances.SILENT_AFTER_S /= FASTER
    graceful.LAST_WORDS_S /= FASTER
    registration.LINGER_S = 1.0  # longer: a busy machine must not miss it


if __name__ == "__main__":
    factory = ModuleType("dbgpt_guanaco.engine.factory")
    vars(factory).update(create_engine=create_engine, create_embedder=create_embedder)
    sys.modules[factory.__name__] = factory
    signal.signal(signal.SIGUSR1, lambda *_: ENGINE.die(for_good=False))
    signal.signal(signal.SIGUSR2, lambda *_: ENGINE.die(for_good=True))
    quicken()
    sys.exit(main())
