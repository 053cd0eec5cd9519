"""The child process that examines: ``python -m dbgpt_guanaco.doctor [--deep] FUNCTION…``.

Each finding is a line of JSON on standard output, written before the next check begins, so that
a check which ends this process or never returns costs nobody else's line.
"""

import faulthandler
import json
import logging
import os
import sys
from dataclasses import asdict
from importlib import import_module

from dbgpt_guanaco.doctor.findings import Finding, NotCheckedError, failure, skipped
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import GuanacoError

DEEP = "--deep"
REPORT = "the check itself is at fault; please report this line"


def run_check(function: str, setup: Setup) -> Finding:
    """Return what a check found; whatever goes wrong in it is a finding, too.

    Args:
        function: ``module.function``, from the list in ``checks.py``.
        setup: What is examined.
    """
    module, _, name = function.rpartition(".")
    try:
        found = getattr(import_module(module), name)(setup)
    except NotCheckedError as reason:
        return skipped(str(reason))
    except GuanacoError as error:
        return failure(str(error))
    except ImportError as error:
        return _of_import(error, setup)
    except Exception as error:  # one check must not end the others
        return failure(f"{type(error).__name__}: {error}", REPORT)
    return found if isinstance(found, Finding) else failure("it found nothing", REPORT)


def _of_import(error: ImportError, setup: Setup) -> Finding:
    """Tell of a library that cannot be imported once, not by every check that needs it."""
    told = f"a library cannot be used: {error}"
    if told in setup.told:
        return skipped("a library must be mended first")
    setup.told.add(told)
    package = (error.name or "").partition(".")[0]
    return failure(told, f"{sys.executable} -m pip install --force-reinstall {package}".rstrip())


def main(arguments: list[str]) -> None:
    """Run checks in their order."""
    # What a library prints must not stand between findings.
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()  # where native code ends this process, say what called it
    # At import it offers to download a kernel that it has a built-in for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    setup = Setup(is_deep=DEEP in arguments)
    with wire:
        for function in arguments:
            if function != DEEP:
                wire.write(json.dumps(asdict(run_check(function, setup))) + "\n")
                wire.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
