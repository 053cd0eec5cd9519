"""Which models this worker serves: the loaded one, and the embedding model if there is one."""

from typing import Any

from dbgpt_guanaco.engine.base import Embedder, Engine
from dbgpt_guanaco.errors import InvalidRequestError, NoEmbedderError, UnknownModelError
from dbgpt_guanaco.server import served
from dbgpt_guanaco.server.served import Served
from dbgpt_guanaco.server.worker_requests import WorkerType

REMEDY = "This server serves what it was started with, see LLM_MODEL and EMBEDDING_MODEL."


def find_llm(engine: Engine, name: str) -> Served:
    """Return the language model of that name.

    Raises:
        UnknownModelError: It does not run here.
    """
    return served.find(engine, name, REMEDY)


def find_embedder(embedder: Embedder | None, name: str, worker_type: WorkerType) -> Embedder:
    """Return the embedding model of that name.

    Raises:
        InvalidRequestError: A reranker is wanted.
        NoEmbedderError: None is loaded.
        UnknownModelError: Another is loaded.
    """
    if worker_type == "reranker":
        raise InvalidRequestError("worker_type", "no reranker is served here, only text2vec")
    if embedder is None:
        raise NoEmbedderError
    if name != embedder.card.name:
        raise UnknownModelError(name, [embedder.card.name], REMEDY)
    return embedder


def check_served(
    engine: Engine, embedder: Embedder | None, name: str, worker_type: WorkerType | None
) -> None:
    """Refuse a model that does not run here; no type means a language model.

    Raises:
        GuanacoError: See ``find_llm`` and ``find_embedder``.
    """
    if worker_type in (None, "llm"):
        find_llm(engine, name)
    else:
        find_embedder(embedder, name, worker_type)


def metadata(name: str, context_tokens: int, *, is_chat_model: bool) -> dict[str, Any]:
    """Return the keys of a model's description that every version knows, and no other.

    The versions up to v0.6.3 and from v0.7.0 each fail on a key of the other's own.
    """
    # DB-GPT sends system messages of their own only where that role is named.
    roles = ["system", "human", "ai"] if is_chat_model else []
    return {
        "model": name,
        "context_length": context_tokens,
        "chat_model": is_chat_model,
        "metadata": {},
        "ext_metadata": {"prompt_roles": roles, "prompt_sep": "\n", "prompt_chat_template": None},
    }


def supported(name: str, worker_type: WorkerType) -> dict[str, Any]:
    """Return a model as DB-GPT's management page lists it, with the keys of all versions."""
    return {
        "model": name,
        "path": name,  # a folder's path would be nobody's business
        "worker_type": worker_type,
        "path_exist": True,
        "proxy": False,
        "enabled": True,
        "params": [],
    }
