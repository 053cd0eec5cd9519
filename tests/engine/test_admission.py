import threading
import time
from dataclasses import dataclass

import pytest

from dbgpt_guanaco.engine.admission import Admission
from dbgpt_guanaco.errors import EngineBusyError, EngineStoppedError
from dbgpt_guanaco.types import DEPARTURE_BOUNDS_S


@dataclass(frozen=True)
class Item:
    name: str
    kv_tokens: int = 10
    cancelled_at_s: float | None = None


def entered(admission: Admission[Item], *names: str, kv_tokens: int = 10) -> list[Item]:
    items = [Item(name, kv_tokens) for name in names]
    for item in items:
        admission.enter(item)
    return items


def test_they_run_in_the_order_in_which_they_came() -> None:
    admission: Admission[Item] = Admission(slots=2, queue_size=5, kv_tokens=1000)
    a, b, c = entered(admission, "a", "b", "c")

    assert [admission.next(wait=False) for _ in range(3)] == [a, b, None]
    admission.leave(a)
    assert admission.next(wait=False) is c


def test_who_left_is_counted_by_the_time_until_the_slot_was_free() -> None:
    admission: Admission[Item] = Admission(slots=3, queue_size=0, kv_tokens=1000)
    left_s = time.monotonic() - 0.3
    stayed, left, waits = Item("stayed"), Item("left", 10, left_s), Item("waits", 10, left_s)
    for item in (stayed, left, waits):
        admission.enter(item)
    admission.next(wait=False)
    admission.next(wait=False)

    for item in (stayed, left, left):
        admission.leave(item)
    admission.give_up(waits)

    assert sum(admission.load.departures) == 1
    assert admission.load.departures[DEPARTURE_BOUNDS_S.index(0.5)] == 1
    assert 0.3 <= admission.load.departures_s < 0.5


def test_one_more_than_slots_and_places_is_refused() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=1, kv_tokens=1000)
    entered(admission, "a", "b")

    with pytest.raises(EngineBusyError, match="0 running and 2 waiting"):
        admission.enter(Item("c"))


def test_without_queue_places_a_free_slot_can_still_be_had() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=0, kv_tokens=1000)
    (a,) = entered(admission, "a")
    with pytest.raises(EngineBusyError):
        admission.enter(Item("b"))

    assert admission.next(wait=False) is a
    admission.leave(a)
    entered(admission, "b")


def test_who_needs_more_memory_than_is_free_waits_and_is_not_overtaken() -> None:
    admission: Admission[Item] = Admission(slots=5, queue_size=5, kv_tokens=100)
    (small,) = entered(admission, "small", kv_tokens=40)
    (large,) = entered(admission, "large", kv_tokens=70)
    (tiny,) = entered(admission, "tiny", kv_tokens=1)

    assert admission.next(wait=False) is small
    assert admission.next(wait=False) is None
    admission.leave(small)
    assert admission.next(wait=False) is large
    assert admission.next(wait=False) is tiny


def test_leaving_twice_frees_one_slot() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=5, kv_tokens=100)
    a, b, c = entered(admission, "a", "b", "c")
    admission.next(wait=False)
    admission.leave(a)
    admission.leave(a)

    assert admission.next(wait=False) is b
    assert admission.next(wait=False) is None
    assert admission.give_up(c)
    assert admission.load.waiting == 0


def test_who_gives_up_leaves_the_queue_but_not_a_slot() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=5, kv_tokens=100)
    running, waiting = entered(admission, "running", "waiting")
    admission.next(wait=False)

    assert admission.give_up(waiting)
    assert not admission.give_up(waiting)
    assert not admission.give_up(running)
    assert (admission.load.running, admission.load.waiting) == (1, 0)


def test_waiting_for_somebody_ends_when_one_comes_or_it_closes() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=5, kv_tokens=100)
    got: list[Item | None] = []

    def wait_twice() -> None:
        got.append(admission.next(wait=True))
        assert got[0]
        admission.leave(got[0])
        got.append(admission.next(wait=True))

    thread = threading.Thread(target=wait_twice)
    thread.start()
    (a,) = entered(admission, "a")
    while admission.load.waiting or admission.load.running:
        pass
    admission.close()
    thread.join(5)

    assert got == [a, None]


def test_a_closed_queue_returns_who_waited_and_lets_nobody_in() -> None:
    admission: Admission[Item] = Admission(slots=1, queue_size=5, kv_tokens=100)
    _, b = entered(admission, "a", "b")
    admission.next(wait=False)

    assert admission.close() == [b]
    assert admission.is_closed
    with pytest.raises(EngineStoppedError):
        admission.enter(Item("c"))
