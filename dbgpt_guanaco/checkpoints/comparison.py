"""Merged against un-merged on text that neither was trained on."""

import json
import logging
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dbgpt_guanaco.adapters.cards import MERGE
from dbgpt_guanaco.adapters.memory import free_memory_bytes, lora_bytes_of, plan_memory
from dbgpt_guanaco.adapters.quantization import compute_dtype, quantization_config
from dbgpt_guanaco.adapters.shapes import read_shape
from dbgpt_guanaco.checkpoints.merging import Base
from dbgpt_guanaco.errors import ModelLoadError
from dbgpt_guanaco.settings import Quantization

logger = logging.getLogger(__name__)

# One model is in memory at a time, and the logits of the other for so many tokens.
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Contender:
    """A model to be compared, not loaded yet."""

    folder: Path
    lora: Path | None
    quantization: Quantization
    device: torch.device


def read_text(path: Path | None) -> str:
    """Return the text of a file, or that which ships with this package.

    Raises:
        ModelLoadError: It cannot be read.
    """
    if path is None:
        return (files("dbgpt_guanaco.checkpoints") / "held_out.txt").read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as text: {error}") from None


def report_on(
    out: Path, base: Path, lora: Path, weights: Base, device: torch.device, text: str
) -> dict[str, Any]:
    """Compare a merged model with its parts, write that into its card and return the card."""
    quantization: Quantization = "nf4" if weights == "dequantized" else "none"
    merged = Contender(out, None, "none", device)
    unmerged = Contender(base, lora, quantization, device)
    try:
        report = compare(unmerged, merged, text)
    except Exception as error:  # whatever a library says: the merge itself stands
        logger.debug("no comparison", exc_info=True)
        report = {"refused": str(error).partition("\n")[0] or type(error).__name__}
    card: dict[str, Any] = json.loads((out / MERGE).read_text()) | {"report": report}
    scratch = (out / MERGE).with_suffix(".new")
    scratch.write_text(json.dumps(card, indent=2))
    scratch.replace(out / MERGE)
    return card


def compare(unmerged: Contender, merged: Contender, text: str) -> dict[str, Any]:
    """Return perplexities, mean KL in nats and how often the most likely token is the same.

    Raises:
        OutOfMemoryError: One of them does not fit.
        ModelLoadError: One of them cannot be loaded, or the text is too short.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        merged.folder, local_files_only=True, trust_remote_code=False
    )
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :MAX_TOKENS]  # [1, T]
    if ids.shape[1] < 2:
        raise ModelLoadError("the held-out text has fewer than two tokens")
    first, second = (_log_probabilities(contender, ids) for contender in (unmerged, merged))
    ids = ids[:, : first.shape[0] + 1]
    kl = (first.exp() * (first - second)).sum(-1).mean()
    return {
        "tokens": ids.shape[1],
        "unmerged": _perplexity(first, ids),
        "merged": _perplexity(second, ids),
        "mean_kl": float(kl),
        "agreement_percent": float((first.argmax(-1) == second.argmax(-1)).float().mean() * 100),
    }


def _perplexity(log_probabilities: torch.Tensor, ids: torch.Tensor) -> float:
    return math.exp(-float(log_probabilities.gather(1, ids[0, 1:, None]).mean()))


def _log_probabilities(contender: Contender, ids: torch.Tensor) -> torch.Tensor:
    """Return what a model gives every next token, [T - 1, V] in float32 on the CPU."""
    model = _load(contender, ids.shape[1])
    most = int(model.config.get_text_config().max_position_embeddings)
    with torch.no_grad():
        logits = model(ids[:, :most].to(contender.device)).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _load(contender: Contender, tokens: int) -> Any:  # noqa: ANN401
    _refuse_too_large(contender, tokens)
    dtype = compute_dtype("auto", contender.device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            contender.folder,
            dtype=dtype,
            quantization_config=quantization_config(contender.quantization, dtype),
            device_map={"": str(contender.device)},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelLoadError(f"{contender.folder} cannot be loaded: {error}") from error
    if contender.lora:
        # As those who trained it compute it, and not as this package does.
        model = PeftModel.from_pretrained(model, contender.lora, local_files_only=True)
    return model.eval()


def _refuse_too_large(contender: Contender, tokens: int) -> None:
    plan = plan_memory(
        read_shape(contender.folder),
        contender.quantization,
        on_cuda=contender.device.type == "cuda",
        lora_bytes=lora_bytes_of(contender.lora),
    )
    plan.check(tokens, _available_bytes(contender.device), str(contender.device))


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes()
