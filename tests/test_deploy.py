"""What is in ``deploy/`` names things that exist, and its times fit one another.

No container is run here; the recipes are linted and read.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbgpt_guanaco.environment import setting_names
from dbgpt_guanaco.server.graceful import CLOSE_S, LAST_FRAME_S, LOOK_S, LOST
from dbgpt_guanaco.settings import LifeSettings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*Dockerfile"))
UNIT = DEPLOY / "dbgpt-guanaco.service"
# Not of this program, but of what it stands on.
OTHERS = {"HF_HOME", "XDG_CACHE_HOME", "HOME", "PATH"}
ENDS_WITHIN_S = LifeSettings().drain_s + LAST_FRAME_S + 2 * CLOSE_S


def compose(*names: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in names:
        merged |= yaml.safe_load((DEPLOY / name).read_text())
    return merged


def unit() -> list[tuple[str, str]]:
    lines = UNIT.read_text().splitlines()
    return [
        (k, v) for k, is_line, v in (x.partition("=") for x in lines) if is_line and k[0] != "#"
    ]


def of_unit(key: str) -> list[str]:
    return [value for name, value in unit() if name == key]


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def environment_of(file: Path) -> set[str]:
    envs = [rest for name, rest in instructions(file) if name == "ENV"]
    return set(re.findall(r"([A-Z][A-Za-z_0-9]*)=", " ".join(envs)))


def known(names: set[str]) -> set[str]:
    return {name for name in names if name.upper() in setting_names()}


def test_every_setting_that_is_named_exists() -> None:
    in_unit = {line.partition("=")[0] for line in of_unit("Environment")}
    in_image = environment_of(DEPLOY / "Dockerfile") - {"PYTHONUNBUFFERED"}
    in_image = {name for name in in_image if not name.startswith("PIP_")}
    in_compose = set(compose("compose.yaml")["services"]["guanaco"]["environment"])

    assert in_unit - OTHERS == known(in_unit) != set()
    assert in_image - OTHERS == known(in_image) != set()
    assert in_compose == known(in_compose) != set()


def test_dbgpt_is_given_what_its_configuration_reads() -> None:
    lines = (ROOT / "examples/dbgpt/plugin.toml").read_text().splitlines()
    read = re.findall(r"\$\{env:(\w+)", "".join(x for x in lines if not x.startswith("#")))
    given = set(compose("compose.yaml")["services"]["dbgpt"]["environment"])
    given |= environment_of(DEPLOY / "dbgpt.Dockerfile")
    (_, command) = instructions(DEPLOY / "dbgpt.Dockerfile")[-1]

    assert set(read) <= given
    assert '"/etc/dbgpt/plugin.toml"' in command


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_without_root_and_holds_no_weights(file: Path) -> None:
    steps = instructions(file)
    sources = [p for n, rest in steps if n == "COPY" and "--from" not in rest for p in rest.split()]

    assert [rest for name, rest in steps if name == "USER"][-1] == "10001:10001"
    assert {p.rstrip("/") for p in sources if not p.startswith((".", "/"))} == {
        p for p in sources if (ROOT / p).exists() and not p.startswith((".", "/"))
    }
    assert not any("models" in p for p in sources)
    kept_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept_out[1] == "*"
    assert all(f"!{p}" in kept_out for p in sources if not p.startswith((".", "/")))
    (health,) = [rest for name, rest in steps if name == "HEALTHCHECK"]
    assert ("/ready" if file.name == "Dockerfile" else "/api/health") in health


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_linter_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if not hadolint:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)

    assert found.stdout == ""
    assert found.returncode == 0


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    program = "/opt/dbgpt-guanaco/bin/dbgpt-guanaco"
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)

    assert UNIT.name not in told.stderr
    assert of_unit("ExecStart") == [f"{program} serve"]


def test_the_unit_waits_for_a_drain_and_starts_again_what_a_start_can_mend() -> None:
    assert of_unit("Type") == ["notify"]
    assert float(of_unit("TimeoutStopSec")[0]) > ENDS_WITHIN_S
    assert float(of_unit("WatchdogSec")[0]) > 10 * LOOK_S
    assert of_unit("TimeoutStartSec") == ["infinity"]
    assert of_unit("Restart") == ["always"]
    assert of_unit("RestartPreventExitStatus") == ["2"]
    assert LOST == 70


def test_compose_waits_for_a_drain_and_publishes_nothing_to_the_network() -> None:
    services = compose("compose.yaml")["services"]
    guanaco = services["guanaco"]

    assert float(guanaco["stop_grace_period"].removesuffix("s")) > ENDS_WITHIN_S
    assert guanaco["restart"] == "always"
    assert float(guanaco["environment"]["GUANACO_DRAIN_S"]) == LifeSettings().drain_s
    ports = [port for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["dbgpt"]["depends_on"]["guanaco"]["condition"] == "service_healthy"


def test_compose_builds_from_files_that_exist_and_declares_its_volumes() -> None:
    composed = compose("compose.yaml")
    services = composed["services"].values()
    named = {v.rpartition(":")[0] for service in services for v in service["volumes"]}

    for service in services:
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
    assert {re.sub(r"\$\{\w+:-(.*)\}", r"\1", name) for name in named} == set(composed["volumes"])
    gpu = compose("compose.gpu.yaml")["services"]["guanaco"]
    assert set(gpu["build"]["args"]) == set(composed["services"]["guanaco"]["build"]["args"])
