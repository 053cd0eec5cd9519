"""Where faults are injected, and where their rows are kept."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.settings import EngineSettings
from faults import matrix
from faults.matrix import Row
from faults.stage import Stage

OPTION = "--write-matrix"
ROWS = pytest.StashKey[list[Row]]()
ENGINES: dict[str, Any] = {"batching": BatchingEngine, "streaming": StreamingEngine}
SETTINGS = EngineSettings(slots=8, queue_size=8, prefill_chunk_tokens=1024)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="write docs/faults.md from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption(OPTION, default=False) and exitstatus == 0:
        rows = session.config.stash[ROWS]
        matrix.write(rows)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Keep a row; unless the matrix is being written, it must stand there already."""
    config = request.config

    def keep(row: Row) -> None:
        config.stash[ROWS].append(row)
        if not config.getoption(OPTION, default=False):
            assert row.claim in matrix.written_claims(), "pytest tests/faults --write-matrix"

    return keep


MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage(llama_tokenizer: Any) -> Iterator[MakeStage]:
    stages = []

    def make(kind: str) -> Stage:
        loaded = tiny_loaded(llama_tokenizer, stop_token_ids=frozenset())
        engine = ENGINES[kind](loaded, SETTINGS)
        engine.wait_until_warm()
        stages.append(Stage(engine, loaded))
        return stages[-1]

    yield make
    for stage in stages:
        stage.hook.clear()
        stage.close()


@pytest.fixture(scope="module", params=ENGINES)
def stage(request: pytest.FixtureRequest, llama_tokenizer: Any) -> Iterator[Stage]:
    """One engine for all faults that it survives."""
    loaded = tiny_loaded(llama_tokenizer, stop_token_ids=frozenset())
    engine = ENGINES[request.param](loaded, SETTINGS)
    engine.wait_until_warm()
    stage = Stage(engine, loaded)
    yield stage
    stage.close()
