import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.compare import app
from benchmarks.load import BenchmarkError
from benchmarks.peers import install
from benchmarks.peers.install import PEERS
from benchmarks.peers.programs import PROGRAMS, Site, find_model, find_program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    return str(tmp_path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_are_told_the_same_and_listen_on_loopback_only(name: str, model: str) -> None:
    program = PROGRAMS[name](Site(model, slots=7, threads=1, port=4321))

    told = program.told.split()
    assert program.name == name
    assert program.server.url == "http://127.0.0.1:4321"
    assert any(word.endswith("4321") for word in told)
    assert "0.0.0.0" not in program.told
    assert program.extra


@pytest.mark.parametrize("name", PEERS)
def test_a_report_shows_no_path_of_this_machine(name: str) -> None:
    told = PROGRAMS[name](Site("models/m", slots=1, threads=1, port=1)).told

    assert str(ROOT) not in told
    assert ".venv-peers" in told


def test_ours_is_kept_from_ending_an_answer_by_every_id_that_could(model: str) -> None:
    program = PROGRAMS["ours-nf4"](Site(model, slots=1, threads=2, port=1))

    assert program.extra == {"logit_bias": {"2": -100, "5": -100}}
    assert program.environment["OMP_NUM_THREADS"] == "2"


def test_a_peer_that_is_not_installed_is_refused_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "FOLDER", tmp_path)

    with pytest.raises(BenchmarkError, match=r"python benchmarks/peers/install\.py vllm"):
        find_program("vllm")


def test_a_peer_counts_as_installed_only_as_it_is_described_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "FOLDER", tmp_path)
    (tmp_path / "vllm").mkdir()
    mark = tmp_path / "vllm" / ".installed"

    mark.write_text(repr(PEERS["vllm"]))
    assert install.is_installed("vllm")
    mark.write_text(repr(PEERS["transformers"]))
    assert not install.is_installed("vllm")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no model in"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peers", "nonsense"], "no server is called 'nonsense'"),
        (["--peers", "ours-nf4"], "no server may be named twice"),
        (["--ours", ""], "must name a server"),
        (["--peers", "", "--out", "no/such/folder/out.md"], "make it first"),
        (["--clients", "0"], "--streams must be"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_started(
    words: list[str], message: str, model: str
) -> None:
    result = CliRunner().invoke(app, ["--model", model, *words])

    assert result.exit_code == 2
    assert message in result.stderr
