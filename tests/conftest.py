"""Models that many tests share, loaded once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings as hypothesis_settings
from tokenizers_for_tests import train_llama_tokenizer

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.demo import ensure_demo_model
from dbgpt_guanaco.adapters.loading import LoadedModel, load_model
from dbgpt_guanaco.adapters.resolve import resolve
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.settings import DEMO_MODEL, EngineSettings, ModelSettings

# The same examples in every run: a red suite must be red again when somebody looks.
hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis_settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _demo_model_is_there() -> None:
    """Many tests read its files, and a fresh clone has only the package that they come in."""
    ensure_demo_model(ROOT / "models" / DEMO_MODEL)


@pytest.fixture(scope="session")
def demo_model() -> LoadedModel:
    """The demo model in NF4, as a newcomer's first start loads it."""
    settings = ModelSettings(models_dir=ROOT / "models", device="cpu")
    return load_model(resolve(settings), settings, default_registry())


@pytest.fixture(scope="session")
def demo_engine(demo_model: LoadedModel) -> Iterator[StreamingEngine]:
    """One engine for all tests that only ask it questions."""
    engine = StreamingEngine(demo_model, EngineSettings(slots=4, queue_size=8))
    engine.wait_until_warm()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model: LoadedModel) -> Any:
    """Byte-level BPE."""
    return demo_model.tokenizer


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sentencepiece with byte fallback."""
    return train_llama_tokenizer(tmp_path_factory.mktemp("llama-tokenizer"))


@contextlib.contextmanager
def started_server(folder: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run ``python -m dbgpt_guanaco.server`` in a folder; yield its address and its process.

    ``settings`` go into its environment; without them it serves the demo model. In the end it
    is told to stop, and its log is searched for what must not be there.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GUANACO_")},
        "MODEL_PORT": str(port),
        "GUANACO_MODELS_DIR": str(ROOT / "models"),
        "GUANACO_DEVICE": "cpu",
        "GUANACO_ALIASES": "gpt-3.5-turbo",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("LLM_MODEL", None)
    environment |= settings
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dbgpt_guanaco.server"],
            cwd=folder,  # no .env here: the demo model is served
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process, log)
        assert "dbgpt_guanaco is ready" in log.read_text()
        yield address, process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
    text = log.read_text()
    assert "Traceback" not in text
    assert "ERROR" not in text
    assert "capital" not in text  # neither prompts nor answers are logged


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        time.sleep(0.1)


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A server for all tests that only ask it questions: its address and process id."""
    with started_server(tmp_path_factory.mktemp("server")) as (address, process):
        yield address, process.pid


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that a test may stop."""
    with started_server(tmp_path) as started:
        yield started
