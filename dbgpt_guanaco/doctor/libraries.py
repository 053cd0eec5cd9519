"""Python and the libraries: there, new enough, and none that is a trap."""

import platform
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dbgpt_guanaco.doctor.findings import Finding, NotCheckedError, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup

DISTRIBUTION = "dbgpt-guanaco"
TOLD = ("torch", "transformers", "bitsandbytes", "peft", "fastapi")
NATIVE = (
    "torch", "safetensors", "tokenizers", "sentencepiece", "greenlet", "llguidance", "bitsandbytes"
)  # fmt: skip
# The first with a plugin mechanism; the plugin is tested with the second.
OLDEST_DBGPT, TESTED_DBGPT = "0.7", "0.8.2"


def python(_: Setup) -> Finding:
    """Hold the interpreter against what this package needs."""
    found, wanted = platform.python_version(), _metadata()["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return failure(
            f"Python {found} runs this, and {wanted} is needed",
            "make clean && make serve PYTHON=python3.11",
        )
    if sys.platform != "linux":
        return warning(f"Python {found} on {sys.platform}; this server is tested on Linux only")
    return ok(f"{found}, {sys.executable}")


def versions(_: Setup) -> Finding:
    """Hold every library against the bounds that this package was built with."""
    _metadata()
    wanted = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    server = [r for r in wanted if r.marker and r.marker.evaluate({"extra": "server"})]
    problems = [(r, problem) for r in server for problem in _problems(r)]
    if problems:
        packages = [f"{requirement.name}{requirement.specifier}" for requirement, _ in problems]
        return failure("; ".join(problem for _, problem in problems), _pip("install", *packages))
    return ok(", ".join(f"{name} {version(name)}" for name in TOLD) + f"; {len(server)} in all")


def native_code(_: Setup) -> Finding:
    """Import those libraries that bring code for this machine."""
    for name in NATIVE:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(str(error), name=name) from error
    return ok(f"{', '.join(NATIVE)} can be imported")


def kernels_package(_: Setup) -> Finding:
    """Look for a package that makes libraries run code from the hub."""
    if find_spec("kernels") is None:
        return ok("is not installed, as it should be")
    return warning(
        "the Python package kernels is installed. With it, bitsandbytes and transformers fetch "
        "native code from the hub and run it, without asking",
        _pip("uninstall", "-y", "kernels"),
    )


def plugin(_: Setup) -> Finding:
    """Say whether a DB-GPT is beside us, and whether it can use the plugin."""
    try:
        found = version("dbgpt")
    except PackageNotFoundError:
        return ok("DB-GPT is not in this interpreter, and need not be")
    if not SpecifierSet(f">={OLDEST_DBGPT}").contains(found, prereleases=True):
        return warning(
            f"DB-GPT {found} is older than {OLDEST_DBGPT} and has no plugins; connect it by "
            "LLM_MODEL and MODEL_SERVER, as the README says"
        )
    told = f"DB-GPT {found} is in this interpreter and can use the plugin"
    tested = "" if found.startswith(TESTED_DBGPT) else f" (tested with {TESTED_DBGPT})"
    return ok(f'{told}{tested}: provider = "guanaco"')


def _metadata() -> dict[str, str]:
    try:
        found = metadata(DISTRIBUTION)
    except PackageNotFoundError:
        raise NotCheckedError(
            f"{DISTRIBUTION} is not installed, only run from its folder, so its bounds are unknown"
        ) from None
    return {name: found[name] for name in found}


def _problems(requirement: Requirement) -> Iterator[str]:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        yield f"{requirement.name} is not installed"
        return
    if not requirement.specifier.contains(found, prereleases=True):
        yield f"{requirement.name} is {found}, and {requirement.specifier} is needed"


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *arguments])
