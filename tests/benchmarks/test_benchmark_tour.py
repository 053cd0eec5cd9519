import os
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from benchmarks.comparison import last_words
from benchmarks.load import Load
from benchmarks.measures import Answer
from benchmarks.peers.programs import Program
from benchmarks.processes import free_port, running
from benchmarks.prompts import Prompts
from benchmarks.tour import Tour

LOAD = Load(
    streams=(1, 2), rounds=1, max_tokens=3, endpoint="/good/v1/chat/completions", timeout_s=30
)
SERVER = """
    import subprocess, sys
    sys.path.insert(0, "tests/benchmarks")
    import uvicorn
    from fake_openai import FakeOpenAI, Script
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    scripts = {"good": Script(), "bad": Script(ending="error")}
    app = FakeOpenAI(scripts).app()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
"""


def good(port: int) -> Program:
    command = (sys.executable, "-c", dedent(SERVER), str(port))
    return Program("good", "none", command, "fake", port, health="/good/v1/models")


def broken(port: int, name: str = "broken") -> Program:
    command = (sys.executable, "-c", "print('no model here'); raise SystemExit(3)")
    return Program(name, "none", command, "fake", port)


def tour(load: Load = LOAD, told: list[str] | None = None) -> Tour:
    return Tour([good], load, 4, Prompts(), (told if told is not None else []).append)


def test_a_server_is_started_and_measured_with_each_number_of_clients(tmp_path: Path) -> None:
    told: list[str] = []

    visit = tour(told=told).visit(good(free_port()), 1, tmp_path)

    assert visit.problem == ""
    assert [(stage.streams, len(stage.outcomes)) for stage in visit.stages] == [(1, 4), (2, 4)]
    assert all(isinstance(one, Answer) for stage in visit.stages for one in stage.outcomes)
    assert visit.rss_bytes > 0
    assert len(told) == len(visit.stages) == len(visit.other_cores)


def test_when_it_is_ended_nothing_it_started_is_left(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    with running(good(free_port()), log_file, 30) as server:
        family = server.family
        child = int(log_file.read_text().split()[1])
        assert child in {member.pid for member in family}

    assert not any(member.is_running() for member in family)
    assert psutil.pid_exists(os.getpid())


def test_a_server_that_does_not_start_is_a_finding_with_the_end_of_its_log(tmp_path: Path) -> None:
    told: list[str] = []

    visit = tour(told=told).visit(broken(free_port()), 2, tmp_path)

    assert visit.stages == ()
    assert (visit.server, visit.round_number) == ("broken", 2)
    assert last_words(visit.problem) == "broken ended with status 3: no model here"
    assert told == [visit.problem]


def test_a_server_that_starts_and_cannot_answer_is_a_finding(tmp_path: Path) -> None:
    load = Load(streams=(1,), endpoint="/bad/v1/chat/completions", timeout_s=30)

    visit = tour(load).visit(good(free_port()), 1, tmp_path)

    assert "does not answer (stream error" in visit.problem
    assert visit.stages == ()


def test_rounds_interleave_the_servers_and_each_begins_with_another() -> None:
    names = ("a", "b", "c")
    makers = [lambda port, name=name: broken(port, name) for name in names]

    visits = list(Tour(makers, Load(rounds=4), 1, Prompts(), lambda _: None).visits())

    order = ["".join(v.server for v in visits if v.round_number == n) for n in (1, 2, 3, 4)]
    assert order == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize(("clients", "each"), [(1, 16), (8, 2), (5, 4), (32, 2)])
def test_few_clients_send_more_requests_each(clients: int, each: int) -> None:
    load = Tour([], LOAD, 16, Prompts(), lambda _: None).load_of(clients)

    assert load.requests_per_stream == each
