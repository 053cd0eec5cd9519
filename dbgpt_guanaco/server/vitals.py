"""How the engine is doing: the one place where ``/health``, the chat page and ``/metrics`` look."""

from dataclasses import dataclass
from typing import Any

from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.types import EngineLoad


@dataclass(frozen=True, slots=True)
class Vitals:
    """The engine at one moment.

    Attributes:
        generation_tokens: Tokens of all answers so far, as they were read.
    """

    load: EngineLoad
    generation_tokens: int

    @classmethod
    def of(cls, engine: Engine, generation_tokens: int) -> "Vitals":
        """Look at an engine."""
        return cls(engine.load, generation_tokens)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks of keys and values that requests hold, from 0 to 1."""
        blocks = self.load.kv_blocks
        return (blocks - self.load.kv_blocks_free) / blocks if blocks else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return what ``/health`` tells."""
        load = self.load
        return {
            "running": load.running,
            "waiting": load.waiting,
            "slots": load.slots,
            "queue_size": load.queue_size,
            "kv_blocks": load.kv_blocks,
            "kv_blocks_free": load.kv_blocks_free,
            "kv_usage": round(self.kv_usage, 4),
            "prompt_tokens": load.prompt_tokens,
            "cached_tokens": load.cached_tokens,
            "generation_tokens": self.generation_tokens,
            "preemptions": load.preemptions,
        }
