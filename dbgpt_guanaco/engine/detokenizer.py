"""Token ids → text, one by one, never half a character and never late.

A token of a byte-level or byte-fallback tokenizer is a few bytes, so text is decoded from
bytes: a character is shown with the token that completes it. What comes out adds up to what
decoding all ids at once gives.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
_WORD_START = "\u2581"  # ▁, a blank in sentencepiece vocabularies


class Detokenizer(Protocol):
    """Turns the ids of one answer into text."""

    def feed(self, token_id: int) -> str:
        """Take one id, return the text that is now complete."""
        ...

    def flush(self) -> str:
        """Return what an unfinished character shows as, once no more ids come."""
        ...


class Vocabulary:
    """The bytes that each token of a tokenizer stands for. Made once for each model.

    Where a tokenizer's decoder is neither byte-level nor of sentencepiece's kind, ids are
    decoded through the tokenizer itself, in a sliding window.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers types it in part
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
        self._kind, self._drops_first_blank = _kind_of(decoder)
        self._bytes = self._table() if self._kind else []

    def __len__(self) -> int:
        return len(self._tokenizer)

    def detokenizer(self, *, continues_text: bool) -> Detokenizer:
        """Return a fresh detokenizer.

        Args:
            continues_text: The ids follow other text; else they are a text of their own, and
                the blank that sentencepiece writes before a first word is dropped.
        """
        if not self._kind:
            return _WindowDetokenizer(self._tokenizer)
        return _ByteDetokenizer(
            self._bytes,
            errors="guanaco-each-byte" if self._kind == "sentencepiece" else "replace",
            drop_first_blank=self._drops_first_blank and not continues_text,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one token adds to the text, special tokens shown as they are written."""
        if self._kind and token_id < len(self._bytes) and self._bytes[token_id]:
            return self._bytes[token_id]
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode all ids at once."""
        detokenizer = self.detokenizer(continues_text=False)
        return "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()

    def _table(self) -> list[bytes]:
        size = len(self._tokenizer)
        special = set(self._tokenizer.all_special_ids)
        special |= {i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special}
        to_bytes = _byte_level_bytes if self._kind == "byte-level" else _sentencepiece_bytes
        tokens = self._tokenizer.convert_ids_to_tokens(list(range(size)))
        return [
            b"" if token is None or token_id in special else to_bytes(token)
            for token_id, token in enumerate(tokens)
        ]


class _ByteDetokenizer:
    def __init__(self, table: Sequence[bytes], errors: str, *, drop_first_blank: bool) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._drop_first_blank = drop_first_blank

    def feed(self, token_id: int) -> str:
        raw = self._table[token_id] if token_id < len(self._table) else b""
        return self._shown(self._decoder.decode(raw))

    def flush(self) -> str:
        return self._shown(self._decoder.decode(b"", final=True))

    def _shown(self, text: str) -> str:
        if self._drop_first_blank and text:
            self._drop_first_blank = False
            return text.removeprefix(" ")
        return text


class _WindowDetokenizer:
    """Decodes a few newest ids with and without the last ones, and shows the difference."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start, self._shown = 0, 0  # the window, and how much of it is shown, in ids

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._new_text(is_final=False)

    def flush(self) -> str:
        return self._new_text(is_final=True)

    def _new_text(self, *, is_final: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if not is_final and (after.endswith(REPLACEMENT) or len(after) <= len(before)):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def _kind_of(decoder: dict[str, Any] | None) -> tuple[str | None, bool]:
    """Read a tokenizer's decoder: its kind, and whether it drops a first blank."""
    if not decoder:
        return None, False
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte-level", False
    is_sentencepiece = (
        kinds[:3] == ["Replace", "ByteFallback", "Fuse"]
        and steps[0]["pattern"] == {"String": _WORD_START}
        and steps[0]["content"] == " "
    )
    if is_sentencepiece and kinds[3:] == []:
        return "sentencepiece", False
    if is_sentencepiece and kinds[3:] == ["Strip"]:
        strip = (steps[3]["content"], steps[3]["start"], steps[3]["stop"])
        return ("sentencepiece", True) if strip == (" ", 1, 0) else (None, False)
    return None, False


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte behind each printable character of a byte-level vocabulary.

    Source: GPT-2's byte-level BPE: printable bytes stand for themselves, the others are
    shifted to 256 and up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(shifted)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # an added token is written as plain text
        return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_WORD_START, " ").encode()


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # sentencepiece shows one U+FFFD for each byte that is in no character. (The tokenizers
    # library blanks a whole run of byte tokens, complete characters too; those are kept here.)
    assert isinstance(error, UnicodeDecodeError)
    return REPLACEMENT * (error.end - error.start), error.end


codecs.register_error("guanaco-each-byte", _replace_each_byte)
