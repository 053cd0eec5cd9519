"""``python -m dbgpt_guanaco.server``: load the model that ``.env`` names, and serve it."""

import logging
import os
import socket
import sys

import uvicorn
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from dbgpt_guanaco.errors import ConfigurationError, GuanacoError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.settings import Settings, load_settings
from dbgpt_guanaco.types import ModelCard

GRACE_S = 10
SWITCH_INTERVAL_S = 0.005


def main() -> int:
    """Serve until told to stop. Returns the exit status: 2 for what a setting can mend."""
    console = Console(stderr=True)
    try:
        settings = load_settings()
        _set_up_logging(settings, console)
        listener = _bind(settings.server.host, settings.server.port)
        with listener:
            _serve(settings, listener, console)
    except GuanacoError as error:
        console.print(f"[bold red]error:[/] {type(error).__name__}", highlight=False)
        console.print(str(error), markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(settings: Settings, listener: socket.socket, console: Console) -> None:
    # Loaded only now: an error in a setting is told before torch takes its seconds.
    from dbgpt_guanaco.engine.factory import create_engine

    # Every operator of a forward pass takes the interpreter's lock anew; while the event loop is
    # busy, each may wait for a whole switch interval (5 ms by default).
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    engine = create_engine(settings)
    app = create_app(engine, settings.server)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console.print(summary(engine.card, settings, f"http://{shown}:{port}"))
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.server.log_level,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listener])


def summary(card: ModelCard, settings: Settings, address: str) -> Table:
    """Return what a person wants to know once the server is up."""
    table = Table(title="dbgpt_guanaco is ready", show_header=False, title_justify="left")
    lora = f" + LoRA {card.lora} (un-merged)" if card.lora else ""
    rows = {
        "model": f"{card.name}{lora}" + "".join(f", also {alias}" for alias in card.aliases),
        "family": card.family,
        "weights": f"{card.quantization}, {card.weight_bytes / 2**20:,.0f} MiB measured",
        "arithmetic": f"{card.compute_dtype} on {card.device}",
        "context": f"{card.context_tokens:,} tokens",
        "at a time": f"{settings.engine.slots} answered, {settings.engine.queue_size} may wait",
        "chat page": f"{address}/",
        "OpenAI clients": f"base_url = {address}/v1",
        "DB-GPT 0.7 and later": f'provider = "proxy/openai", api_base = "{address}/v1"',
        "DB-GPT of 2023": f"MODEL_SERVER={address}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the model takes its minutes.

    Raises:
        ConfigurationError: It is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is spelled out because asyncio sets TCP_NODELAY only where it reads "TCP".
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); "
            "choose another MODEL_PORT or GUANACO_HOST"
        ) from None
    return listener


def _set_up_logging(settings: Settings, console: Console) -> None:
    logging.basicConfig(
        level=settings.server.log_level.upper(),
        format="%(message)s",
        datefmt="[%X]",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "filelock", "asyncio", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs every event, text included, at its debug level.
    logging.getLogger("sse_starlette").setLevel(logging.INFO)
    # It offers to download a kernel that it has a built-in for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
