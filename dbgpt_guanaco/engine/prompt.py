"""Prompt → token ids that fit the context. Runs beside the event loop, never on it."""

from collections.abc import Sequence
from typing import Any

from dbgpt_guanaco.adapters.encoding import TextEncoder
from dbgpt_guanaco.errors import InvalidRequestError, PromptTooLongError
from dbgpt_guanaco.types import GenerationRequest

# No text of this many characters for each token of context can fit; it is not even tokenized.
MAX_CHARACTERS_PER_TOKEN = 64


class PromptEncoder:
    """Makes token ids from prompts.

    Args:
        tokenizer: A fast transformers tokenizer.
        bos_token_id: See ``TextEncoder``.
        context_tokens: Prompt and answer together.
        vocabulary_size: Tokens that the model has embeddings for. A tokenizer may know more:
            Guanaco's adds a pad token that LLaMA's weights lack.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401
        bos_token_id: int | None,
        context_tokens: int,
        vocabulary_size: int,
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._encoder = TextEncoder(tokenizer, bos_token_id)
        self._context_tokens = context_tokens
        self._size = min(len(tokenizer), vocabulary_size)
        self._first_id = tokenizer.bos_token_id if bos_token_id is None else bos_token_id
        self._max_characters = context_tokens * MAX_CHARACTERS_PER_TOKEN

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return a text's token ids.

        Raises:
            InvalidRequestError: It is far longer than the context, not valid Unicode, or holds
                a token that the model has no embedding for.
        """
        if len(text) > self._max_characters:
            raise InvalidRequestError(
                "prompt",
                f"{len(text)} characters are more than the {self._max_characters} that are read",
            )
        ids = self._encoder.encode(text, add_special_tokens)
        self.check_ids(ids)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens written out."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def check_ids(self, token_ids: Sequence[int]) -> None:
        """Refuse ids that are not in the vocabulary.

        Raises:
            InvalidRequestError: One is not.
        """
        wrong = next((i for i in token_ids if not 0 <= i < self._size), None)
        if wrong is not None:
            raise InvalidRequestError("prompt", f"token id {wrong} is not below {self._size}")

    def fit(self, request: GenerationRequest) -> tuple[list[int], int]:
        """Return the prompt's ids, and how many tokens may follow them.

        Raises:
            PromptTooLongError: It leaves no room and may not be truncated.
            InvalidRequestError: It is empty, far too long, or has wrong ids.
        """
        ids = self._ids_of(request)
        if not ids:
            raise InvalidRequestError("prompt", "has no tokens")
        longest = self._longest_prompt(request)
        if len(ids) > longest:
            if request.truncate_prompt_tokens is None:
                raise PromptTooLongError(len(ids), self._context_tokens)
            ids = self._newest(ids, longest)
        room = self._context_tokens - len(ids)
        return ids, min(room, request.sampling.max_new_tokens or room)

    def _ids_of(self, request: GenerationRequest) -> list[int]:
        if not isinstance(request.prompt, str):
            self.check_ids(request.prompt)
            return list(request.prompt)
        text = request.prompt
        if request.truncate_prompt_tokens is not None:
            text = text[-self._max_characters :]
        return self.encode(text, request.add_special_tokens)

    def _longest_prompt(self, request: GenerationRequest) -> int:
        wanted = request.truncate_prompt_tokens
        if wanted == 0:  # leave the answer its room, but never more than half
            answer = request.sampling.max_new_tokens or self._context_tokens
            return self._context_tokens - min(answer, self._context_tokens // 2)
        return min(wanted or self._context_tokens, self._context_tokens - 1)

    def _newest(self, ids: list[int], count: int) -> list[int]:
        if ids[0] == self._first_id and count > 1:
            return [ids[0], *ids[len(ids) - count + 1 :]]
        return ids[len(ids) - count :]


def embedding_rows(model: Any) -> int:  # noqa: ANN401
    """Return how many tokens a model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])
