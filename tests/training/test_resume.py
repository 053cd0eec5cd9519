"""A training that ended in the middle goes on as if nothing had been."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killable import Commands
from test_finetune import QUICK, TALKS, run, write
from tiny_models import CHAT_TEMPLATE, make_bpe_tokenizer, make_model
from transformers import TrainerState

from dbgpt_guanaco.adapters.folder import is_lora
from dbgpt_guanaco.checkpoints.partial import partial_folder
from dbgpt_guanaco.training.resumption import has_snapshot
from dbgpt_guanaco.training.trainer import Step

LONG = (*QUICK, "--max-steps", "9", "--save-every", "2")
RESULTS = ("loss.csv", "adapter_model.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its data."""
    folder = tmp_path_factory.mktemp("models")
    base = make_bpe_tokenizer(make_model(folder / "base"), CHAT_TEMPLATE)
    return base, write(folder / "data.jsonl", *TALKS)


@pytest.fixture(scope="module")
def undisturbed(job: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    code, _, err = run("finetune", *job, "--out", out, *LONG, "--json")
    assert code == 0, err
    return out


def assert_same(folder: Path, other: Path) -> None:
    for name in RESULTS:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_killed_at_random_moments_it_goes_on_with_the_same_losses_and_weights(
    commands: Commands, job: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    commands.run("finetune", *job, "--out", tmp_path / "first", *LONG)  # waits for imports
    begin = time.monotonic()
    commands.run("finetune", *job, "--out", tmp_path / "second", *LONG)
    takes_s = time.monotonic() - begin
    moments, in_the_middle = random.Random(3), 0

    for number in range(4):
        out = tmp_path / f"out-{number}"
        more: tuple[str, ...] = ()
        status = signal.SIGKILL.value
        for attempt in range(3):
            moment = None if attempt == 2 else moments.uniform(0, takes_s)
            status, _ = commands.run(
                "finetune", *job, "--out", out, *LONG, *more, kill_after_s=moment
            )
            if not status:
                break
            assert not out.exists()
            assert not is_lora(partial_folder(out))
            more = ("--resume",) if has_snapshot(partial_folder(out)) else ()
            in_the_middle += bool(more)
        assert status == 0
        assert_same(out, undisturbed)
        assert not partial_folder(out).exists()

    assert in_the_middle >= 2


@contextmanager
def _stopping(console: Any, total: int, *, is_quiet: bool) -> Iterator[Callable[[Step], None]]:
    yield lambda step: signal.raise_signal(signal.SIGINT) if step.number == 4 else None


def test_ctrl_c_leaves_a_state_and_says_how_to_go_on(
    job: tuple[Path, Path], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("finetune", *map(str, job), "--out", str(out), *LONG)

    with monkeypatch.context() as patched:
        patched.setattr("dbgpt_guanaco.cli.finetune.steps_shown", _stopping)
        patched.setattr("sys.argv", ["dbgpt-guanaco", *command])
        code, stdout, err = run(*command)

    assert code == 130
    assert stdout == ""
    assert "stopped after step 5 of 9; the state is saved; go on with" in err
    assert err.strip().endswith(f"  dbgpt-guanaco {' '.join(command)} --resume")
    assert not out.exists()
    code, _, err = run(*command, "--resume")
    assert code == 0
    assert "goes on after step 5" in err
    assert_same(out, undisturbed)


def test_a_second_ctrl_c_ends_at_once_and_loses_only_what_came_after_the_last_state(
    job: tuple[Path, Path], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def impatient(console: Any, total: int, **_: Any) -> Iterator[Callable[[Step], None]]:
        def twice(step: Step) -> None:
            if step.number == 5:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        yield twice

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("dbgpt_guanaco.cli.finetune.steps_shown", impatient)
        code, _, err = run("finetune", *job, "--out", out, *LONG)

    assert code == 130
    assert "ended at once; the state of step 4 is saved; go on with" in err
    assert run("finetune", *job, "--out", out, *LONG, "--resume", "--json")[0] == 0
    assert_same(out, undisturbed)


def test_it_ends_as_it_should_when_only_the_last_look_was_missing(
    job: tuple[Path, Path], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("dbgpt_guanaco.training.finetuning.check_reloaded", interrupted)
        code, _, err = run("finetune", *job, "--out", out, *LONG)

    assert code == 130
    assert "the state of step 9 is saved" in err
    assert not (partial_folder(out) / "model").exists()
    assert run("finetune", *job, "--out", out, *LONG, "--resume", "--json")[0] == 0
    assert_same(out, undisturbed)


def test_ctrl_c_before_the_first_state_leaves_nothing(
    job: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbgpt_guanaco.training.finetuning.load_model", interrupted)

    code, _, err = run("finetune", *job, "--out", tmp_path / "out", *LONG)

    assert code == 130
    assert "ended before a state was saved" in err
    assert "--resume" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(job: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that would be there by now if nobody had pressed Ctrl-C."""
    with monkeypatch.context() as patched:
        patched.setattr("dbgpt_guanaco.cli.finetune.steps_shown", _stopping)
        run("finetune", *job, "--out", tmp_path / "out", *LONG)
    return tmp_path / "out"


def test_an_interrupted_training_is_not_thrown_away(
    job: tuple[Path, Path], interrupted: Path
) -> None:
    code, _, err = run("finetune", *job, "--out", interrupted, *LONG)

    assert code == 2
    assert "holds a training that was interrupted after step 5; go on with --resume" in err
    assert has_snapshot(partial_folder(interrupted))


def test_it_does_not_go_on_otherwise_than_it_was_begun(
    job: tuple[Path, Path], interrupted: Path, tmp_path: Path
) -> None:
    base, _ = job
    data = write(tmp_path / "data.jsonl", *TALKS[1:])
    more = (*LONG, "--learning-rate", "1e-3", "--resume")

    code, _, err = run("finetune", base, data, "--out", interrupted, *more)

    assert code == 2
    assert "was begun otherwise: " in err
    assert "data.conversations was 5 and is 4" in err
    assert "hyperparameters.learning_rate was 0.0002 and is 0.001" in err
    assert has_snapshot(partial_folder(interrupted))


def test_a_state_that_cannot_be_written_keeps_the_one_before(
    job: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    save = TrainerState.save_to_json

    def full_from_step_4(self: Any, path: str) -> None:
        if self.global_step >= 4:
            with Path("/dev/full").open("w") as full:
                full.write("state")
        save(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(TrainerState, "save_to_json", full_from_step_4)
        code, _, err = run("finetune", *job, "--out", out, *LONG)

    assert code == 2
    assert "the state at step 4 cannot be written: No space left on device; step-00000002" in err
    assert run("finetune", *job, "--out", out, *LONG, "--resume", "--json")[0] == 0
    assert_same(out, undisturbed)


def test_there_must_be_something_to_go_on_with(job: tuple[Path, Path], tmp_path: Path) -> None:
    code, _, err = run("finetune", *job, "--out", tmp_path / "out", *LONG, "--resume")

    assert code == 2
    assert f"there is nothing to go on with in {tmp_path / 'out.partial'}" in err
    assert list(tmp_path.iterdir()) == []
