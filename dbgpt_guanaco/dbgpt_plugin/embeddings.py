"""Knowledge bases of DB-GPT → the server's ``/embeddings``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dbgpt.core import EmbeddingModelMetadata, Embeddings
from dbgpt.core.interface.parameter import EmbeddingDeployModelParameters
from dbgpt.model.adapter.base import register_embedding_adapter
from dbgpt.util.configure.manager import _resolve_env_vars

from dbgpt_guanaco.dbgpt_plugin.connection import Server, ServerError
from dbgpt_guanaco.dbgpt_plugin.defaults import API_BASE, API_KEY, PROVIDER

PATH = "/embeddings"
# Far below the server's own limits: GUANACO_MAX_BODY_BYTES is 4 MiB, a character at most 12 bytes
# of JSON.
BATCH_TEXTS = 256
BATCH_CHARACTERS = 128 * 1024


@dataclass
class GuanacoEmbeddingParameters(EmbeddingDeployModelParameters):  # type: ignore[misc]  # as in tokens.py
    """One embedding model. Defining this class registers it, as in ``parameters.py``."""

    provider: str = PROVIDER
    api_base: str = field(
        default=API_BASE, metadata={"help": "Address of the Guanaco server, with its /v1"}
    )
    api_url: str = field(
        default="", metadata={"help": "Instead of api_base: the address that ends in /embeddings"}
    )
    api_key: str = field(
        default=API_KEY,
        metadata={"help": "Key of the Guanaco server, if it wants one", "tags": "privacy"},
    )
    backend: str = field(
        default="", metadata={"help": "The server's name of the model, if name is another"}
    )
    timeout: int = field(default=120, metadata={"help": "Seconds to wait for one batch of texts"})

    @property
    def real_provider_model_name(self) -> str:
        """The name to send."""
        return str(self.backend or self.name)


class GuanacoEmbeddings(Embeddings):  # type: ignore[misc]  # DB-GPT's types are not seen here
    """Vectors of texts, from one model of one server."""

    def __init__(self, server: Server, model: str, patience_s: float = 120) -> None:
        self._server, self._model, self._patience_s = server, model, patience_s

    @classmethod
    def param_class(cls) -> type[GuanacoEmbeddingParameters]:
        """Return what the TOML is read into."""
        return GuanacoEmbeddingParameters

    @classmethod
    def from_parameters(cls, parameters: GuanacoEmbeddingParameters) -> "GuanacoEmbeddings":
        """Return embeddings for what the TOML says.

        Raises:
            ValueError: ``api_url`` is not the address of embeddings.
        """
        url = _resolve_env_vars(parameters.api_url).rstrip("/")
        if url and not url.endswith(PATH):
            raise ValueError(f"api_url {url!r} does not end in {PATH}; api_base is without it")
        base = url.removesuffix(PATH) or _resolve_env_vars(parameters.api_base)
        server = Server(base, _resolve_env_vars(parameters.api_key))
        return cls(server, parameters.real_provider_model_name, parameters.timeout)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text, in their order.

        Raises:
            ServerError: The server did not give them.
        """
        bodies = self._bodies(texts)
        answers = self._server.post_all(PATH, bodies, patience_s=self._patience_s)
        return _vectors(answers, bodies)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do as ``embed_documents``, without blocking."""
        bodies = self._bodies(texts)
        answers = await self._server.apost_all(PATH, bodies, patience_s=self._patience_s)
        return _vectors(answers, bodies)

    async def aembed_query(self, text: str) -> list[float]:
        """Do as ``embed_query``, without blocking."""
        return (await self.aembed_documents([text]))[0]

    def _bodies(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"model": self._model, "input": batch} for batch in batches(texts)]


def batches(texts: Sequence[str]) -> list[list[str]]:
    """Cut texts into lists that fit one request; a text that is too long for any is alone."""
    cut: list[list[str]] = []
    characters = 0
    for text in texts:
        characters += len(text)
        if not cut or len(cut[-1]) == BATCH_TEXTS or characters > BATCH_CHARACTERS:
            cut.append([])
            characters = len(text)
        cut[-1].append(text)
    return cut


def register() -> None:
    """Make the provider known for embedding models."""
    told = "Small and English, served by dbgpt-guanaco"
    example = EmbeddingModelMetadata(
        model=["all-MiniLM-L6-v2"], dimension=384, context_length=256, description=told
    )
    register_embedding_adapter(GuanacoEmbeddings, supported_models=[example])


def _vectors(answers: list[Any], bodies: list[dict[str, Any]]) -> list[list[float]]:
    """Return the vectors of all answers in the order of their texts.

    Raises:
        ServerError: An answer is not one vector for each text.
    """
    vectors: list[list[float]] = []
    for answer, body in zip(answers, bodies, strict=True):
        found = {each["index"]: each["embedding"] for each in answer.get("data", [])}
        if set(found) != set(range(len(body["input"]))):
            raise ServerError(f"{len(found)} vectors came back for {len(body['input'])} texts")
        vectors += [found[index] for index in range(len(found))]
    return vectors
