"""The folder beside the result in which a result grows until it is whole.

::

    OUT.partial/
      journal.json   which job this is, and the shards that are done
      lock           held by the process that writes
      model/         becomes OUT by one rename, after everything in it is on the disk

``OUT.partial`` itself holds no ``config.json``, so no moment exists at which it loads as a model.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from dbgpt_guanaco.checkpoints.shards import file_hash
from dbgpt_guanaco.errors import OutputError

logger = logging.getLogger(__name__)

JOURNAL = "journal.json"


class PartialModel:
    """A model folder that is being written.

    Args:
        out: Where the model will be.
        job: All that decides the result's content; what another job left is thrown away.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out, self.root = out, partial_folder(out)
        self.folder = self.root / "model"
        self._journal = self.root / JOURNAL
        self._job = dict(job)
        self._done: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Make the folder, or take up what an earlier run of the same job has left in it."""
        known = read_journal(self.root)
        if known.get("job") == self._job:
            self._done = known["done"]
        elif self.folder.exists():
            logger.info("%s is of another job and begins anew", self.root)
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        self._write_journal()

    def find_done(self, name: str) -> dict[str, Any] | None:
        """Return what was noted of a shard that an earlier run finished, if it is still so."""
        noted, path = self._done.get(name), self.folder / name
        if noted is None or not path.is_file() or file_hash(path) != noted["sha256"]:
            return None
        return noted

    def note_done(self, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write down that a shard is whole and on the disk."""
        self._done[name] = {**facts, "sha256": file_hash(self.folder / name)}
        self._write_journal()
        return self._done[name]

    def publish(self) -> None:
        """Make the model appear, whole."""
        for path in self.folder.iterdir():
            sync(path)
        sync(self.folder)
        if self.out.exists():  # a rename would replace an empty folder
            raise OutputError(f"{self.out} has appeared in the meantime; name another folder")
        self.folder.rename(self.out)
        shutil.rmtree(self.root)
        sync(self.out.parent)

    def _write_journal(self) -> None:
        scratch = self._journal.with_suffix(".new")
        scratch.write_text(json.dumps({"job": self._job, "done": self._done}, indent=1))
        sync(scratch)
        scratch.replace(self._journal)


def read_journal(root: Path) -> dict[str, Any]:
    """Return what an earlier run has written down; nothing, if there was none."""
    try:
        journal = json.loads((root / JOURNAL).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return journal if isinstance(journal, dict) else {}


def _nothing(_: Path) -> bool:
    return False


@contextmanager
def partial_model(
    out: Path, job: Mapping[str, Any], *, is_worth_keeping: Callable[[Path], bool] = _nothing
) -> Iterator[PartialModel]:
    """Yield a folder to write into, and turn what the disk refuses into one clear error.

    After a signal the folder stays, for the next run to go on. After an error it is removed.

    Args:
        out: Where the model will be.
        job: See ``PartialModel``.
        is_worth_keeping: Asked after an error, with the folder beside the result: what is in
            it took so long that it stays.

    Raises:
        OutputError: The disk is full, writing is not permitted, or another process writes there.
    """
    refuse_existing(out)
    made = _missing_parents(out)
    root = partial_folder(out)
    _refuse_other_work(root, job)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / "lock").open("a") as lock:
            _take(lock, root)
            partial = PartialModel(out, job)
            try:
                partial.prepare()
                yield partial
            except Exception:  # but not at Ctrl-C, after which the next run goes on
                if not is_worth_keeping(root):
                    shutil.rmtree(root, ignore_errors=True)
                    _remove_empty(made)
                raise
    except (OSError, SafetensorError) as error:
        _remove_empty([root, *made])
        reason = getattr(error, "strerror", None) or str(error)
        left = "the part that is done stays" if root.exists() else "nothing was left behind"
        raise OutputError(f"{out} cannot be written: {reason}; {left}") from error


def refuse_existing(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        OutputError: The folder exists, or what stands in its way is not ours.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already; name another folder, or remove it")
    root = partial_folder(out)
    ours = {"lock", JOURNAL}
    if root.exists() and (found := {p.name for p in root.iterdir()}) and not found & ours:
        raise OutputError(f"{root} is in the way and was not made by this command; remove it")


def _refuse_other_work(root: Path, job: Mapping[str, Any]) -> None:
    """Refuse to throw away what another command has begun, hours of training perhaps."""
    begun = read_journal(root).get("job", {}).get("command")
    if begun not in (None, job.get("command")):
        raise OutputError(
            f"{root} holds an unfinished {begun}; go on with that, remove that folder or name "
            "another one"
        )


def partial_folder(out: Path) -> Path:
    """Return where a result grows."""
    return out.with_name(f"{out.name}.partial")


def _take(lock: IO[str], root: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another process is writing into {root}") from None


def _missing_parents(out: Path) -> list[Path]:
    return [folder for folder in out.absolute().parents if not folder.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            continue


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
