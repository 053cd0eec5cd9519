"""The base of all adapters: what this package must know of one model family."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from dbgpt_guanaco.adapters.template import PromptTemplate


class BaseLLMAdapter:
    """One model family: which names are its own, how to prompt it, how to stop it.

    A subclass is mostly data. Adapters hold no state; one instance serves every model.

    Attributes:
        name: Identifier used in settings and messages, unique in a registry.
        keywords: Lower-case names to look for in a model path.
        template: The family's conversation format.
        tokenizer_class: Name of the transformers class to use; None lets transformers choose.
        special_tokens: Given to that class in place of what the tokenizer's files say.
        bos_token_id: Id that every prompt begins with, where the tokenizer's files cannot be
            trusted to say so; None trusts them.
        stop_token_ids: Ids that end an answer, beside the model's own eos.
    """

    name: ClassVar[str]
    keywords: ClassVar[tuple[str, ...]]
    template: ClassVar[PromptTemplate]
    tokenizer_class: ClassVar[str | None] = None
    special_tokens: ClassVar[Mapping[str, str]] = MappingProxyType({})
    bos_token_id: ClassVar[int | None] = None
    stop_token_ids: ClassVar[tuple[int, ...]] = ()

    def match(self, name: str) -> bool:
        """Say whether one path component names this family.

        A keyword counts only when no letter touches it: ``guanaco7b`` is a guanaco,
        ``prompt`` is not an ``mpt``.
        """
        return any(
            re.search(rf"(?<![a-z]){re.escape(k)}(?![a-z])", name.lower()) for k in self.keywords
        )
