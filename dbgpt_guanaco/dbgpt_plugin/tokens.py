"""Token counts, from the tokenizer of the model that answers."""

import logging
from typing import Any

from dbgpt.model.proxy.base import ProxyTokenizer

from dbgpt_guanaco.dbgpt_plugin.connection import Server, ServerError

logger = logging.getLogger(__name__)
UNKNOWN = -1  # what DB-GPT expects of a count that failed


class GuanacoTokenizer(ProxyTokenizer):  # type: ignore[misc]  # DB-GPT's types are not seen here
    """Asks the server.

    DB-GPT's own count is tiktoken's: of another vocabulary, and from the internet.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def count_token(self, model_name: str, prompts: list[str]) -> list[int]:
        """Return the tokens of each prompt, without those that only a beginning has."""
        try:
            answers = self._server.post_all("/tokenize", _bodies(model_name, prompts))
        except ServerError as error:
            return _failed(error, prompts)
        return [int(answer["count"]) for answer in answers]

    def support_async(self) -> bool:
        """DB-GPT then calls ``count_token_async``."""
        return True

    async def count_token_async(self, model_name: str, prompts: list[str]) -> list[int]:
        """Do as ``count_token``, without blocking."""
        try:
            answers = await self._server.apost_all("/tokenize", _bodies(model_name, prompts))
        except ServerError as error:
            return _failed(error, prompts)
        return [int(answer["count"]) for answer in answers]


def _bodies(model: str, prompts: list[str]) -> list[dict[str, Any]]:
    return [{"model": model, "prompt": p, "add_special_tokens": False} for p in prompts]


def _failed(error: ServerError, prompts: list[str]) -> list[int]:
    logger.warning("tokens not counted: %s", error)
    return [UNKNOWN] * len(prompts)
