"""The chat model as DB-GPT's worker loads and drives it.

Source: ``register_proxy_model_adapter`` in ``dbgpt/model/proxy/base.py``, which makes such an
adapter for DB-GPT's own providers; and ``dbgpt/model/cluster/worker/default_worker.py``, which
calls it.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from dbgpt.core import ModelMetadata
from dbgpt.core.interface.message import ModelMessage
from dbgpt.model.adapter.base import register_model_adapter
from dbgpt.model.adapter.proxy_adapter import ProxyLLMModelAdapter
from dbgpt.model.proxy.llms.proxy_model import ProxyModel

from dbgpt_guanaco.dbgpt_plugin.chat import (
    GuanacoLLMClient,
    chat_body,
    completion_body,
    context_tokens,
)
from dbgpt_guanaco.dbgpt_plugin.connection import Server, ServerError, UnreachableServerError
from dbgpt_guanaco.dbgpt_plugin.defaults import PROVIDER
from dbgpt_guanaco.dbgpt_plugin.parameters import GuanacoDeployModelParameters
from dbgpt_guanaco.dbgpt_plugin.tokens import UNKNOWN

logger = logging.getLogger(__name__)

# Both are often started together, and a model takes longer to load than DB-GPT.
WAIT_FOR_SERVER_S = 20.0
POLL_S = 0.5


class GuanacoModel(ProxyModel):  # type: ignore[misc]  # DB-GPT's types are not seen here
    """What DB-GPT's worker holds as its model, and as its tokenizer."""

    proxy_llm_client: GuanacoLLMClient

    def count_token(
        self, messages: str | ModelMessage | list[ModelMessage], model_name: str | None = None
    ) -> int:
        """Count with the server's tokenizer; DB-GPT's own would be tiktoken."""
        listed = messages if isinstance(messages, list) else [messages]
        texts = [each if isinstance(each, str) else str(each.content) for each in listed]
        client = self.proxy_llm_client
        counts = client.proxy_tokenizer.count_token(model_name or client.default_model, texts)
        return UNKNOWN if UNKNOWN in counts else sum(counts)


async def generate_stream(
    model: GuanacoModel,
    tokenizer: object,  # noqa: ARG001
    params: dict[str, Any],
    device: str,  # noqa: ARG001
    context_len: int,  # noqa: ARG001
) -> AsyncGenerator[Any, None]:
    """Answer a worker's request.

    Args:
        model: What was loaded.
        tokenizer: The same, not used.
        params: ``PromptRequest`` of ``dbgpt/model/cluster/base.py`` as a dictionary; it has fields
            that ``ModelRequest`` and ``parse_model_request`` drop.
        device: Not used, the server has its own.
        context_len: Not used, the server knows it.
    """
    client = model.proxy_llm_client
    if params.get("chat_model") is False and params.get("prompt"):
        path, body = "/completions", completion_body(client.default_model, params["prompt"], params)
    else:
        path, body = (
            "/chat/completions",
            chat_body(client.default_model, params["messages"], params),
        )
    async with aclosing(client.outputs(path, body)) as outputs:
        async for output in outputs:
            yield output


class GuanacoAdapter(ProxyLLMModelAdapter):  # type: ignore[misc]  # DB-GPT's types are not seen here
    """Answers to ``provider = "guanaco"``, whatever the model is called."""

    def match(
        self,
        provider: str,
        model_name: str | None = None,  # noqa: ARG002
        model_path: str | None = None,  # noqa: ARG002
    ) -> bool:
        """Tell whether this is the adapter for a provider."""
        return provider == PROVIDER

    def do_match(self, lower_model_name_or_path: str | None = None) -> bool:  # noqa: ARG002
        """Tell that no name is enough without the provider."""
        return False

    def model_param_class(
        self,
        model_type: str | None = None,  # noqa: ARG002
    ) -> type[GuanacoDeployModelParameters]:
        """Return what the TOML is read into."""
        return GuanacoDeployModelParameters

    def supported_models(self) -> list[Any]:
        """Name examples for the model page; the server alone knows what it serves."""
        names = ["guanaco-7b", "guanaco-13b", "guanaco-33b-merged", "guanaco-65b-merged"]
        link = "https://huggingface.co/timdettmers"
        told = "LLaMA fine-tuned with QLoRA, served by dbgpt-guanaco"
        return [ModelMetadata(model=names, context_length=2048, description=told, link=link)]

    def support_async(self) -> bool:
        """DB-GPT then calls ``get_async_generate_stream_function``."""
        return True

    def load_from_params(
        self, params: GuanacoDeployModelParameters
    ) -> tuple[GuanacoModel, GuanacoModel]:
        """Return the model, and itself as its tokenizer. Nothing is asked of the server yet."""
        model = GuanacoModel(params, GuanacoLLMClient.new_client(params))
        return model, model

    def get_async_generate_stream_function(
        self,
        model: GuanacoModel,  # noqa: ARG002
        deploy_model_params: GuanacoDeployModelParameters,  # noqa: ARG002
    ) -> Callable[..., AsyncGenerator[Any, None]]:
        """Return the function that answers."""
        return generate_stream

    def parse_max_length(self, model: GuanacoModel, tokenizer: object) -> int | None:  # noqa: ARG002
        """Return the context length: the TOML's, else the server's.

        None if it cannot be had; DB-GPT then assumes a length of its own until it is restarted.
        It must not fail: DB-GPT ends the whole web server when one worker does.
        """
        client = model.proxy_llm_client
        if client.context_length:
            return int(client.context_length)
        try:
            client.context_length = context_tokens(_listed(client.server), client.default_model)
        except ServerError as error:
            logger.error(  # noqa: TRY400 - the text says it all
                "the context length of %s is not known: %s Give its context_length, or start the "
                "server before DB-GPT.",
                client.default_model,
                error,
            )
            return None
        return int(client.context_length)


def register() -> None:
    """Make the provider known for chat models."""
    register_model_adapter(GuanacoAdapter)


def _listed(server: Server) -> list[dict[str, Any]]:
    """Return the server's models; wait a little for one that is not there yet."""
    deadline = time.monotonic() + WAIT_FOR_SERVER_S
    while True:
        try:
            listed: list[dict[str, Any]] = server.get("/models").get("data", [])
        except UnreachableServerError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("waiting for the server: %s", error)
            time.sleep(POLL_S)
        else:
            return listed
