"""LLM_MODEL → folders on this machine, or one clear error.

A local model costs no network call. What is not here is fetched from the hub into the hub's
own cache, which resumes an interrupted download.
"""

import difflib
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined] # the HTTP client's error
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from dbgpt_guanaco.adapters.demo import ensure_demo_model
from dbgpt_guanaco.adapters.folder import WHOLE, is_lora, missing_files, read_json
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.progress_bars import bar_of_bytes
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import DEMO_MODEL, ModelSettings
from dbgpt_guanaco.start import Tell, tell_nobody

logger = logging.getLogger(__name__)

# A LoRA of 2023 may exist only as adapter_model.bin; a model must be safetensors.
MODEL_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]
# The same weights once more, as some repositories carry them.
OTHER_FORMATS = ["consolidated*", "original/*"]
LORA_FILES = [*MODEL_FILES, "adapter_model.bin"]
HUB_TIMEOUT_S = 10
# What stands before the command that brings a model here.
FETCH = "Fetch it with:"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the weights are.

    Attributes:
        name: What clients call the model: the last component of LLM_MODEL.
        model_path: Folder of the model, or of the base under a LoRA.
        lora_path: Folder of the LoRA, if there is one.
        family_names: Names to look the family up by, the fine-tune's first.
    """

    name: str
    model_path: Path
    lora_path: Path | None
    family_names: tuple[str, ...]


def resolve(
    settings: ModelSettings, tell: Tell = tell_nobody, *, may_fetch: bool = True
) -> ModelSource:
    """Find the model that the settings name, and its base if it is a LoRA.

    Args:
        settings: Name it.
        tell: Hears how much of it has been fetched.
        may_fetch: What is not here may be fetched from the hub, or made from its package.

    Raises:
        ModelNotFoundError: It is nowhere; the text says where it was looked for.
        ModelLoadError: A folder was found, but what is in it cannot be served.
        ConfigurationError: Its code is to be trusted, but it came straight from the hub.
    """
    source = _resolve(settings, tell, may_fetch=may_fetch)
    if settings.trust_remote_code:
        for folder in filter(None, (source.model_path, source.lora_path)):
            _refuse_unread_code(folder)
    return source


def _refuse_unread_code(folder: Path) -> None:
    """Refuse to trust code of the hub's newest revision: what was read is another one's."""
    if folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        raise ConfigurationError(
            "GUANACO_TRUST_REMOTE_CODE runs code from a folder of yours only, because the hub's "
            f"may change. Fetch the revision whose code you have read:  {command('hf')} download "
            "org/name --revision COMMIT --local-dir models/name"
        )


def _resolve(settings: ModelSettings, tell: Tell, *, may_fetch: bool) -> ModelSource:
    name = Path(settings.name).name
    if name in ("", ".."):  # a way to a folder, and no name for it
        name = Path(settings.name).resolve().name
    known = KNOWN_MODELS.get(settings.name)
    find = partial(_find, settings=settings, tell=tell, may_fetch=may_fetch)
    found = find(settings.name)
    if not is_lora(found):
        lora = None
        if settings.lora:
            lora = find_lora(settings.lora, settings, tell, may_fetch=may_fetch)
        names = (settings.lora, settings.name) if settings.lora else (settings.name,)
        return ModelSource(name, checked(found), lora, tuple(map(str, names)))
    if settings.lora:
        raise ModelLoadError(f"LLM_MODEL={settings.name} is a LoRA itself; drop GUANACO_LORA")
    base = settings.base_model or (known.base if known and known.base else base_of(found))
    return ModelSource(name, checked(find(base)), found, (settings.name, base))


def find_lora(
    name: str, settings: ModelSettings, tell: Tell = tell_nobody, *, may_fetch: bool = True
) -> Path:
    """Return the folder of a LoRA that is to be laid on another model.

    Raises:
        ModelNotFoundError: It is nowhere; the text says where it was looked for.
        ModelLoadError: A folder was found, but there is no LoRA in it.
    """
    folder = _find(name, settings, tell, may_fetch=may_fetch)
    if not is_lora(folder):
        raise ModelLoadError(f"GUANACO_LORA={name}: {folder} holds no LoRA weights")
    return folder


def _find(name: str, settings: ModelSettings, tell: Tell, *, may_fetch: bool) -> Path:
    known = {known_name: known.hub for known_name, known in KNOWN_MODELS.items()}
    packaged = {DEMO_MODEL: partial(ensure_demo_model, settings.models_dir / DEMO_MODEL)}
    return find_folder(name, settings.models_dir, known, packaged, tell, may_fetch=may_fetch)


def find_folder(
    name: str,
    models_dir: Path,
    known: Mapping[str, str],
    packaged: Mapping[str, Callable[[], Path]],
    tell: Tell = tell_nobody,
    *,
    may_fetch: bool = True,
) -> Path:
    """Return the folder of one model, base, LoRA or embedding model; fetch it if it must be.

    Args:
        name: A folder, a name under ``models_dir``, a known name or a hub name.
        models_dir: Where models are kept.
        known: Known names → hub names.
        packaged: Known names whose weights come in a Python package → what finds them there.
        tell: Hears how much has been fetched.
        may_fetch: What is not here may be fetched, or made from its package.

    Raises:
        ModelNotFoundError: It is nowhere; the text says where it was looked for.
        ModelLoadError: The hub has it only as a pickle.
    """
    looked_in = []
    for folder in dict.fromkeys((Path(name).expanduser(), models_dir / name)):
        if folder.is_dir() and any(folder.iterdir()):
            logger.info("%s: found in %s", name, folder)
            return folder
        looked_in.append(f"folder {folder}{' (it is empty)' if folder.is_dir() else ''}")
    if name in packaged and may_fetch:
        return packaged[name]()
    hub = known.get(name, name)
    if not is_hub_name(hub):
        raise no_such_name(name, [*looked_in, f"known names: {', '.join(known)}"], known)
    if cached := find_cached(hub):
        logger.info("%s: found in the hub's cache, %s", name, cached)
        return cached
    looked_in.append(f"hub cache {constants.HF_HUB_CACHE}, as {hub}")
    if not may_fetch:
        raise ModelNotFoundError(name, looked_in, how_to_fetch(name, hub, models_dir))
    return _fetch(name, hub, looked_in, models_dir, tell)


def find_cached(hub: str) -> Path | None:
    """Return the folder of a model, or of a LoRA, that lies whole in the hub's own cache."""
    try:
        cached = Path(snapshot_download(hub, local_files_only=True, allow_patterns=LORA_FILES))
    except LocalEntryNotFoundError:
        return None
    return cached if is_lora(cached) or not missing_files(cached) else None


