"""HTTP: the only layer that knows requests and frames."""

from importlib.util import find_spec

if find_spec("uvicorn") is None:
    raise ImportError("the server is not installed: pip install 'dbgpt-guanaco[server]'")
