"""What a trained LoRA's folder says of itself: to programs, and to people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbgpt_guanaco.adapters.cards import TRAINING
from dbgpt_guanaco.adapters.family import OWN_TEMPLATE

PAGE = "README.md"


def write_card(card: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write ``training.json`` and the model card; peft's own card is written over."""
    (folder / TRAINING).write_text(json.dumps(card, indent=2, ensure_ascii=False))
    (folder / PAGE).write_text(_page(card, name), encoding="utf-8")


def _prompts(family: str) -> str:
    if family == OWN_TEMPLATE:
        return "by the chat template that the tokenizer ships"
    return f"as the family {family} writes them"


def _page(card: Mapping[str, Any], name: str) -> str:
    base, data, metrics = card["base"], card["data"], card["metrics"]
    how, versions = card["hyperparameters"], card["versions"]
    listed = "\n".join(f"| {key} | {value} |" for key, value in how.items() if value is not None)
    libraries = ", ".join(f"{library} {version}" for library, version in versions.items())
    return f"""---
base_model: {json.dumps(base["name"], ensure_ascii=False)}
library_name: peft
tags: [lora, qlora]
---

# {name}

LoRA weights, trained with `dbgpt-guanaco finetune` on **{base["name"]}** in
{card["quantization"].upper()} with double quantization, {card["compute_dtype"]} arithmetic, on
{card["device"]}.

Serve it, un-merged: `LLM_MODEL=/path/to/this/folder dbgpt-guanaco serve`

- Prompts: {_prompts(card["family"])}.
- Data: {data["name"]} (SHA-256 `{data["sha256"]}`): {data["conversations"]} conversations,
  {data["examples"]} examples, {data["learned_tokens"]} learned of {data["tokens"]} tokens;
  {data["cut"]} were cut at the end of a turn, {data["dropped"]} left out as too long.
- Base: {base["parameters"]} parameters, fingerprint `{base["fingerprint"]}`.
- Loss: {metrics["first_loss"]:.4f} at the first step, {metrics["last_loss"]:.4f} at step
  {metrics["steps"]}; every step is in `loss.csv`.

![loss](loss.png)

| hyperparameter | value |
|---|---|
{listed}

Made with {libraries}. The licence of the base holds for what was made from it.
"""