def how_to_fetch(name: str, hub: str, models_dir: Path) -> str:
    """Return the command that brings a model to this machine."""
    return f"{FETCH}  {command('hf')} download {hub} --local-dir {models_dir / name}"


def _fetch(name: str, hub: str, looked_in: list[str], models_dir: Path, tell: Tell) -> Path:
    try:
        if constants.HF_HUB_OFFLINE:
            looked_in.append("the hub was not asked: HF_HUB_OFFLINE is set")
            raise LocalEntryNotFoundError("offline")
        logger.info("%s: asking the hub for %s", name, hub)
        listed = HfApi().model_info(hub, timeout=HUB_TIMEOUT_S).siblings or []
        refuse_pickles(hub, [file.rfilename for file in listed], models_dir / name)
        logger.info("%s: fetching %s", name, hub)
        return Path(
            snapshot_download(
                hub,
                allow_patterns=LORA_FILES,
                ignore_patterns=OTHER_FORMATS,
                tqdm_class=bar_of_bytes(tell),
            )
        )
    except (HTTPError, OSError) as error:
        if not constants.HF_HUB_OFFLINE:
            reason = str(error).partition("\n")[0]
            looked_in.append(f"hub {hub}: {type(error).__name__}: {reason}")
        raise ModelNotFoundError(
            name,
            looked_in,
            "Where the hub is out of reach, HF_ENDPOINT=https://… names a mirror. "
            + how_to_fetch(name, hub, models_dir),
        ) from None


def no_such_name(
    name: str, looked_in: list[str], known: Iterable[str] = KNOWN_MODELS
) -> ModelNotFoundError:
    """Return what is told of a name that is neither known nor the hub's."""
    return ModelNotFoundError(
        name,
        looked_in,
        _did_you_mean(name, known)
        + "Put the model's folder there, or name it as org/name to fetch it from the hub.",
    )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}? " if near else ""


def refuse_pickles(hub: str, files: list[str], folder: Path) -> None:
    """Refuse a model that the hub has only as pickles.

    Raises:
        ModelLoadError: It is so; the text says how to convert it.
    """
    if any(f.endswith(".safetensors") for f in files) or "adapter_config.json" in files:
        return
    if any(f.endswith(".bin") for f in files):
        raise ModelLoadError(
            f"{hub} has only pickled weights on the hub, which are not loaded. Fetch them and turn "
            f"them into safetensors once:\n  {command('hf')} download {hub} --local-dir {folder}\n"
            f"  {command('dbgpt-guanaco')} convert {folder}"
        )


def command(name: str) -> str:
    """Return how to call a command that is installed beside this Python."""
    return name if shutil.which(name) else str(Path(sys.executable).parent / name)


def is_hub_name(name: str) -> bool:
    """Say whether a name is like org/name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def base_of(lora: Path) -> str:
    """Return what a LoRA's configuration names as its base.

    Raises:
        ModelLoadError: It names none.
    """
    base = read_json(lora / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ModelLoadError(
            f"{lora}/adapter_config.json names no base model; name it with GUANACO_BASE_MODEL"
        )
    base = str(base)
    # Written by whoever made the LoRA: it may name a folder or the hub, but not climb.
    if ".." in Path(base).parts or "\\" in base or not base.isprintable():
        raise ModelLoadError(
            f"{lora}/adapter_config.json names {base!r} as its base, which is no folder and no hub "
            "name; name the base with GUANACO_BASE_MODEL"
        )
    return base


def checked(folder: Path) -> Path:
    """Return a folder that holds a whole model.

    Raises:
        ModelLoadError: Files are missing, or only pickles are there.
    """
    missing = missing_files(folder)
    if missing == [WHOLE] and any(folder.glob("pytorch_model*.bin")):
        raise ModelLoadError(
            f"{folder} holds only pickled weights (pytorch_model*.bin), which are not loaded. "
            f"Turn them into safetensors once:  {command('dbgpt-guanaco')} convert {folder}"
        )
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ModelLoadError(f"{folder} is not a whole model: {shown} is missing")
    return folder
