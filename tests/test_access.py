"""Starting where strangers could come: the real program, in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import wait_until_ready
from test_cluster import SCRIPT, free_port

KEY = "a-key-for-this-test-only"


def start(folder: Path, port: int, **settings: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GUANACO_")}
    environment |= {"MODEL_PORT": str(port), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            cwd=folder,
            env=environment | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def test_without_keys_it_does_not_listen_to_strangers(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), GUANACO_HOST="0.0.0.0")

    assert process.wait(timeout=60) == 2
    told = (tmp_path / "log").read_text()
    assert "there is no key" in told
    assert "GUANACO_ALLOW_NO_KEYS=true" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("settings", [{"GUANACO_API_KEYS": KEY}, {"GUANACO_ALLOW_NO_KEYS": "true"}])
def test_it_does_with_a_key_or_where_that_is_said_to_be_safe(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    port = free_port()
    process = start(tmp_path, port, GUANACO_HOST="0.0.0.0", **settings)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, process, tmp_path / "log")
        without = httpx.get(f"{address}/v1/models").status_code
        with_key = httpx.get(
            f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"}
        ).status_code
    finally:
        process.terminate()
        process.wait(timeout=20)

    assert (without, with_key) == (401 if "GUANACO_API_KEYS" in settings else 200, 200)
    assert KEY not in (tmp_path / "log").read_text()
