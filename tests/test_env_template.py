import os
import re
from collections import Counter
from pathlib import Path

import pytest

from dbgpt_guanaco.environment import load_settings, setting_names
from dbgpt_guanaco.settings import ModelSettings, Settings

TEMPLATE = Path(__file__).parent.parent / ".env.template"
ASSIGNMENT = re.compile(r"(?:# )?([A-Za-z0-9_]+)=(\S*)")

# What a new file shows although it is not the default, because its line is an example.
EXAMPLES = {
    "LLM_MODEL",
    "GUANACO_ALIASES",
    "GUANACO_ADAPTER",
    "GUANACO_LORA",
    "GUANACO_BASE_MODEL",
    "GUANACO_QUANTIZATION",
    "GUANACO_PREFILL_CHUNK",
    "QUANTIZE_QLORA",
    "QUANTIZE_4BIT",
    "QUANTIZE_8BIT",
    "MAX_GPU_MEMORY",
    "MAX_POSITION_EMBEDDINGS",
}


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*setting_names(), *os.environ} - {"CUDA_VISIBLE_DEVICES"}:
        if name.upper() in setting_names() or name.upper().startswith("GUANACO_"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # kept, so that loading changes nothing


def lines() -> list[str]:
    return TEMPLATE.read_text(encoding="utf-8").splitlines()


def assignments() -> list[tuple[str, str]]:
    return [(m[1], m[2]) for line in lines() if (m := ASSIGNMENT.fullmatch(line))]


def test_the_template_names_every_setting_once_and_nothing_else() -> None:
    named = Counter(name.upper() for name, _ in assignments())

    assert named == Counter(list(setting_names()))


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_both_readmes_tell_every_setting(name: str) -> None:
    text = (TEMPLATE.parent / name).read_text(encoding="utf-8").upper()

    assert [setting for setting in setting_names() if f"`{setting}" not in text] == []


def test_only_the_model_stands_uncommented() -> None:
    assert [line for line in lines() if line and not line.startswith("#")] == [
        "LLM_MODEL=guanaco-33b-merged"
    ]


def test_the_template_as_it_stands_loads() -> None:
    assert load_settings(TEMPLATE) == Settings(model=ModelSettings(name="guanaco-33b-merged"))


def test_every_line_uncommented_loads_and_shows_the_default(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in assignments()))

    loaded, default = load_settings(env_file), Settings()

    for group in ("model", "engine", "server", "life"):
        for field, info in type(getattr(default, group)).model_fields.items():
            shown = getattr(getattr(loaded, group), field)
            if info.validation_alias not in EXAMPLES:
                assert shown == getattr(getattr(default, group), field), field
            else:
                assert shown is not None
    assert loaded.model.quantization == default.model.quantization
