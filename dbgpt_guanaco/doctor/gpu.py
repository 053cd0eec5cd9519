"""An NVIDIA GPU, its driver, and the build of torch: do they belong together?"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup

# Least drivers for a CUDA release, by its first number. Source: NVIDIA, "CUDA Toolkit Release
# Notes", minor version compatibility (Linux).
LEAST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"
SMI_S = 10
CUDA_TORCH = "python -m pip install --force-reinstall torch   # from an index with the CUDA build"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the operating system says.

    Attributes:
        has_gpu: A card of NVIDIA's is there.
        driver: Version of its driver; empty where none is loaded.
    """

    has_gpu: bool
    driver: str


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What torch says.

    Attributes:
        version: Such as ``2.13.0+cu130``.
        cuda: The CUDA release it was built for; empty for a build for the CPU.
        gpus: Names of those that it can use.
        too_old: Names of those that it has no code for.
        problem: What it says where it can use none.
    """

    version: str
    cuda: str
    gpus: tuple[str, ...] = ()
    too_old: tuple[str, ...] = ()
    problem: str = ""


def gpu(setup: Setup) -> Finding:
    """Hold the card, its driver and torch against each other and against the settings."""
    wanted = setup.settings.model.device  # loads CUDA_VISIBLE_DEVICES, too
    return judge(find_hardware(), find_torch(), wanted)


def judge(hardware: Hardware, torch: TorchBuild, wanted: str) -> Finding:
    """Say whether a GPU can be used, or must be.

    Args:
        hardware: What is there.
        torch: What could use it.
        wanted: GUANACO_DEVICE.
    """
    if wanted == "cpu":
        return ok(f"GUANACO_DEVICE=cpu: none is used; torch {torch.version}")
    if torch.gpus and not torch.too_old:
        told = f"{', '.join(torch.gpus)}; driver {hardware.driver or 'unknown'}"
        return ok(f"{told}, torch {torch.version}")
    found = _why_none(hardware, torch)
    if found.status == "ok" and wanted == "cuda":
        return failure(f"GUANACO_DEVICE=cuda, but {found.text}", "GUANACO_DEVICE=cpu")
    if found.status == "warning" and wanted == "cuda":
        return failure(found.text, found.remedy)
    return found


def _why_none(hardware: Hardware, torch: TorchBuild) -> Finding:
    if not hardware.has_gpu and not hardware.driver:
        return ok(f"there is no NVIDIA GPU: the CPU computes; torch {torch.version}")
    if not hardware.driver:
        return warning(
            "there is an NVIDIA GPU, but its driver is not loaded, so the CPU computes",
            "sudo apt-get install nvidia-driver-580   # or your system's package; then restart",
        )
    if not torch.cuda:
        return warning(
            f"there is an NVIDIA GPU, but torch {torch.version} is built for the CPU", CUDA_TORCH
        )
    least = LEAST_DRIVER.get(int(torch.cuda.partition(".")[0]))
    if least and _is_older(hardware.driver, least):
        return failure(
            f"the NVIDIA driver {hardware.driver} is too old for torch {torch.version}: "
            f"CUDA {torch.cuda} needs {least}",
            f"install driver {least.partition('.')[0]} or newer and restart, or a torch that is "
            "built for an older CUDA",
        )
    if torch.too_old:
        return failure(
            f"torch {torch.version} has no code for {', '.join(torch.too_old)}",
            "GUANACO_DEVICE=cpu, or a torch that still has code for it",
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return warning(f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU, so the CPU computes")
    return failure(f"torch {torch.version} sees no GPU: {torch.problem}", "nvidia-smi")


def _is_older(driver: str, least: str) -> bool:
    try:
        return Version(driver) < Version(least)
    except InvalidVersion:
        return False


def find_hardware(root: Path = Path("/")) -> Hardware:
    """Ask the kernel, then nvidia-smi, for a card and its driver."""
    devices = (root / "sys/bus/pci/devices").glob("*")
    has_gpu = any(_is_nvidia_card(device) for device in devices)
    return Hardware(has_gpu, _driver_of(root / "proc/driver/nvidia/version") or _ask_nvidia_smi())


def _is_nvidia_card(device: Path) -> bool:
    try:
        vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
    except OSError:
        return False
    return vendor.strip() == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)


def _driver_of(path: Path) -> str:
    try:
        first = path.read_text().partition("\n")[0]
    except OSError:
        return ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", first)
    return found[1] if found else ""


def _ask_nvidia_smi() -> str:
    """Return the driver's version where the kernel does not tell it, as under Windows."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, capture_output=True, text=True, timeout=SMI_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.fullmatch(r"\d+(\.\d+)+", done.stdout.strip().partition("\n")[0])
    return found[0] if found and done.returncode == 0 else ""


def find_torch() -> TorchBuild:
    """Ask torch what it is built for and what it can use."""
    import torch

    cuda = torch.version.cuda or ""
    if not torch.cuda.is_available():
        problem = ""
        try:
            torch.cuda.current_device()
        except (RuntimeError, AssertionError) as error:
            problem = str(error).partition("\n")[0]
        return TorchBuild(torch.__version__, cuda, problem=problem)
    count = torch.cuda.device_count()
    names = {i: torch.cuda.get_device_name(i) for i in range(count)}
    too_old = tuple(names[i] for i in range(count) if not _has_code(i))
    return TorchBuild(torch.__version__, cuda, tuple(names.values()), too_old)


def _has_code(index: int) -> bool:
    """Say whether torch was built for a GPU: for it, or for an older one of its generation."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", a) for a in torch.cuda.get_arch_list()]
    pairs = [(m[1], int(m[2]), int(m[3])) for m in built if m]
    return not pairs or any(
        (kind == "sm" and x == major and y <= minor)
        or (kind == "compute" and (x, y) <= (major, minor))
        for kind, x, y in pairs
    )
