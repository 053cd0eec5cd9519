from pathlib import Path

import pytest
import torch

from dbgpt_guanaco.errors import OutputError
from dbgpt_guanaco.training.snapshots import Snapshots, step_of


def write(snapshots: Snapshots, step: int) -> None:
    with snapshots.new(step) as folder:
        write_state(folder, str(step))


def write_state(folder: Path, text: str = "") -> None:
    (folder / "anything").mkdir()
    (folder / "anything" / "state").write_text(text)


def write_and_fail(snapshots: Snapshots, error: BaseException) -> None:
    with snapshots.new(2) as folder:
        write_state(folder)
        assert snapshots.newest() == folder.with_name("step-00000001")
        raise error


def write_on_a_full_disk(snapshots: Snapshots, how: str) -> None:
    with snapshots.new(2) as folder:
        write_state(folder)
        if how == "torch":
            torch.save({"state": torch.zeros(99)}, "/dev/full")
        if how == "torch, in the middle":
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        with Path("/dev/full").open("w") as full:
            full.write("state")


def test_the_newest_whole_one_is_gone_on_from(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots", most=5)
    assert snapshots.newest() is None

    for step in (2, 9, 10):
        write(snapshots, step)

    newest = snapshots.newest()
    assert newest is not None
    assert step_of(newest) == 10
    assert (newest / "state").read_text() == "10"


def test_one_that_was_being_written_is_never_gone_on_from(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    write(snapshots, 1)

    with pytest.raises(KeyboardInterrupt):
        write_and_fail(snapshots, KeyboardInterrupt())

    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, most=2)

    for step in range(1, 6):
        write(snapshots, step)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)

    write(snapshots, 3)
    write(snapshots, 3)

    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("how", ["torch", "torch, in the middle", "another file"])
def test_a_full_disk_is_told_with_what_is_still_there(tmp_path: Path, how: str) -> None:
    snapshots = Snapshots(tmp_path)
    write(snapshots, 1)

    with pytest.raises(OutputError) as refused:
        write_on_a_full_disk(snapshots, how)

    assert "the state at step 2 cannot be written: " in str(refused.value)
    assert f"; step-00000001 in {tmp_path} is whole" in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a kernel"), Snapshots(tmp_path).new(1):
        raise RuntimeError("a kernel failed")
