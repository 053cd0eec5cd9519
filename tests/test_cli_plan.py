import json
from pathlib import Path

import pytest
from tiny_models import make_model
from typer.testing import CliRunner

from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.cli import app


@pytest.fixture(autouse=True)
def _wide_terminal_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_one_model_is_shown_with_every_way_to_store_it() -> None:
    code, out, err = run("guanaco-7b", "--gpu", "24GB", "--train")

    assert (code, err) == (0, "")
    assert "guanaco-7b, a LoRA of 0.30 GiB on huggyllama/llama-7b" in out
    assert "a GPU with 24GB: 22.35 GiB free" in out
    for word in ("nf4", "int8", "16 bits", "15 × 2,048", "optimizer states", "it fits; sequences"):
        assert word in out


def test_without_a_model_every_known_one_has_a_line() -> None:
    code, out, _ = run("--gpu", "24GB", "--train")

    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(KNOWN_MODELS) <= set(lines)
    assert [lines["guanaco-65b"].split()[n] for n in (1, -1)] == ["–", "no"]
    assert [lines["guanaco-33b"].split()[n] for n in (1, -1)] == ["nf4", "paged"]


def test_json_has_bytes_and_tokens(tmp_path: Path) -> None:
    make_model(tmp_path / "mine")

    code, out, _ = run(
        "mine", "--gpu", "1GiB", "--context", "128", "--train", "--rank", "8", "--json"
    )

    told = json.loads(out)
    model = told["models"][0]
    assert code == 0
    assert told["machine"] == {
        "name": "a GPU with 1GiB",
        "on_cuda": True,
        "available_bytes": 2**30,
    }
    assert [way["quantization"] for way in model["serving"]] == ["nf4", "int8", "none"]
    assert all(way["context_tokens"] == 128 and not way["fits"] for way in model["serving"])
    assert model["kv_bytes_per_token"] == 2 * 2 * 2 * 2 * 16
    assert (model["training"]["rank"], model["training"]["tokens"]) == (8, 512)


def test_without_gpu_this_machine_is_looked_at(tmp_path: Path) -> None:
    make_model(tmp_path / "mine")

    code, out, _ = run("mine")

    assert code == 0
    assert "GiB free" in out
    assert "a GPU with" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such", "--gpu", "24GB"], "no model 'no-such'. Looked in:"),
        (["guanaco-7b", "--gpu", "large"], "--gpu: 'large' is not a size; write it like 22GiB"),
        (["guanaco-7b", "--all"], "--all is for every known model; drop it, or guanaco-7b"),
        (["org/name"], "HF_HUB_OFFLINE is set"),
        (["guanaco-7b", "--rank", "0"], "Invalid value for '--rank'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments: list[str], told: str) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_help_shows_an_example() -> None:
    assert "dbgpt-guanaco plan guanaco-33b --gpu 24GB --train" in run("--help")[1]


def test_a_damaged_folder_costs_its_own_line_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "models" / "guanaco-7b").mkdir(parents=True)
    (tmp_path / "models" / "guanaco-7b" / "README.md").write_text("a broken download")

    code, out, _ = run("--gpu", "24GB")

    assert code == 0
    assert set(KNOWN_MODELS) <= {line.split()[0] for line in out.splitlines() if line.strip()}
