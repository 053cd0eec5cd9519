"""Faults that an engine survives: each is put in its place by a function, and takes itself out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.sampling import Sampler
from dbgpt_guanaco.engine.structure import _Matcher
from faults.matrix import ENGINES
from faults.stage import DIALECTS, PATIENCE_S, Stage

# Passes of an answer after which its client should have seen some text.
SOON = 30
FAILED = "the model failed on this request; the log says why"
NO_MEMORY = "the device has no memory left for this request"
NO_MEMORY_OF_2023 = "**GPU OutOfMemory, Please Refresh.**"

Patch = Callable[[object, str, object], None]


class Strike:
    """Fails some calls, then none.

    Args:
        error: What is raised.
        times: So often.
        when: Set when it may begin.
        patience: Calls after which that is waited for.
    """

    def __init__(
        self, error: BaseException, times: int, when: threading.Event, patience: int
    ) -> None:
        self._error, self._left, self._when = error, times, when
        self._patience, self._calls = patience, 0

    def __call__(self) -> None:
        self._calls += 1
        if self.is_due:
            self._left -= 1
            raise self._error

    @property
    def is_due(self) -> bool:
        if self._left <= 0:
            return False
        if self._calls > self._patience:
            self._when.wait(PATIENCE_S)
        return self._when.is_set()


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the matrix.

    Attributes:
        inject: Puts it in its place; it strikes when the event is set.
        told: The error in every client's answer, or one of these.
        is_in_prefill: It strikes before there is any text.
        engines: Where it can happen.
        structured: The answers are to follow a structure, where a dialect has that.
    """

    name: str
    inject: Callable[[Stage, threading.Event, Patch], None]
    told: tuple[str, ...] = (FAILED,)
    is_in_prefill: bool = False
    engines: tuple[str, ...] = ENGINES
    structured: bool = False


def times(stage: Stage) -> int:
    """In how many passes all four answers take part: they share one, or have one each."""
    return 1 if stage.is_batching else len(DIALECTS)


def patience(stage: Stage) -> int:
    """After how many passes each answer should have some text."""
    return SOON * times(stage)


def in_pass(error: BaseException, more: int = 0) -> Callable[[Stage, threading.Event, Patch], None]:
    def inject(stage: Stage, when: threading.Event, _: Patch) -> None:
        stage.hook.before = Strike(error, times(stage) + more, when, patience(stage))

    return inject


def no_memory_for_prompts(stage: Stage, when: threading.Event, patch: Patch) -> None:
    """Strike the second try as well, in which the batching engine takes half of the prompts."""
    again = int(stage.is_batching)
    in_pass(no_memory(), more=again)(stage, when, patch)


def nan_logits(stage: Stage, when: threading.Event, _: Patch) -> None:
    strike, poisoned = Strike(ArithmeticError(), times(stage), when, patience(stage)), list[bool]()

    def mark() -> None:
        try:
            strike()
        except ArithmeticError:
            poisoned.append(True)

    def poison(output: Any) -> None:
        if poisoned:
            poisoned.pop()
            output.logits.fill_(float("nan"))

    stage.hook.before, stage.hook.behind = mark, poison


def in_scheduler(stage: Stage, when: threading.Event, patch: Patch) -> None:
    scheduler = stage.engine._machinery.scheduler  # type: ignore[union-attr] # batching only
    fail_in(scheduler, "schedule", Strike(RuntimeError("no step"), 1, when, SOON), patch)


def in_sampler(stage: Stage, when: threading.Event, patch: Patch) -> None:
    strike = Strike(RuntimeError("no draw"), times(stage), when, patience(stage))
    if stage.is_batching:
        fail_in(stage.engine._machinery.sampler, "draw", strike, patch)  # type: ignore[union-attr]
    else:
        fail_in(Sampler, "__call__", strike, patch)


def in_detokenizer(_: Stage, when: threading.Event, patch: Patch) -> None:
    fail_in(
        Answer,
        "feed",
        Strike(RuntimeError("no text"), len(DIALECTS), when, SOON * len(DIALECTS)),
        patch,
    )


def in_mask(_: Stage, when: threading.Event, patch: Patch) -> None:
    fail_in(_Matcher, "fill", Strike(RuntimeError("no mask"), 2, when, SOON), patch)


def fail_in(owner: object, name: str, strike: Strike, patch: Patch) -> None:
    """Let a method fail when it is struck."""
    right = getattr(owner, name)

    def struck(*args: Any, **options: Any) -> Any:
        strike()
        return right(*args, **options)

    patch(owner, name, struck)


def no_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory")


OOM = (NO_MEMORY, NO_MEMORY_OF_2023)
FAULTS = (
    Fault("out of memory in prefill", no_memory_for_prompts, OOM, is_in_prefill=True),
    Fault("out of memory in decode", in_pass(no_memory()), OOM),
    Fault("an exception in the model's pass, in prefill", in_pass(RuntimeError("no")),
          is_in_prefill=True),
    Fault("an exception in the model's pass, in decode", in_pass(RuntimeError("no"))),
    Fault("two failing steps in a row: the engine is rebuilt", in_pass(RuntimeError("no"), more=1),
          engines=("batching engine",)),
    Fault("NaN logits in prefill", nan_logits, is_in_prefill=True),
    Fault("NaN logits in decode", nan_logits),
    Fault("an exception in the scheduler", in_scheduler, engines=("batching engine",)),
    Fault("an exception in the sampler", in_sampler),
    Fault("an exception in the detokenizer", in_detokenizer),
    Fault("an exception in a structure's mask", in_mask, is_in_prefill=True,
          structured=True),
)  # fmt: skip
