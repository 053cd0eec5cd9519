"""The server that is fuzzed: a real one on loopback, over a tiny model, with a key.

``FUZZ_ENGINE=streaming`` takes the other engine. Whoever calls may register workers.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import ScriptedEmbedder
from faults.stage import Stage, own_threads
from tiny import tiny_loaded

from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.server.access import LOOPBACK
from dbgpt_guanaco.settings import AccessSettings, ClusterSettings, EngineSettings
from fuzzing.checks import ADMIN_KEY, KEY, Target

SETTINGS = EngineSettings(slots=8, queue_size=8, prefill_chunk_tokens=1024)
ACCESS = AccessSettings(api_keys=(KEY,), admin_key=ADMIN_KEY)
CLUSTER = ClusterSettings(worker_networks=LOOPBACK)
ENGINE = {"batching": BatchingEngine, "streaming": StreamingEngine}[
    os.environ.get("FUZZ_ENGINE", "batching")
]


@pytest.fixture(scope="module")
def target(llama_tokenizer: Any) -> Iterator[Target]:
    """A server; in the end everything that requests had is back."""
    before = own_threads()
    loaded = tiny_loaded(llama_tokenizer)
    engine = ENGINE(loaded, SETTINGS)
    engine.wait_until_warm()
    stage = Stage(engine, loaded, embedder=ScriptedEmbedder(), access=ACCESS, cluster=CLUSTER)
    target = Target(stage)
    yield target
    stage.assert_all_is_back()
    assert target.answers_as_ever()
    stage.close()
    stage.wait_until(lambda: own_threads() <= before)  # those of another test may end meanwhile
    print(f"\n{target.summary}")  # noqa: T201 - for the log of a long run
