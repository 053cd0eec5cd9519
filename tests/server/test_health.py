from typing import Any

import pytest
from fakes import ScriptedEngine

from dbgpt_guanaco.server.app import create_app


@pytest.mark.parametrize(("path", "word"), [("/health", "ok"), ("/ready", "ready")])
async def test_a_server_says_how_busy_it_is(connect: Any, path: str, word: str) -> None:
    response = await connect(ScriptedEngine()).get(path)

    assert response.json() == {
        "status": word, "model": "scripted", "running": 1, "waiting": 2, "slots": 5,
        "queue_size": 64, "kv_blocks": 0, "kv_blocks_free": 0, "kv_usage": 0.0,
        "prompt_tokens": 0, "cached_tokens": 0, "generation_tokens": 0, "preemptions": 0,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_dead_engine_is_a_503(connect: Any, path: str) -> None:
    engine = ScriptedEngine()
    engine.is_alive, engine.problem = False, "it is being rebuilt"

    response = await connect(engine).get(path)

    assert response.status_code == 503
    assert response.json()["status"] == "failed"
    assert response.json()["problem"] == "it is being rebuilt"


async def test_the_app_closes_its_engine() -> None:
    engine = ScriptedEngine()
    app = create_app(engine)

    async with app.router.lifespan_context(app):
        assert not engine.is_closed
    assert engine.is_closed
