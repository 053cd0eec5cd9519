"""Every check is made in an empty folder, with no setting in the environment."""

import os
from pathlib import Path

import pytest

from dbgpt_guanaco.environment import setting_names


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in {*setting_names(), *os.environ} - {"CUDA_VISIBLE_DEVICES"}:
        if name.upper() in setting_names() or name.upper().startswith("GUANACO_"):
            monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
