"""How far a start has come: told by whoever loads, read by whoever is asked meanwhile."""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True, slots=True)
class StartProgress:
    """How far a start has come.

    Attributes:
        stage: What is being done, in words.
        done: How many of ``total`` are done; both are 0 where nothing can be counted.
        total: How many there are in this stage.
        unit: What is counted: ``bytes``, ``tensors``.
    """

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""

    def __str__(self) -> str:
        counted = f", {self.done:,} of {self.total:,} {self.unit}" if self.total else ""
        return self.stage + counted


Tell = Callable[[StartProgress], None]


def tell_nobody(_: StartProgress) -> None:
    """Let nobody know."""


class Countable(Sized, Protocol[Item]):
    """Something of a known length to go through."""

    def __iter__(self) -> Iterator[Item]: ...


def counted(items: Countable[Item], stage: str, unit: str, tell: Tell) -> Iterator[Item]:
    """Go through some items, and tell of each before it and of the end."""
    for done, item in enumerate(items):
        tell(StartProgress(stage, done, len(items), unit))
        yield item
    tell(StartProgress(stage, len(items), len(items), unit))
