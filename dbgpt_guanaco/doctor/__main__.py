"""The child process that examines: ``python -m dbgpt_guanaco.doctor [--deep] FUNCTION…``.

Each finding is a line of JSON on standard output, written before the next check begins, so that
a check which ends this process or never returns costs nobody else's line.
"""

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
        return failure(f"a library cannot be used: {error}", "mend what “libraries” says above")
    except Exception as error:  # one check must not end the others
        return failure(f"{type(error).__name__}: {error}", REPORT)
    return found if isinstance(found, Finding) else failure("it found nothing", REPORT)


def main(arguments: list[str]) -> None:
    """Run checks in their order."""
    # What a library prints must not stand between findings.
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
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
