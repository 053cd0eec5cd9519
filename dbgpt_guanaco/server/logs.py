"""What is written to the terminal, and what is not. Prompts and answers never are."""

import logging

from rich.console import Console
from rich.logging import RichHandler

# Libraries that tell more than a reader wants. sse_starlette would log every event, text
# included; bitsandbytes offers to download a kernel that it has a built-in for.
QUIET = {
    "asyncio": logging.WARNING,
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
    "filelock": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "huggingface_hub": logging.ERROR,
    "sentence_transformers": logging.WARNING,
    "sse_starlette": logging.INFO,
    "torch": logging.WARNING,
    "urllib3": logging.WARNING,
}


def set_up_logging(level: str, console: Console) -> None:
    """Send all logs of at least ``level`` to a console."""
    logging.basicConfig(
        level=level.upper(),
        format="%(message)s",
        datefmt="[%X]",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(least)
    logging.getLogger("uvicorn.access").addFilter(is_worth_a_line)


# What is asked for all the time while all is well: by an open chat page, by DB-GPT before each
# chat, and by workers.
ROUTINE = ("/health", "/ready", "/api/health", "/api/controller/")


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Say whether an access is logged; a routine one is not, unless it failed."""
    arguments = record.args
    if not isinstance(arguments, tuple) or len(arguments) != 5:
        return True
    _, _, path, _, status = arguments  # client, method, path, HTTP version, status
    if str(path).startswith("/api/controller/") and status == 403:
        return False  # the controller says it, once for each caller
    return not (str(path).startswith(ROUTINE) and status == 200)
