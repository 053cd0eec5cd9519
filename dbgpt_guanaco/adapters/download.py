"""Hub → a folder under the models folder, whole, with checksums that agree, or not at all.

huggingface_hub fetches, goes on where an interrupted download was, and knows the checksums. The
files grow in ``NAME.partial``, which becomes ``NAME`` when every one of them has been checked.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # the HTTP client's
from huggingface_hub.utils._paths import filter_repo_objects
from huggingface_hub.utils.tqdm import tqdm

from dbgpt_guanaco.adapters.demo import ensure_demo_model
from dbgpt_guanaco.adapters.folder import is_lora
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.resolve import (
    HUB_TIMEOUT_S,
    LORA_FILES,
    OTHER_FORMATS,
    base_of,
    checked,
    is_hub_name,
    no_such_name,
    refuse_pickles,
)
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import DEMO_MODEL

logger = logging.getLogger(__name__)

# Told what is fetched and how many bytes it has; yields what is to be told of bytes that came.
Show = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
# What a download leaves in the disk's room, for the other programs of the machine.
SPARED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the hub.

    Attributes:
        name: Within its repository, with slashes.
        sha256: None where the hub knows no such checksum of it; then it knows git's.
    """

    name: str
    num_bytes: int
    sha256: str | None


def download_model(name: str, models_dir: Path, show: Show) -> list[Path]:
    """Fetch a model, and its base if it is a LoRA, into folders that the server finds by name.

    Raises:
        ModelNotFoundError: The name is none, or the hub has no such model or cannot be reached.
        ModelLoadError: It has only pickled weights, a checksum is wrong, or it is not whole.
        ConfigurationError: The disk has too little room.
    """
    known = KNOWN_MODELS.get(name)
    if name == DEMO_MODEL:
        return [ensure_demo_model(models_dir / name)]
    hub = known.hub if known else name
    if not is_hub_name(hub):
        raise no_such_name(name, [f"known names: {', '.join(KNOWN_MODELS)}"])
    fetched = [_fetch(name, hub, models_dir, show)]
    if is_lora(fetched[0]):
        base = known.base if known and known.base else base_of(fetched[0])
        if not Path(base).expanduser().is_dir():
            fetched.append(_fetch(base, base, models_dir, show))
    return fetched


def _fetch(name: str, hub: str, models_dir: Path, show: Show) -> Path:
    folder = models_dir / name
    if folder.is_dir() and any(folder.iterdir()):
        logger.info("%s is in %s already", name, folder)
        return folder if is_lora(folder) else checked(folder)
    if not is_hub_name(hub):
        raise ModelNotFoundError(name, [f"folder {folder}"], f"{hub!r} is no name on the hub.")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        revision, files = _listed(hub, folder)
        _check_room(models_dir, partial, files)
        with show(name, sum(file.num_bytes for file in files)) as advance:
            for file in files:
                _fetch_file(hub, revision, file, partial, advance)
        _verify(hub, revision, files, partial)
    except (HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelNotFoundError(
            name,
            [f"folder {folder}", f"hub {hub}: {type(error).__name__}: {reason}"],
            "What has been fetched is kept; the same command goes on from there. "
            "Where the hub is out of reach, HF_ENDPOINT=https://… names a mirror.",
        ) from None
    if not is_lora(partial):
        checked(partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(folder)
    return folder


def _listed(hub: str, folder: Path) -> tuple[str, list[HubFile]]:
    """Return the newest revision of a repository, and what is wanted of it."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    info = HfApi().model_info(hub, files_metadata=True, timeout=HUB_TIMEOUT_S)
    siblings = info.siblings or []
    refuse_pickles(hub, [sibling.rfilename for sibling in siblings], folder)
    files = [
        HubFile(s.rfilename, int(s.size or 0), s.lfs.sha256 if s.lfs else None)
        for s in filter_repo_objects(
            siblings,
            allow_patterns=LORA_FILES,
            ignore_patterns=OTHER_FORMATS,
            key=lambda sibling: sibling.rfilename,
        )
    ]
    for file in files:
        _check_name(hub, file.name)
    return str(info.sha), sorted(files, key=lambda file: file.num_bytes)


def _check_name(hub: str, name: str) -> None:
    """Refuse a file that would land outside its folder, on this system or another."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    is_inside = ".." not in parts and not PureWindowsPath(name).anchor and "\0" not in name
    if not is_inside or PurePosixPath(name).is_absolute():
        raise ModelLoadError(f"{hub} has a file named {name!r}, which leads out of its folder")


def _check_room(models_dir: Path, partial: Path, files: Sequence[HubFile]) -> None:
    models_dir.mkdir(parents=True, exist_ok=True)
    here = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed = max(0, sum(file.num_bytes for file in files) - here) + SPARED_BYTES
    free = shutil.disk_usage(models_dir).free
    if needed > free:
        raise ConfigurationError(
            f"{models_dir} has {free / 2**30:.1f} GiB free and {needed / 2**30:.1f} GiB are "
            "needed; free some, or name another folder with GUANACO_MODELS_DIR"
        )


def _fetch_file(
    hub: str, revision: str, file: HubFile, partial: Path, advance: Callable[[int], None]
) -> None:
    told = 0

    class Told(tqdm):
        """What huggingface_hub takes for its own bar."""

        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as it is called
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self._tell(int(options.get("initial") or 0))  # what an earlier run has fetched

        def update(self, n: float | None = 1) -> bool | None:
            self._tell(int(n or 0))
            return bool(super().update(n))

        def _tell(self, count: int) -> None:
            nonlocal told
            told += count
            advance(count)

    hf_hub_download(hub, file.name, revision=revision, local_dir=partial, tqdm_class=Told)
    advance(file.num_bytes - told)  # what was there already


def _verify(hub: str, revision: str, files: Sequence[HubFile], partial: Path) -> None:
    """Hold every file against the hub's checksum.

    Raises:
        ModelLoadError: One differs. It is removed, so that the next run fetches it again.
    """
    wanted = {file.name for file in files}
    found = HfApi().verify_repo_checksums(hub, revision=revision, local_dir=partial)
    wrong = [m["path"] for m in found.mismatches if m["path"] in wanted]
    for path in wrong:
        (partial / path).unlink()
        (partial / ".cache/huggingface/download" / f"{path}.metadata").unlink(missing_ok=True)
    absent = sorted(wanted & set(found.missing_paths))
    if wrong or absent:
        raise ModelLoadError(
            f"{hub}: the checksum of {', '.join([*wrong, *absent][:3])} is not the hub's, so it "
            "was removed; the same command fetches it again"
        )
