"""``python -m dbgpt_guanaco.server``: load the model that ``.env`` names, and serve it."""

import contextlib
import gc
import logging
import os
import socket
import sys
from functools import partial
from typing import NoReturn

import uvicorn
from rich.console import Console
from rich.table import Table
from sse_starlette.sse import AppStatus

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.environment import load_settings
from dbgpt_guanaco.errors import ConfigurationError, GuanacoError
from dbgpt_guanaco.server import heap
from dbgpt_guanaco.server.app import create_app
from dbgpt_guanaco.server.connection_limit import ConnectionLimit, most_connections
from dbgpt_guanaco.server.connections import PatientConnection
from dbgpt_guanaco.server.graceful import GracefulServer
from dbgpt_guanaco.server.keys import check_access
from dbgpt_guanaco.server.listeners import create_listeners
from dbgpt_guanaco.server.logs import set_up_logging
from dbgpt_guanaco.server.registration import Registrations, check
from dbgpt_guanaco.server.starting import LifeCycle
from dbgpt_guanaco.server.supervisor import Supervisor
from dbgpt_guanaco.settings import Settings
from dbgpt_guanaco.start import StartProgress, Tell
from dbgpt_guanaco.types import EmbeddingCard, ModelCard

# Longer than clients keep a connection that nobody uses (httpx 5 s, aiohttp 15 s), else one is
# closed here in the very moment in which it is used again.
KEEP_ALIVE_S = 75
# Connections that the kernel takes before this process does.
MOST_WAITING = 2048
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C has ended


def main() -> int:
    """Serve until told to stop.

    Returns:
        The exit status: 2 for what a setting can mend, ``graceful.LOST`` where only a new
        process helps.
    """
    console = _console()
    try:
        settings = load_settings()
        set_up_logging(settings.server.log_level, console, settings.observation.log_format)
        heap.share_arenas()
        listener = _bind(settings.server.host, settings.server.port)
        with listener:
            return _serve(settings, listener, console)
    except GuanacoError as error:
        # Not folded: a command in the message must survive copying.
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _serve(settings: Settings, listener: socket.socket, console: Console) -> int:
    """Serve; return the exit status.

    Raises:
        GuanacoError: The model could not be loaded.
    """
    logging.getLogger(__name__).info("starting; loading libraries takes some seconds")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log is no place for progress bars
    listening = listener.getsockname()[:2]
    memberships = check(settings, listening)
    keys = check_access(settings.access, listening[0])
    listeners = create_listeners(settings.observation)
    life = LifeCycle()
    connections = most_connections()
    config = uvicorn.Config(
        create_app(
            life,
            settings.server,
            cluster=settings.cluster,
            listeners=listeners,
            access=settings.access,
            keys=keys,
        ),
        http=partial(  # type: ignore[arg-type]  # it is called as a class would be
            PatientConnection,
            head_s=settings.access.head_s,
            reader_s=settings.access.reader_s,
            limit=ConnectionLimit(connections),
        ),
        # So many may be taken at once, before any is counted.
        backlog=min(MOST_WAITING, connections // 2),
        timeout_keep_alive=KEEP_ALIVE_S,
        log_config=None,
        log_level=settings.server.log_level,
        server_header=False,
        access_log=False,  # the application logs each request when it has ended
        # Who may register as a worker is decided by the address that a connection comes from,
        # not by a header that says another.
        proxy_headers=False,
        ws="none",
    )
    # Else it cuts every event stream within half a second of the signal.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

    def introduce(engine: Engine, embedder: Embedder | None) -> Registrations:
        address = _address(listening)
        if settings.observation.log_format == "json":
            logging.getLogger(__name__).info("ready", extra={"fields": {"address": address}})
        else:
            card = embedder.card if embedder else None
            told = summary(engine.card, card, settings, address, memberships)
            with contextlib.suppress(OSError):  # a log on a full disk
                console.print(told)
        return Registrations(settings.cluster, listening, engine, embedder)

    server = GracefulServer(
        config, life, partial(_load, settings), introduce, settings.life.drain_s,
        Supervisor(os.environ),
    )  # fmt: skip
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        server.status = INTERRUPTED
    if server.failure:
        raise server.failure
    if server.must_not_wait:
        _leave(server.status)
    return server.status


def _load(settings: Settings, tell: Tell) -> tuple[Engine, Embedder | None]:
    # Only now: an error in a setting is told before torch takes its seconds.
    tell(StartProgress("loading libraries"))
    from dbgpt_guanaco.engine.factory import create_embedder, create_engine

    embedder = create_embedder(settings, tell)  # first: if it is missing, that is told at once
    engine = create_engine(settings, tell)
    # Libraries and weights are a million objects that stay to the end. Without this, Python would
    # look at all of them now and then, and everybody would wait some tenths of a second.
    gc.collect()
    gc.freeze()
    heap.give_back()
    return engine, embedder


def _leave(status: int) -> NoReturn:
    """End the process though threads of it still compute, which Python itself would wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _address(listening: tuple[str, int]) -> str:
    host, port = listening
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
        "who may ask": (
            "who has a key" if settings.access.needs_keys else "who reaches the port: no key is set"
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
