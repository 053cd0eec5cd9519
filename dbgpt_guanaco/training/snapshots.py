"""The states from which an interrupted training goes on.

::

    OUT.partial/snapshots/
      writing/          one that is being written; never gone on from
      step-00000050/    a whole one: LoRA weights, optimizer, random numbers, losses

Each gets its name by one rename, after everything in it is on the disk.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dbgpt_guanaco.checkpoints.partial import sync
from dbgpt_guanaco.errors import OutputError

PREFIX = "step-"
NOTHING = "nothing was left behind"
# How torch.save tells that a disk is full: as it finds out, and by what goes wrong after it.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "inline_container", "iostream error")


class Snapshots:
    """The snapshots of one training; the oldest go when there are too many.

    Args:
        root: Folder to keep them in.
        most: How many are kept.
    """

    def __init__(self, root: Path, most: int = 2) -> None:
        self._root, self._most = root, most
        self.writing = root / "writing"

    def clear_unfinished(self) -> None:
        """Remove what was being written when a process died."""
        shutil.rmtree(self.writing, ignore_errors=True)

    def newest(self) -> Path | None:
        """Return the last whole one."""
        return max(self._all(), default=None)

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Yield a folder, in which exactly one other is to be made: it becomes the snapshot.

        Raises:
            OutputError: It cannot be written.
        """
        self.clear_unfinished()
        try:
            self.writing.mkdir(parents=True)
            yield self.writing
            self._publish(step)
        except (OSError, SafetensorError) as error:
            raise self._unwritten(step, error) from error
        except RuntimeError as error:
            if not any(words in str(error) for words in TORCH_CANNOT_WRITE):
                raise
            raise self._unwritten(step, OSError(errno.ENOSPC, "the disk is full")) from error
        finally:
            self.clear_unfinished()

    def _publish(self, step: int) -> None:
        (made,) = self.writing.iterdir()
        for path in made.rglob("*"):
            sync(path)
        sync(made)
        target = self._root / f"{PREFIX}{step:08}"
        shutil.rmtree(target, ignore_errors=True)  # of the same step, left by an earlier run
        made.rename(target)
        sync(self._root)
        for old in self._all()[: -self._most]:
            shutil.rmtree(old)

    def _unwritten(self, step: int, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        kept = self.newest()
        left = (
            f"{kept.name} in {self._root} is whole; --resume goes on from it" if kept else NOTHING
        )
        return OutputError(f"the state at step {step} cannot be written: {reason}; {left}")

    def _all(self) -> list[Path]:
        return sorted(self._root.glob(f"{PREFIX}*"))


def step_of(snapshot: Path) -> int:
    """Return at which step a snapshot was made."""
    return int(snapshot.name.removeprefix(PREFIX))
