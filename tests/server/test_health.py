from typing import Any

import pytest
from fakes import ScriptedEngine

from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.start import StartProgress


@pytest.mark.parametrize(("path", "word"), [("/health", "ok"), ("/ready", "ready")])
async def test_a_server_says_how_busy_it_is(connect: Any, path: str, word: str) -> None:
    response = await connect(ScriptedEngine()).get(path)

    assert response.json() == {
        "status": word, "model": "scripted", "running": 1, "waiting": 2, "slots": 5,
        "queue_size": 64, "kv_blocks": 0, "kv_blocks_free": 0, "kv_usage": 0.0,
        "prompt_tokens": 0, "cached_tokens": 0, "generation_tokens": 0, "preemptions": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 503)])
async def test_a_process_lives_while_its_engine_is_being_rebuilt(
    connect: Any, path: str, status: int
) -> None:
    engine = ScriptedEngine()
    engine.is_alive, engine.problem = False, "it is being rebuilt"

    response = await connect(engine).get(path)

    assert response.status_code == status
    assert response.json()["status"] == "failed"
    assert response.json()["problem"] == "it is being rebuilt"


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_an_engine_that_will_not_come_back_is_a_503(connect: Any, path: str) -> None:
    engine = ScriptedEngine()
    engine.is_alive, engine.is_lost = False, True

    response = await connect(engine).get(path)

    assert response.status_code == 503
    assert response.json()["status"] == "failed"


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 503)])
async def test_progress_is_told_while_the_model_is_loaded(
    connect: Any, path: str, status: int
) -> None:
    now = iter([100.0, 103.21])
    life = LifeCycle(clock=lambda: next(now))
    life.tell(StartProgress("loading weights", 120, 272, "tensors"))

    response = await connect(life).get(path)

    assert response.status_code == status
    assert response.headers.get("retry-after") == {200: None, 503: "5"}[status]
    assert response.json() == {
        "status": "loading", "stage": "loading weights", "done": 120, "total": 272,
        "unit": "tensors", "seconds": 3.2,
    }  # fmt: skip


async def test_who_is_told_to_stop_is_ready_no_more_and_still_says_what_runs(connect: Any) -> None:
    life = LifeCycle.of(ScriptedEngine())
    life.leave()

    response = await connect(life).get("/ready")

    assert response.status_code == 503
    assert (response.json()["status"], response.json()["running"]) == ("draining", 1)


async def test_the_app_closes_its_engine() -> None:
    engine = ScriptedEngine()
    app = create_app(engine)

    async with app.router.lifespan_context(app):
        assert not engine.is_closed
    assert engine.is_closed
