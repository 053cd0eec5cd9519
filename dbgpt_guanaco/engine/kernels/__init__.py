"""Kernels of our own. They need Triton, which comes with torch for CUDA; their import does not."""

from importlib.util import find_spec


def is_available() -> bool:
    """Say whether Triton is installed."""
    return find_spec("triton") is not None
