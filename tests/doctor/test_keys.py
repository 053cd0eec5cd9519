"""Keys: there, missing, the same, readable by others; and doors beside them."""

from pathlib import Path

import pytest

from dbgpt_guanaco import settings as all_settings
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.findings import Finding
from dbgpt_guanaco.doctor.setup import Setup

needs_keys = pytest.mark.xfail(
    not hasattr(all_settings, "AccessSettings"), reason="there are no keys yet", strict=True
)
KEY, OTHER = "0123456789abcdef-one", "0123456789abcdef-two"


def examined(*lines: str) -> Finding:
    Path(".env").write_text("".join(f"{line}\n" for line in lines))
    return run_check("dbgpt_guanaco.doctor.keys.keys", Setup())


def key_file(text: str, mode: int = 0o600) -> str:
    path = Path("keys")
    path.write_text(text)
    path.chmod(mode)
    return f"GUANACO_API_KEYS_FILE={path}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_none_are_needed(host: str) -> None:
    assert examined(f"GUANACO_HOST={host}").status == "ok"


def test_a_server_that_others_reach_needs_them() -> None:
    finding = examined("GUANACO_HOST=0.0.0.0")

    assert finding.status in ("failure", "warning")
    assert "whoever reaches" in finding.text


@needs_keys
def test_a_server_that_others_reach_does_not_start_without_them() -> None:
    assert examined("GUANACO_HOST=0.0.0.0").status == "failure"
    allowed = examined("GUANACO_HOST=0.0.0.0", "GUANACO_ALLOW_NO_KEYS=true")
    assert allowed.status == "warning"


@needs_keys
def test_keys_are_told_by_their_names() -> None:
    finding = examined("GUANACO_HOST=0.0.0.0", key_file(f"anna: {KEY}\nbob: {OTHER}\n"))

    assert (finding.status, finding.text) == ("ok", "2: anna, bob")


@needs_keys
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([f"GUANACO_API_KEYS={KEY}", f"GUANACO_ADMIN_KEY={KEY}"], "the same key"),
        (["GUANACO_API_KEYS_FILE=no-such-file"], "No such file"),
    ],
)
def test_keys_that_cannot_be_used_are_a_failure(lines: list[str], told: str) -> None:
    finding = examined(*lines)

    assert finding.status == "failure"
    assert told in finding.text
    assert KEY not in finding.text


@needs_keys
def test_a_key_that_is_too_short_is_a_wrong_setting() -> None:
    Path(".env").write_text("GUANACO_API_KEYS=short-one\n")

    finding = run_check("dbgpt_guanaco.doctor.configuration.values", Setup())

    assert finding.status == "failure"
    assert "a key has at least" in finding.text
    assert "short-one" not in finding.text


@needs_keys
@pytest.mark.parametrize(
    ("mode", "status"), [(0o600, "ok"), (0o640, "warning"), (0o602, "failure")]
)
def test_who_else_may_read_or_write_the_file(mode: int, status: str) -> None:
    finding = examined(key_file(f"{KEY}\n", mode))

    assert finding.status == status
    assert (finding.remedy == "chmod 600 keys") == (status != "ok")


@needs_keys
def test_a_file_without_keys_keeps_everybody_out() -> None:
    finding = examined(key_file("# none yet\n"))

    assert finding.status == "warning"
    assert "nobody gets in" in finding.text


@needs_keys
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GUANACO_DBGPT_NETWORKS=0.0.0.0/0", "warning"),
        ("GUANACO_DBGPT_NETWORKS=10.0.0.0/8", "ok"),
        ("GUANACO_WORKER_NETWORKS=::/0", "warning"),
        ("GUANACO_METRICS_NETWORKS=0.0.0.0/1", "warning"),
    ],
)
def test_a_network_of_almost_everybody_is_a_warning(line: str, status: str) -> None:
    assert examined(f"GUANACO_API_KEYS={KEY}", line).status == status
