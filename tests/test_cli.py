from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dbgpt_guanaco.cli import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "dumb")


def test_help_shows_the_commands() -> None:
    code, out, _ = run("--help")

    assert code == 0
    assert "serve" in out
    assert "convert" in out
    assert "Serve a private, 4-bit language model to DB-GPT." in out


@pytest.mark.parametrize("command", ["serve", "convert", "finetune"])
def test_help_of_a_command_shows_an_example(command: str) -> None:
    code, out, _ = run(command, "--help")

    assert code == 0
    assert f"dbgpt-guanaco {command}" in out


def test_convert_says_what_it_wrote(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")

    code, _, err = run("convert", str(tmp_path))

    assert code == 0
    assert "1 safetensors files written; the .bin can go" in err
    assert (tmp_path / "model.safetensors").is_file()


def test_convert_ends_with_2_and_one_message_when_there_is_nothing(tmp_path: Path) -> None:
    code, out, err = run("convert", str(tmp_path))

    assert code == 2
    assert out == ""
    assert err.strip() == f"{tmp_path} holds no pytorch_model*.bin"


@pytest.mark.parametrize("arguments", [["convert"], ["convert", "a", "b"], ["train"], ["--nope"]])
def test_a_wrong_call_ends_with_2(arguments: list[str]) -> None:
    code, out, err = run(*arguments)

    assert code == 2
    assert out == ""
    assert "Usage: " in err


def test_serve_tells_a_wrong_setting_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_PORT", "eight")

    code, _, err = run("serve")

    assert code == 2
    assert err.startswith("error: ")
    assert "MODEL_PORT=eight: Input should be a valid integer" in err
