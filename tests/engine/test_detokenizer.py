from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers_for_tests import SAMPLES
from transformers import PreTrainedTokenizerFast

from dbgpt_guanaco.engine.detokenizer import REPLACEMENT, Vocabulary

KINDS = ["demo_tokenizer", "llama_tokenizer"]
TEXTS = [
    *SAMPLES,
    "SELECT*FROM订单WHERE金额>100;",
    "  leading and   inner blanks\n\n\ttabs  ",
    "e\u0301 combining, 👩🏾‍🚀 joined, \u200d alone, a replacement \ufffd the model wrote \ufffd",
    "𠜎𠜱 beyond the BMP",
    "",
]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


vocabulary_of = lru_cache(Vocabulary)  # making one reads the whole tokenizer


def decode_whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def deltas(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    detokenizer = vocabulary.detokenizer(continues_text=False)
    return [*map(detokenizer.feed, ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_decoding_all_ids_at_once(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)

    assert "".join(deltas(vocabulary_of(tokenizer), ids)) == decode_whole(tokenizer, ids)


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_shown_late_or_broken(tokenizer: Any, text: str) -> None:
    """Every split: after any number of ids, all whole characters are there and no part of one."""
    vocabulary = vocabulary_of(tokenizer)
    ids = encode(tokenizer, text)
    shown = ""
    detokenizer = vocabulary.detokenizer(continues_text=False)
    for end, token_id in enumerate(ids, start=1):
        shown += detokenizer.feed(token_id)
        raw = b"".join(vocabulary.token_bytes(i) for i in ids[:end])
        whole = raw.decode("utf-8", errors="ignore")  # what is complete by now

        assert shown in (whole, whole.removeprefix(" "))


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_as_the_tokenizer_decodes_it(
    demo_tokenizer: Any, llama_tokenizer: Any, text: str
) -> None:
    for tokenizer in (demo_tokenizer, llama_tokenizer):
        vocabulary = vocabulary_of(tokenizer)
        ids = encode(tokenizer, text)

        assert "".join(deltas(vocabulary, ids)) == decode_whole(tokenizer, ids)


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(st.integers(0, 700), max_size=40))
def test_any_ids_of_a_byte_level_tokenizer_decode_as_it_does(
    demo_tokenizer: Any, ids: list[int]
) -> None:
    """Ids drawn at random hold broken bytes; a broken one shows as the tokenizer shows it."""
    assert "".join(deltas(vocabulary_of(demo_tokenizer), ids)) == decode_whole(demo_tokenizer, ids)


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_ids_of_a_llama_tokenizer_decode_as_sentencepiece_does(
    llama_tokenizer: Any, data: st.DataObject
) -> None:
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(Path(llama_tokenizer.name_or_path) / "tokenizer.model")
    )
    ids = data.draw(st.lists(st.integers(3, processor.vocab_size() - 1), max_size=40))
    # A blank written as a byte at the very start: sentencepiece keeps it, tokenizers drops it.
    assume(ids[:1] != [llama_tokenizer.convert_tokens_to_ids("<0x20>")])

    assert "".join(deltas(vocabulary_of(llama_tokenizer), ids)) == processor.decode(ids)


def test_a_byte_run_keeps_its_whole_characters(llama_tokenizer: Any) -> None:
    """The tokenizers library would blank all four; see the detokenizer's comment."""
    byte = {b: llama_tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in (0xE4, 0xBD, 0xA0)}
    ids = [byte[0xE4], byte[0xBD], byte[0xA0], byte[0xE4]]

    assert deltas(vocabulary_of(llama_tokenizer), ids) == ["", "", "你", "", REPLACEMENT]


def test_special_tokens_are_not_text(tokenizer: Any) -> None:
    ids = encode(tokenizer, "Paris")
    special = sorted(tokenizer.all_special_ids)

    assert "".join(deltas(vocabulary_of(tokenizer), [*special, *ids, *special])) == "Paris"


def test_the_first_blank_is_kept_where_the_text_goes_on(llama_tokenizer: Any) -> None:
    vocabulary = vocabulary_of(llama_tokenizer)
    ids = encode(llama_tokenizer, "Paris")

    for continues, expected in ((True, " Paris"), (False, "Paris")):
        detokenizer = vocabulary.detokenizer(continues_text=continues)
        assert "".join(map(detokenizer.feed, ids)) + detokenizer.flush() == expected


def test_ids_outside_the_vocabulary_are_no_text(tokenizer: Any) -> None:
    assert deltas(vocabulary_of(tokenizer), [10**6]) == ["", ""]


def test_token_bytes_are_exact(tokenizer: Any) -> None:
    vocabulary = vocabulary_of(tokenizer)
    text = "é👋🏽 WHERE"

    raw = b"".join(vocabulary.token_bytes(i) for i in encode(tokenizer, text))

    assert raw.decode().removeprefix(" ") == text
    assert vocabulary.token_bytes(tokenizer.eos_token_id).decode() == tokenizer.eos_token


def unusual_tokenizer() -> PreTrainedTokenizerFast:
    """A word-piece tokenizer, whose decoder is neither byte-level nor sentencepiece's."""
    words = ["[UNK]", "par", "##is", "lon", "##don", "你", "##好"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_an_unusual_decoder_is_asked_itself() -> None:
    tokenizer = unusual_tokenizer()
    vocabulary = vocabulary_of(tokenizer)

    for ids in product(range(1, 7), repeat=3):
        assert "".join(deltas(vocabulary, list(ids))) == decode_whole(tokenizer, list(ids))
    assert vocabulary.token_bytes(3) == b"lon"
    assert vocabulary.decode([1, 2]) == "paris"
