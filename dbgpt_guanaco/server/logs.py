"""What is written to the terminal, and what is not. Prompts and answers never are.

A line may carry fields, as ``extra={"fields": {…}}``: text shows them behind the message as
``name=value``, JSON as keys of the line's object.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from dbgpt_guanaco.settings import LogFormat

# Libraries that tell more than a reader wants. sse_starlette would log every event, text
# included; bitsandbytes offers to download a kernel that it has a built-in for.
QUIET = {
    "asyncio": logging.WARNING,
    # For each 8-bit layer of each step, how it casts.
    "bitsandbytes.autograd._functions": logging.ERROR,
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
    "filelock": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "huggingface_hub": logging.ERROR,
    "opentelemetry": logging.WARNING,
    "sentence_transformers": logging.WARNING,
    "sse_starlette": logging.INFO,
    "torch": logging.WARNING,
    "urllib3": logging.WARNING,
}


def set_up_logging(level: str, console: Console, log_format: LogFormat = "text") -> None:
    """Send all logs of at least ``level`` to a console, or as JSON to where it writes."""
    handler: logging.Handler
    if log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
    elif not console.is_terminal:
        # A log file wants one line for each record; and rich takes a millisecond to fold one.
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(TextLines("%(asctime)s %(levelname)-8s %(message)s"))
    else:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(TextLines("%(message)s", datefmt="[%X]"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(least)


class TextLines(logging.Formatter):
    """Writes a line's fields behind its message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See ``logging.Formatter``."""
        told = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        return f"{super().formatMessage(record)} {told}".rstrip()


class JsonLines(logging.Formatter):
    """Writes one JSON object a line, in ASCII, whatever a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a line; most have none."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}
