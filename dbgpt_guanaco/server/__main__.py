"""``python -m dbgpt_guanaco.server``: load the model that ``.env`` names, and serve it."""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from rich.console import Console
from rich.table import Table
from sse_starlette.sse import AppStatus

from dbgpt_guanaco.environment import load_settings
from dbgpt_guanaco.errors import ConfigurationError, GuanacoError
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.listeners import create_listeners
from dbgpt_guanaco.server.logs import set_up_logging
from dbgpt_guanaco.server.registration import Registrations, check
from dbgpt_guanaco.settings import Settings
from dbgpt_guanaco.types import EmbeddingCard, ModelCard

# Time that running answers have once the server is told to stop.
GRACE_S = 10


def main() -> int:
    """Serve until told to stop. Returns the exit status: 2 for what a setting can mend."""
    console = _console()
    try:
        settings = load_settings()
        set_up_logging(settings.server.log_level, console, settings.observation.log_format)
        listener = _bind(settings.server.host, settings.server.port)
        with listener:
            _serve(settings, listener, console)
    except GuanacoError as error:
        # Not folded: a command in the message must survive copying.
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class GracefulServer(uvicorn.Server):
    """A uvicorn server that lets answers end, and ends those that do not with an error.

    Args:
        config: uvicorn's.
        end_all: Called when the time that running requests have is over.
        registrations: Begun once the server listens, taken back before it closes its door.
        on_started: Called once the server listens.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        end_all: Callable[[], None],
        registrations: Registrations,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._registrations, self._on_started = registrations, on_started
        self._deadline = threading.Timer(GRACE_S, end_all)
        self._deadline.daemon = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_started()
            self._registrations.start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more connections; a second signal ends at once."""
        if self.should_exit:
            self.force_exit = True  # uvicorn does so for Ctrl-C only
        else:
            self._deadline.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let DB-GPT send no more chats here, then wait for what runs."""
        leaving = asyncio.create_task(self._registrations.stop())
        while not leaving.done() and not self.force_exit:
            await asyncio.wait({leaving}, timeout=0.1)
        await super().shutdown(sockets)
        self._deadline.cancel()


def _serve(settings: Settings, listener: socket.socket, console: Console) -> None:
    logging.getLogger(__name__).info("starting; loading libraries takes some seconds")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log is no place for progress bars
    listening = listener.getsockname()[:2]
    memberships = check(settings, listening)
    listeners = create_listeners(settings.observation)
    # Loaded only now: an error in a setting is told before torch takes its seconds.
    from dbgpt_guanaco.engine.factory import create_embedder, create_engine

    embedder = create_embedder(settings)  # first: if it is missing, that is told at once
    engine = create_engine(settings)
    host, port = listening
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        create_app(
            engine,
            settings.server,
            embedder=embedder,
            cluster=settings.cluster,
            listeners=listeners,
        ),
        log_config=None,
        log_level=settings.server.log_level,
        server_header=False,
        access_log=False,  # the application logs each request when it has ended
        # Who may register as a worker is decided by the address that a connection comes from,
        # not by a header that says another.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S + 2,
        ws="none",
    )
    # Else it cuts every event stream within half a second of the signal.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    registrations = Registrations(settings.cluster, listening, engine, embedder)
    rows = summary(engine.card, embedder.card if embedder else None, settings, address, memberships)

    def end_all() -> None:
        if embedder:
            embedder.close()
        engine.close()

    def announce() -> None:
        if settings.observation.log_format == "json":
            logging.getLogger(__name__).info("ready", extra={"fields": {"address": address}})
        else:
            console.print(rows)

    server = GracefulServer(config, end_all, registrations, announce)
    server.run(sockets=[listener])


def _console() -> Console:
    # Wide where nobody looks at it: a folded address cannot be copied out of a log.
    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def summary(
    card: ModelCard,
    embedding: EmbeddingCard | None,
    settings: Settings,
    address: str,
    memberships: list[str],
) -> Table:
    """Return what a person wants to know once the server is up.

    Args:
        card: Of the model.
        embedding: Card of the embedding model, if there is one.
        settings: All of them.
        address: Where the server listens.
        memberships: With which controllers it registers, and as what.
    """
    table = Table(title="dbgpt_guanaco is ready", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    lora = f" + LoRA {card.lora} (un-merged)" if card.lora else ""
    rows = {
        "model": f"{card.name}{lora}" + "".join(f", also {alias}" for alias in card.aliases),
        "family": card.family,
        "weights": f"{card.quantization}, {card.weight_bytes / 2**20:,.0f} MiB measured",
        "arithmetic": f"{card.compute_dtype} on {card.device}",
        "context": f"{card.context_tokens:,} tokens",
        "at a time": f"{settings.engine.slots} answered, {settings.engine.queue_size} may wait",
        "embeddings": (
            f"{embedding.name}, {embedding.dimension} dimensions, on {embedding.device}"
            if embedding
            else "none; EMBEDDING_MODEL names no model"
        ),
        "chat page": f"{address}/",
        "OpenAI clients": f"base_url = {address}/v1",
        "DB-GPT 0.7 and later": f'provider = "proxy/openai", api_base = "{address}/v1"',
        "DB-GPT, light": f'controller_addr = "{address}"',
        "DB-GPT of 2023": f"MODEL_SERVER={address}",
    }
    if memberships:
        rows["registers with"] = "\n".join(memberships)
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


if __name__ == "__main__":
    sys.exit(main())
