"""What numbers depend on and no benchmark chooses: the day, the machine, the versions."""

import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.report import client_facts

_PACKAGES = ("torch", "transformers", "bitsandbytes")


def run_facts() -> dict[str, object]:
    """Return when, on what and with which of ours a run is made."""
    client = client_facts()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{client['cpu_model']}, {client['cpu_count']} cores; {client['platform']}",
        "ours": f"commit {_commit()}, Python {client['python']}, {versions}",
    }


def result_path(name: str) -> Path:
    """Return where results go if nobody says."""
    return ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{name}.md"


def as_list(facts: dict[str, object]) -> list[str]:
    """Write facts as a Markdown list."""
    return [f"- {name}: {value}" for name, value in facts.items()]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"
