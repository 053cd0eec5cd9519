"""Llama-2 chat."""

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.template import Llama2Template


class Llama2ChatAdapter(BaseLLMAdapter):
    """Llama-2 chat models; the base models of that name are no chat models and do not match."""

    name = "llama-2-chat"
    keywords = ("llama-2", "llama2")
    template = Llama2Template()
    bos_token_id = 1
    stop_token_ids = (2,)

    def match(self, name: str) -> bool:
        """Ask for ``chat`` beside the family's name."""
        return super().match(name) and "chat" in name.lower()
