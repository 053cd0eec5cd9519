"""Guanaco: LLaMA fine-tuned with QLoRA on OpenAssistant conversations."""

from types import MappingProxyType

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.template import TurnTemplate


class GuanacoAdapter(BaseLLMAdapter):
    """Guanaco models, 7B to 65B.

    Early LLaMA conversions carry tokenizer files with empty or swapped special tokens, so the
    bos id and those tokens are stated here, the tokenizer class is named, and 0 (``<unk>``,
    which such files took for eos) ends an answer beside 2. Training text has its eos only after
    a whole conversation, so the next turn's marker must end an answer too.

    Source: the timdettmers/guanaco model cards and the known issues of the qlora README
    (QLoRA, arXiv 2305.14314).
    """

    name = "guanaco"
    keywords = ("guanaco",)
    template = TurnTemplate(
        system=(
            "A chat between a curious human and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        user="### Human:",
        assistant="### Assistant:",
        user_end="\n",
        assistant_end="\n",
        stop=("### Human:", "### Assistant:"),
    )
    tokenizer_class = "LlamaTokenizer"
    special_tokens = MappingProxyType(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    bos_token_id = 1
    stop_token_ids = (2, 0)
