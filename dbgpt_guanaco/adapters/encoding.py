"""Text → token ids, in serving and in training the same."""

from typing import Any

from dbgpt_guanaco.errors import InvalidRequestError


class TextEncoder:
    """Makes token ids from texts.

    Calls the tokenizer's backend directly: transformers' own call sets truncation on the
    shared object each time, which fails when two threads do it.

    Args:
        tokenizer: A fast transformers tokenizer.
        bos_token_id: Put before every text that wants special tokens; None lets the
            tokenizer add what its files say.
    """

    def __init__(self, tokenizer: Any, bos_token_id: int | None) -> None:  # noqa: ANN401
        self._backend = tokenizer.backend_tokenizer
        self._bos_token_id = bos_token_id

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return a text's token ids.

        Raises:
            InvalidRequestError: It is not valid Unicode.
        """
        adds_own = add_special_tokens and self._bos_token_id is None
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=adds_own).ids
        except (UnicodeEncodeError, TypeError):
            raise InvalidRequestError("prompt", "holds half a surrogate pair") from None
        if add_special_tokens and self._bos_token_id is not None:
            return ids if ids[:1] == [self._bos_token_id] else [self._bos_token_id, *ids]
        return ids
