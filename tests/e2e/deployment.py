"""This server and DB-GPT beside it, as a user of one machine starts them."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.processes import Program, free_port, started
from e2e.ways import Way

ROOT = Path(__file__).parent.parent.parent
GUANACO_PYTHON = os.environ.get("GUANACO_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
DBGPT = Path(sys.executable).with_name("dbgpt")
TIKTOKEN = Path(sys.prefix) / "tiktoken"
MODEL = "smollm2-135m-instruct"
START_S = 180.0


@dataclass(frozen=True)
class Deployment:
    """What is running for one way."""

    way: Way
    guanaco: Program
    web: Program

    @property
    def running(self) -> int:
        """How many requests our server is answering."""
        return int(self.guanaco.get("/health").json()["running"])

    def sent_by_dbgpt(self, start: int) -> str:
        """Return what DB-GPT says, after a place in its log, that it sends to the model."""
        _, _, request = self.web.log[start:].partition("payload request:")
        return request.partition("\n20")[0]  # up to the next line with a date


@contextlib.contextmanager
def deployed(way: Way, folder: Path) -> Iterator[Deployment]:
    """Start what a way needs, in the order of its comments, and end it in reverse."""
    with contextlib.ExitStack() as programs:
        settings: dict[str, str] = {}
        if way.has_dbgpt_controller:
            controller = programs.enter_context(started_controller(way, folder / "controller"))
            settings["GUANACO_CONTROLLER"] = controller.address
        guanaco = programs.enter_context(started_guanaco(folder / "guanaco", settings))
        addresses = {"MODEL_SERVER": guanaco.address}
        if way.has_dbgpt_controller:
            addresses["CONTROLLER_PORT"] = controller.address.rpartition(":")[2]
        web = programs.enter_context(started_web_server(way, folder / "web", addresses))
        yield Deployment(way, guanaco, web)


@contextlib.contextmanager
def started_guanaco(
    folder: Path, settings: Mapping[str, str], port: int | None = None
) -> Iterator[Program]:
    """Run this server with the demo model, until it takes requests."""
    port = port or free_port()
    environment = _environment(folder) | {
        "MODEL_PORT": str(port),
        "GUANACO_MODELS_DIR": str(ROOT / "models"),
        "GUANACO_DEVICE": "cpu",
        # DB-GPT's OpenAI client leaves out a temperature of 0, and tests want one answer.
        "TEMPERATURE": "0",
        **settings,
    }
    command = [GUANACO_PYTHON, "-m", "dbgpt_guanaco.server"]
    with started(command, environment, folder, port) as guanaco:
        guanaco.wait_until(lambda: guanaco.is_up("/ready"), "our server is ready", START_S)
        yield guanaco


@contextlib.contextmanager
def started_controller(way: Way, folder: Path) -> Iterator[Program]:
    """Run DB-GPT's own model controller."""
    port = free_port()
    environment = _environment(folder) | {"CONTROLLER_PORT": str(port)}
    command: list[str | Path] = [DBGPT, "start", "controller", "--config", way.config]
    with started(command, environment, folder, port) as controller:
        controller.wait_until(
            lambda: controller.is_up("/api/health"), "DB-GPT's controller is up", START_S
        )
        yield controller


@contextlib.contextmanager
def started_web_server(way: Way, folder: Path, addresses: Mapping[str, str]) -> Iterator[Program]:
    """Run DB-GPT's web server on an example file, until it lists our model."""
    port = free_port()
    environment = _environment(folder) | {"WEB_SERVER_PORT": str(port), **addresses}
    command: list[str | Path] = [DBGPT, "start", "webserver", "--config", way.config]
    with started(command, environment, folder, port) as web:
        web.wait_until(
            # It answers /api/health long before it has its models.
            lambda: web.is_up("/api/v1/model/types", f'"{MODEL}"'),
            "DB-GPT's web server lists our model",
            START_S,
        )
        yield web


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which nothing is found but what tests have put there.

    DB-GPT keeps its databases, logs and vectors under its home, so each start is the first one. A
    proxy that is not there keeps it from the internet.
    """
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "DBGPT_HOME": str(folder / "dbgpt"),
        "TIKTOKEN_CACHE_DIR": str(TIKTOKEN),
        "HF_HUB_OFFLINE": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "no_proxy": "127.0.0.1,localhost",
    }
