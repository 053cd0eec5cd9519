"""What stands beside the weights of a model: its tokenizer, its template, its defaults."""

import logging
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.errors import ModelLoadError

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
DEFAULTS = "generation_config.json"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")


def tokenizer_folder(model: Path, lora: Path | None) -> Path:
    """Return where the tokenizer is taken from: a LoRA's own comes first, as in serving.

    Raises:
        ModelLoadError: There is none.
    """
    for folder in filter(None, (lora, model)):
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return folder
    raise ModelLoadError(f"{model} holds no tokenizer.json and no tokenizer.model")


def copy_companions(model: Path, tokenizer: Path, target: Path, model_type: str) -> None:
    """Copy tokenizer, template and generation defaults; a LLaMA tokenizer is repaired."""
    sources = [model / DEFAULTS, *(tokenizer / name for name in TOKENIZER_FILES)]
    for path in sources:
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    if model_type == "llama" and _is_llama_vocabulary(tokenizer / "tokenizer.model"):
        _repair(tokenizer, target)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result, and of this package."""
    found = {}
    for name in ("dbgpt-guanaco", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "unknown"
    return found


def _is_llama_vocabulary(path: Path) -> bool:
    """Say whether a file is LLaMA's vocabulary, where 1 begins a text and 2 ends it."""
    if not path.is_file():
        return False
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ModelLoadError(f"{path} is damaged: {error}") from None
    return [pieces.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]


def _repair(tokenizer: Path, target: Path) -> None:
    """Write special tokens that conversions of 2023 left empty, swapped or in another class."""
    tokens = dict(GuanacoAdapter.special_tokens)
    try:
        repaired = LlamaTokenizer.from_pretrained(tokenizer, local_files_only=True, **tokens)
        for name in ("tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
            (target / name).unlink(missing_ok=True)
        repaired.save_pretrained(target)
    except Exception as error:  # tokenizers raises bare exceptions at a damaged file
        raise ModelLoadError(f"the tokenizer in {tokenizer} is damaged: {error}") from error
    if (repaired.bos_token_id, repaired.eos_token_id) != (1, 2):
        raise ModelLoadError(f"the tokenizer in {tokenizer} cannot be repaired: bos is not 1")
    logger.info("tokenizer of %s: repaired, bos 1, eos 2", tokenizer.name)
