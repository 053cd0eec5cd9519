"""Who may use the server, as the doctor sees it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.keys import keys
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import AccessSettings, ServerSettings, Settings

KEY = "a-key-of-somebody"


def examined(host: str = "0.0.0.0", **access: Any) -> Finding:
    settings = Settings(server=ServerSettings(host=host), access=AccessSettings(**access))
    return keys(Setup(settings=settings))


def file_of(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_only_this_machine_needs_no_key(host: str) -> None:
    finding = examined(host)

    assert finding.status == "ok"
    assert "only this machine" in finding.text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "models.example"])
def test_strangers_without_a_key_keep_the_server_from_starting(host: str) -> None:
    finding = examined(host)

    assert finding.status == "failure"
    assert "GUANACO_API_KEYS" in finding.text


def test_strangers_that_are_let_in_are_worth_a_warning() -> None:
    assert examined(allow_no_keys=True).status == "warning"


def test_owners_are_told_and_keys_are_not(tmp_path: Path) -> None:
    file = file_of(tmp_path, f"ann: {KEY}")
    finding = examined(api_keys_file=file, admin_key=SecretStr("the-key-of-the-admin"))

    assert finding.status == "ok"
    assert "ann" in finding.text
    assert "admin" in finding.text
    assert KEY not in finding.text


@pytest.mark.parametrize(
    ("text", "mode", "status", "told"),
    [
        (f"ann: {KEY}", 0o644, "warning", "can read"),
        (f"ann: {KEY}", 0o666, "failure", "can change"),
        ("ann: short", 0o600, "failure", "line 1"),
        ("# nobody yet", 0o600, "warning", "holds no key"),
    ],
)
def test_a_file_of_keys_is_looked_at(
    tmp_path: Path, text: str, mode: int, status: str, told: str
) -> None:
    finding = examined(api_keys_file=file_of(tmp_path, text, mode))

    assert (finding.status, told in finding.text) == (status, True)
