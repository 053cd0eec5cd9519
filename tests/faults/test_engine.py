"""Every fault of an engine, through the real HTTP application, to a client of each dialect."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from watched import STUCK, let_time_pass

from dbgpt_guanaco.settings import LifeSettings
from faults.conftest import MakeStage
from faults.injections import FAULTS, Fault
from faults.matrix import Row
from faults.stage import DIALECTS, PATIENCE_S, Asked, Stage, described, own_threads, results

# A machine with other work is slow; one that has lost something needs for ever.
WORKS_AGAIN_WITHIN_S = 5.0
STRUCTURED = {"response_format": {"type": "json_object"}}
OPENAI_ONLY = "OpenAI"
# So that an answer takes longer than its client needs to see the first of it.
PASS_S = 0.02
STEP_TIMEOUT_S = LifeSettings().step_timeout_s
ENDS = "never: the process ends with 70 and is started again"


def wait_for_text(asked: list[Asked]) -> None:
    for each, dialect in zip(asked, DIALECTS, strict=True):
        assert not dialect.is_stream or each.has_text.wait(PATIENCE_S)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told_in_each_dialect_and_costs_nobody_else(
    fault: Fault, stage: Stage, monkeypatch: pytest.MonkeyPatch, record: Callable[[Row], None]
) -> None:
    if stage.where not in fault.engines:
        pytest.skip("it cannot happen there")
    when, threads = threading.Event(), own_threads()
    more: dict[str, Any] = STRUCTURED if fault.structured else {}
    with stage.all_begin_together():
        asked = [stage.ask(d, **(more if OPENAI_ONLY in d.name else {})) for d in DIALECTS]
        stage.wait_until(lambda: stage.engine.load.waiting == len(DIALECTS))
        fault.inject(stage, when, monkeypatch.setattr)
        if fault.is_in_prefill:
            when.set()
    if not fault.is_in_prefill:
        wait_for_text(asked)
        when.set()
    seen = results(asked)
    seconds = stage.works_again_after()

    struck = [s for s in seen if not fault.structured or OPENAI_ONLY in s.dialect.name]
    assert {each.problem for each in struck} <= set(fault.told), struck
    assert [s.in_short for s in seen if s not in struck] == ["the whole answer"] * (4 - len(struck))
    assert seconds < WORKS_AGAIN_WITHIN_S
    assert own_threads() <= threads
    stage.assert_all_is_back()
    record(Row(fault.name, stage.where, described(seen), seconds))


@pytest.mark.parametrize("kind", ["batching", "streaming"])
def test_a_thread_that_dies_tells_everybody_and_the_server_says_so(
    kind: str, make_stage: MakeStage, record: Callable[[Row], None]
) -> None:
    stage = make_stage(kind)

    def die() -> None:
        raise SystemExit("the thread dies")

    with stage.all_begin_together():
        asked = stage.ask_all()
        stage.wait_until(lambda: stage.engine.load.waiting == len(DIALECTS))
    wait_for_text(asked)
    stage.hook.before = die
    seen = results(asked)
    stage.wait_until(lambda: stage.engine.is_lost)
    ready = stage.client.get("/ready")
    late = stage.client.post("/v1/completions", json={"prompt": "x"})

    assert all("the engine has failed" in str(each.problem) for each in seen), seen
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    assert "the engine has failed" in ready.json()["problem"]
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    record(Row("the engine's thread dies", stage.where, described(seen), ENDS, "the engine"))


@pytest.mark.parametrize("kind", ["batching", "streaming"])
@pytest.mark.parametrize("returns", [True, False], ids=["it returns", "it never returns"])
def test_a_step_that_hangs_is_told_and_survived_if_it_returns(
    kind: str, returns: bool, make_stage: MakeStage, record: Callable[[Row], None]
) -> None:
    stage, when, hangs, go = make_stage(kind), *(threading.Event() for _ in range(3))

    def hang() -> None:
        time.sleep(PASS_S)
        if when.is_set():
            stage.hook.clear()
            hangs.set()
            go.wait(PATIENCE_S)

    stage.hook.before = hang
    asked = stage.ask_all()
    wait_for_text(asked)
    when.set()
    assert hangs.wait(PATIENCE_S)
    let_time_pass(stage.engine, STEP_TIMEOUT_S + 1)
    seen = results(asked)
    ready = stage.client.get("/ready")
    late = stage.client.post("/v1/completions", json={"prompt": "x"})
    if not returns:
        let_time_pass(stage.engine, STEP_TIMEOUT_S)
        assert stage.engine.is_lost
    go.set()

    assert all(STUCK in str(each.problem) for each in seen), seen
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    assert STUCK in ready.json()["problem"]
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    next_after: float | str = ENDS
    if returns:
        next_after = stage.works_again_after()
        assert next_after < WORKS_AGAIN_WITHIN_S
        stage.assert_all_is_back()
    name = f"a step hangs; {'it returns after all' if returns else 'it never returns'}"
    record(
        Row(name, stage.where, described(seen), next_after, "nothing" if returns else "the engine")
    )
