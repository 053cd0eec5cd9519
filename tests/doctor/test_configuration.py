"""Settings and the file that they stand in."""

import os
from pathlib import Path

import pytest

from dbgpt_guanaco.doctor import configuration
from dbgpt_guanaco.doctor.__main__ import run_check
from dbgpt_guanaco.doctor.setup import Setup

ENV = Path(".env")


def write(*lines: str, mode: int = 0o600) -> Setup:
    ENV.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    ENV.chmod(mode)
    return Setup(ENV)


def test_settings_are_told_with_the_place_they_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_PORT", "8001")
    monkeypatch.setenv("LIMIT_MODEL_CONCURRENCY", "4")
    setup = write("MODEL_PORT=8002", "GUANACO_ADMIN_KEY=0123456789abcdef", "OTHER=1")

    finding = configuration.values(setup)

    assert finding.status == "ok"
    assert "from the environment: LIMIT_MODEL_CONCURRENCY, MODEL_PORT" in finding.text
    assert "from .env: GUANACO_ADMIN_KEY;" in finding.text
    assert "in .env, but the environment wins: MODEL_PORT" in finding.text
    assert "0123456789abcdef" not in finding.text


def test_no_settings_are_the_defaults() -> None:
    assert configuration.values(Setup()).text == "all at their defaults"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("GUANACO_HSOT=0.0.0.0", "did you mean GUANACO_HOST"),
        ("MODEL_PORT=eight", "MODEL_PORT=eight"),
        ("MODEL_PORT=65536", "less than or equal to 65535"),
        ("GUANACO_KV_CACHE=much", "GUANACO_KV_CACHE=much: 'much' is not a size"),
        ("QUANTIZE_4bit=1\nQUANTIZE_8bit=1", "are both on"),
    ],
)
def test_a_setting_that_is_wrong_is_a_failure(line: str, told: str) -> None:
    finding = run_check("dbgpt_guanaco.doctor.configuration.values", write(line))

    assert finding.status == "failure"
    assert told in finding.text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["MAX_GPU_MEMORY=22GiB", "GUANACO_DEVICE=cpu"], "MAX_GPU_MEMORY has no effect"),
        (["GUANACO_KV_CACHE=1GiB", "GUANACO_ENGINE=streaming"], "GUANACO_KV_CACHE has no effect"),
        (["GUANACO_MAX_LORAS=1", "GUANACO_LORAS=a=x,b=y"], "GUANACO_LORAS names 2"),
        (["GUANACO_ALIASES=a", "GUANACO_LORAS=a=x"], "both in GUANACO_ALIASES and"),
        (["GUANACO_WORKER_NETWORKS=10.0.0.0/24"], "GUANACO_HOST=127.0.0.1 keeps them out"),
        (["GUANACO_TRUST_REMOTE_CODE=true"], "runs Python code"),
        (["LLM_MODLE=x"], "LLM_MODLE in .env is no setting; is LLM_MODEL meant?"),
        (["GUANCO_HOST=0.0.0.0"], "is GUANACO_HOST meant?"),
        (["MODEL_PROT=1"], "is MODEL_PORT meant?"),
        (["HF_ENDPOINT=https://mirror.example"], "HF_ENDPOINT has no effect in .env"),
    ],
)
def test_what_contradicts_itself_or_is_ignored_is_a_warning(lines: list[str], told: str) -> None:
    finding = configuration.values(write(*lines))

    assert finding.status == "warning"
    assert told in finding.text


DBGPTS = (
    "MODEL_SERVER", "LLM_MODEL_PATH", "EMBEDDING_MODEL_PATH", "PROXY_API_KEY", "LOCAL_DB_TYPE",
    "LLM_MODEL_PROVIDER", "KNOWLEDGE_SEARCH_TOP_SIZE", "MAX_TOKENS", "WEB_SERVER_PORT",
)  # fmt: skip


def test_dbgpts_own_keys_are_no_slips() -> None:
    assert configuration.values(write(*(f"{key}=1" for key in DBGPTS))).status == "ok"


def test_without_a_file_all_is_well() -> None:
    assert configuration.env_file(Setup()).status == "ok"


def test_a_file_of_one_s_own_is_right() -> None:
    assert configuration.env_file(write("LLM_MODEL=a", "# GUANACO_ADMIN_KEY=x", "")).status == "ok"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"LLM_MODEL\n", "line 1 is not read"),
        (b"LLM_MODEL=a\n\nthis is no setting\n", "line 3 is not read"),
        (b"LLM_MODEL=a\nMODEL_PORT=1\nLLM_MODEL=b\n", "LLM_MODEL stands there 2 times"),
        (b"LLM_MODEL='a\n", "line 1 is not read"),
    ],
)
def test_a_line_that_is_not_read_is_a_warning(text: bytes, told: str) -> None:
    ENV.write_bytes(text)

    finding = configuration.env_file(Setup(ENV))

    assert finding.status == "warning"
    assert told in finding.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ufeffLLM_MODEL=a\n".encode(), "byte order mark"),
        ("LLM_MODEL=模型\n".encode("gb18030"), "is not UTF-8"),
    ],
)
def test_a_file_that_an_editor_wrote_otherwise_is_a_failure(text: bytes, told: str) -> None:
    ENV.write_bytes(text)

    finding = configuration.env_file(Setup(ENV))

    assert finding.status == "failure"
    assert told in finding.text


def test_the_remedy_for_a_byte_order_mark_works() -> None:
    ENV.write_bytes("\ufeffLLM_MODEL=a\n".encode())
    ENV.chmod(0o600)

    assert os.system(configuration.env_file(Setup(ENV)).remedy) == 0

    assert ENV.read_text() == "LLM_MODEL=a\n"


@pytest.mark.parametrize(
    ("mode", "line", "status"),
    [
        (0o600, "GUANACO_ADMIN_KEY=x", "ok"),
        (0o640, "GUANACO_ADMIN_KEY=x", "warning"),
        (0o604, "PROXY_API_KEY=x", "warning"),
        (0o644, "GUANACO_ADMIN_KEY=", "ok"),
        (0o644, "LLM_MODEL=a", "ok"),
        (0o664, "LLM_MODEL=a", "failure"),
        (0o602, "LLM_MODEL=a", "failure"),
    ],
)
def test_who_else_may_read_or_write_it(mode: int, line: str, status: str) -> None:
    finding = configuration.env_file(write(line, mode=mode))

    assert finding.status == status
    assert (finding.remedy == "chmod 600 .env") == (status != "ok")
