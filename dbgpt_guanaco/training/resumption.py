"""May a run begin, or go on, beside what an earlier one has left?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dbgpt_guanaco.checkpoints.partial import partial_folder, read_journal
from dbgpt_guanaco.errors import OutputError
from dbgpt_guanaco.training.snapshots import Snapshots, step_of

SNAPSHOTS = "snapshots"


def has_snapshot(root: Path) -> bool:
    """Say whether a training that was interrupted can be gone on with."""
    return Snapshots(root / SNAPSHOTS).newest() is not None


def interrupted_step(out: Path) -> int | None:
    """Return after which step a run can be gone on with, if it can."""
    newest = Snapshots(partial_folder(out) / SNAPSHOTS).newest()
    return step_of(newest) if newest else None


def refuse_interrupted(out: Path) -> None:
    """Refuse to throw away what an interrupted run has done.

    Raises:
        OutputError: There is a snapshot.
    """
    step = interrupted_step(out)
    if step is not None:
        raise OutputError(
            f"{partial_folder(out)} holds a training that was interrupted after step {step}; go "
            "on with --resume, or remove that folder"
        )


def refuse_to_resume_another(out: Path, job: Mapping[str, Any]) -> None:
    """Refuse to go on where the result would not be that of one undisturbed run.

    Raises:
        OutputError: There is nothing to go on with, or it was begun otherwise.
    """
    root = partial_folder(out)
    begun = read_journal(root).get("job")
    if begun is None:
        raise OutputError(f"there is nothing to go on with in {root}")
    differing = list(_differences(begun, job))
    if differing:
        raise OutputError(
            f"{root} was begun otherwise: {'; '.join(differing)}. Go on as it was begun, or "
            "remove that folder"
        )


def _differences(begun: Any, now: Any, name: str = "") -> Iterator[str]:  # noqa: ANN401
    if not (isinstance(begun, dict) and isinstance(now, Mapping)):
        if begun != now:
            yield f"{name} was {begun} and is {now}"
        return
    for key in sorted(begun.keys() | now.keys()):
        path = f"{name}.{key}" if name else key
        yield from _differences(begun.get(key), now.get(key), path)
