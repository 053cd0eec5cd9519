"""Card, driver and torch, in every combination that people have."""

from pathlib import Path

import pytest

from dbgpt_guanaco.doctor.findings import Status
from dbgpt_guanaco.doctor.gpu import Hardware, TorchBuild, find_hardware, find_torch, gpu, judge
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.settings import ModelSettings, Settings

CARD = Hardware(has_gpu=True, driver="580.95.05")
NO_CARD = Hardware(has_gpu=False, driver="")
CPU_BUILD = TorchBuild("2.13.0+cpu", "")
CUDA_BUILD = TorchBuild("2.13.0+cu130", "13.0", ("NVIDIA H100",))


def without(build: TorchBuild, problem: str = "") -> TorchBuild:
    return TorchBuild(build.version, build.cuda, problem=problem)


@pytest.mark.parametrize(
    ("hardware", "torch", "wanted", "status", "told"),
    [
        (CARD, CUDA_BUILD, "auto", "ok", "NVIDIA H100; driver 580.95.05, torch 2.13.0+cu130"),
        (NO_CARD, CPU_BUILD, "auto", "ok", "there is no NVIDIA GPU"),
        (NO_CARD, CPU_BUILD, "cuda", "failure", "GUANACO_DEVICE=cuda, but there is no NVIDIA GPU"),
        (CARD, CPU_BUILD, "auto", "warning", "torch 2.13.0+cpu is built for the CPU"),
        (CARD, CPU_BUILD, "cuda", "failure", "torch 2.13.0+cpu is built for the CPU"),
        (CARD, CPU_BUILD, "cpu", "ok", "GUANACO_DEVICE=cpu"),
        (Hardware(True, ""), without(CUDA_BUILD), "auto", "warning", "driver is not loaded"),
        (Hardware(True, ""), without(CUDA_BUILD), "cuda", "failure", "driver is not loaded"),
    ],
)
def test_what_belongs_together(
    monkeypatch: pytest.MonkeyPatch,
    hardware: Hardware,
    torch: TorchBuild,
    wanted: str,
    status: Status,
    told: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    finding = judge(hardware, torch, wanted)

    assert finding.status == status
    assert told in finding.text


@pytest.mark.parametrize(
    ("driver", "cuda", "is_too_old"),
    [
        ("580.65.05", "13.0", True),
        ("580.65.06", "13.0", False),
        ("575.57.08", "13.2", True),
        ("525.60.12", "12.8", True),
        ("525.60.13", "12.8", False),
        ("450.80.01", "11.8", True),
        ("999.1", "99.0", False),  # a CUDA that nothing is known of
    ],
)
def test_a_driver_too_old_for_the_build_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, driver: str, cuda: str, is_too_old: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    finding = judge(Hardware(True, driver), TorchBuild("2.13.0", cuda, problem="no"), "auto")

    assert finding.status == "failure"
    assert ("is too old for torch" in finding.text) == is_too_old


def test_a_hidden_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    finding = judge(CARD, without(CUDA_BUILD), "auto")

    assert finding.status == "warning"
    assert "CUDA_VISIBLE_DEVICES='' hides every GPU" in finding.text


def test_what_torch_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    finding = judge(CARD, without(CUDA_BUILD, "out of luck"), "auto")

    assert finding.text == "torch 2.13.0+cu130 sees no GPU: out of luck"


def test_a_gpu_that_torch_has_no_code_for_is_a_failure() -> None:
    build = TorchBuild("2.13.0+cu130", "13.0", ("Tesla K80",), too_old=("Tesla K80",))

    finding = judge(CARD, build, "auto")

    assert finding.status == "failure"
    assert "has no code for Tesla K80" in finding.text


def machine(root: Path, *, vendor: str = "", kind: str = "0x030000", driver: str = "") -> Path:
    """Make the files with which Linux tells of a card and a driver."""
    if vendor:
        device = root / "sys/bus/pci/devices/0000:01:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(driver)
    return root


OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
OLD_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 2021\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, NO_CARD),
        ({"vendor": "0x8086"}, NO_CARD),
        ({"vendor": "0x10de", "kind": "0x040300"}, NO_CARD),  # the sound of a card
        ({"vendor": "0x10de"}, Hardware(True, "")),
        ({"vendor": "0x10de", "kind": "0x030200"}, Hardware(True, "")),
        ({"vendor": "0x10de", "driver": OPEN_DRIVER}, Hardware(True, "580.65.06")),
        ({"vendor": "0x10de", "driver": OLD_DRIVER}, Hardware(True, "470.57.02")),
        ({"driver": "something else"}, NO_CARD),
    ],
)  # fmt: skip
def test_the_kernel_tells_of_card_and_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: Hardware
) -> None:
    monkeypatch.setenv("PATH", "")

    assert find_hardware(machine(tmp_path / "root", **files)) == expected


@pytest.mark.parametrize(
    ("script", "driver"),
    [
        ("echo 560.35.03", "560.35.03"),
        ("echo 560.35.03; echo 560.35.03", "560.35.03"),
        ("echo NVIDIA-SMI has failed; exit 9", ""),
        ("exit 1", ""),
    ],
)
def test_where_the_kernel_says_nothing_nvidia_smi_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, driver: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    assert find_hardware(tmp_path / "root").driver == driver


def test_an_nvidia_smi_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr("dbgpt_guanaco.doctor.gpu.SMI_S", 0.2)

    assert find_hardware(tmp_path / "root").driver == ""


def test_this_machine_is_judged() -> None:
    import torch

    assert find_torch().version == torch.__version__
    assert gpu(Setup(settings=Settings(model=ModelSettings(device="cpu")))).status == "ok"
