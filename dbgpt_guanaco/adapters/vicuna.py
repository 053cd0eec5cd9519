"""Vicuna: LLaMA fine-tuned on shared conversations."""

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.template import TurnTemplate


class VicunaAdapter(BaseLLMAdapter):
    """Vicuna v1.1 and later.

    Source: the weights-version page of FastChat: ``USER: … ASSISTANT: …</s>``.
    """

    name = "vicuna"
    keywords = ("vicuna",)
    template = TurnTemplate(
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        user="USER:",
        assistant="ASSISTANT:",
        user_end=" ",
        assistant_end="</s>",
        stop=(),  # it ends its answers with eos; a line of SQL may well hold USER:
    )
    bos_token_id = 1
    stop_token_ids = (2,)
