"""What is trained is what is served."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_bpe_tokenizer
from transformers import AutoTokenizer

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.family import Family
from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.llama import Llama2ChatAdapter
from dbgpt_guanaco.adapters.template import OwnTemplate
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.engine.prompt import PromptEncoder
from dbgpt_guanaco.errors import DataError
from dbgpt_guanaco.training.examples import UNLEARNED, Example, ExampleMaker
from dbgpt_guanaco.types import ChatMessage, GenerationRequest, SamplingParams

VOCABULARY = 10_000
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_EOS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As families that think do it: only the last answer shows its thoughts.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('THEN')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Its tokenizer knows " and" as one word.
WITHOUT_BORDER = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %} a{{ m.content }}"
    "</s>{% endif %}{% endfor %}{% if add_generation_prompt %} a{% endif %}"
)
OPENED_OTHERWISE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<thinking>{% endif %}"
)


def stated(adapter: BaseLLMAdapter, tokenizer: Any) -> Family:
    stops = frozenset(adapter.stop_token_ids)
    template, bos = adapter.template, adapter.bos_token_id
    return Family(adapter.name, tokenizer, template, bos, stops, adapter.stop_token_ids[0])


@pytest.fixture
def own(tmp_path: Path) -> Any:
    def family(chat_template: str) -> Family:
        tokenizer = AutoTokenizer.from_pretrained(make_bpe_tokenizer(tmp_path, chat_template))
        eos = tokenizer.eos_token_id
        template = OwnTemplate(tokenizer.apply_chat_template)
        return Family("own template", tokenizer, template, None, frozenset({eos}), eos)

    return family


@pytest.fixture(params=["guanaco", "vicuna", "llama-2-chat", "chatml", "no eos"])
def family(request: pytest.FixtureRequest, llama_tokenizer: Any, own: Any) -> Family:
    stating = {a.name: a for a in (GuanacoAdapter(), VicunaAdapter(), Llama2ChatAdapter())}
    if request.param in stating:
        return stated(stating[request.param], llama_tokenizer)
    found: Family = own({"chatml": CHATML, "no eos": NO_EOS}[request.param])
    return found


def talk(*texts: str, system: str | None = None) -> list[ChatMessage]:
    first = [ChatMessage("system", system)] if system else []
    roles = ("user", "assistant") * len(texts)
    return first + [ChatMessage(r, t) for r, t in zip(roles, texts, strict=False)]  # type: ignore[arg-type]


def make(family: Family, *talks: list[ChatMessage], max_tokens: int = 1000) -> list[Example]:
    return ExampleMaker(family, max_tokens, VOCABULARY).make_all(talks)


def learned(family: Family, example: Example) -> list[str]:
    """The text of each stretch that is learned, special tokens written out."""
    stretches: list[list[int]] = [[]]
    for label in example.labels:
        if label != UNLEARNED:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [family.tokenizer.decode(s, skip_special_tokens=False) for s in stretches if s]


def served(family: Family, messages: list[ChatMessage]) -> list[int]:
    """The ids that an engine makes of a conversation."""
    prompt = family.template.render(messages)
    request = GenerationRequest(
        prompt.text, SamplingParams(), add_special_tokens=prompt.add_special_tokens
    )
    return PromptEncoder(family.tokenizer, family.bos_token_id, 10_000, VOCABULARY).fit(request)[0]


TALKS = [
    talk("What is the capital of France?", "Paris."),
    talk("法国的首都是哪里？", "法国的首都是巴黎。"),
    talk("Hi", "Hello. 👋🏽", "And now?", "Nothing, dear.", "SELECT 1;", "1"),
    talk("数据库里有多少张表？", "这是一个测试。", "Why?", "因为 x > 1", system="Be brief. 简短。"),
]


@pytest.mark.parametrize("conversation", TALKS)
def test_before_each_answer_stand_the_very_ids_that_are_served(
    family: Family, conversation: list[ChatMessage]
) -> None:
    (example,) = make(family, conversation)

    for number in range(len(conversation)):
        if conversation[number].role == "assistant":
            prompt = served(family, conversation[:number])
            assert list(example.input_ids[: len(prompt)]) == prompt
            assert example.labels[len(prompt) - 1] == UNLEARNED
            assert example.labels[len(prompt)] == example.input_ids[len(prompt)]


@pytest.mark.parametrize("conversation", TALKS)
def test_labels_are_the_ids_themselves_or_nothing(
    family: Family, conversation: list[ChatMessage]
) -> None:
    (example,) = make(family, conversation)

    assert len(example.labels) == len(example.input_ids)
    pairs = zip(example.labels, example.input_ids, strict=True)
    assert all(label in (UNLEARNED, token_id) for label, token_id in pairs)


# The marker of the next turn is what ends an answer of Guanaco that is not the last.
LEARNED = {
    "guanaco": ["Hello.\n### Human:", "So.</s>"],
    "vicuna": ["Hello.</s>", "So.</s>"],
    "llama-2-chat": ["Hello. </s>", "So. </s>"],
    "chatml": ["Hello.</s>", "So.</s>"],
    "no eos": ["Hello.", "So.</s>"],
}


def test_answers_and_what_ends_them_are_learned_and_nothing_else(
    family: Family, request: pytest.FixtureRequest
) -> None:
    (example,) = make(family, talk("Hi", "Hello.", "Why?", "So."))

    expected = LEARNED[request.node.callspec.params["family"]]
    assert [text.strip() for text in learned(family, example)] == expected


def test_the_last_label_of_every_family_is_its_eos(family: Family) -> None:
    for example in make(family, *TALKS):
        labels = [label for label in example.labels if label != UNLEARNED]
        assert labels[-1] in family.stop_token_ids


def test_what_is_too_long_loses_its_last_turns(family: Family) -> None:
    (short,) = make(family, talk("Hi", "Hello."))
    maker = ExampleMaker(family, len(short.input_ids), VOCABULARY)

    examples = maker.make_all([talk("Hi", "Hello.", "Why?", "So."), talk("Hi", "Hello.")])

    assert examples == [short, short]
    assert (maker.counts.cut, maker.counts.dropped) == (1, 0)


def test_what_is_too_long_from_the_first_answer_on_is_left_out(family: Family) -> None:
    (short,) = make(family, talk("Hi", "Hello."))
    maker = ExampleMaker(family, len(short.input_ids), VOCABULARY)

    assert maker.make_all([talk("Hi", "Hello. " * 9), talk("Hi", "Hello.")]) == [short]
    assert (maker.counts.cut, maker.counts.dropped) == (0, 1)


def test_no_example_is_longer_than_allowed(family: Family) -> None:
    for most in range(20, 140):
        maker = ExampleMaker(family, most, VOCABULARY)
        try:
            examples = maker.make_all(TALKS)
        except DataError:
            continue
        assert max(len(example.input_ids) for example in examples) <= most
        assert maker.counts.dropped + len(examples) == len(TALKS)


def test_what_holds_a_token_without_embedding_is_left_out(family: Family) -> None:
    (short,) = make(family, talk("Hi", "Hello."))
    maker = ExampleMaker(family, 1000, max(short.input_ids) + 1)

    odd = next(t for t in TALKS if max(make(family, t)[0].input_ids) > max(short.input_ids))
    assert maker.make_all([odd, talk("Hi", "Hello.")]) == [short]
    assert maker.counts.strange == 1


def test_nothing_left_to_learn_is_refused_with_the_numbers(family: Family) -> None:
    with pytest.raises(DataError, match="of 1 conversations 1 are longer than 16 tokens"):
        make(family, talk("What is the capital of France?" * 9, "Paris."), max_tokens=16)


def test_counts_add_up(family: Family) -> None:
    maker = ExampleMaker(family, 1000, VOCABULARY)

    examples = maker.make_all(TALKS)

    assert maker.counts.conversations == maker.counts.examples == len(examples) == len(TALKS)
    assert maker.counts.tokens == sum(len(e.input_ids) for e in examples)
    assert maker.counts.learned_tokens == sum(e.learned_tokens for e in examples)
    assert 0 < maker.counts.learned_tokens < maker.counts.tokens


def test_answers_that_are_written_otherwise_later_are_taught_one_at_a_time(own: Any) -> None:
    family = own(THINKING)
    conversation = talk("Hi", "thoughts THEN Hello.", "Why?", "more THEN So.")
    maker = ExampleMaker(family, 1000, VOCABULARY)

    examples = maker.make_all([conversation])

    assert sorted(text for e in examples for text in learned(family, e)) == [
        "more THEN So.</s>",
        "thoughts THEN Hello.</s>",
    ]
    for example, number in zip(examples, (3, 1), strict=True):
        prompt = served(family, conversation[:number])
        assert list(example.input_ids[: len(prompt)]) == prompt
    assert (maker.counts.split, maker.counts.unfit) == (1, 0)


@pytest.mark.parametrize(
    ("chat_template", "answer"), [(OPENED_OTHERWISE, "Hello."), (WITHOUT_BORDER, "nd so.")]
)
def test_an_answer_that_does_not_go_on_from_its_prompt_is_left_out(
    own: Any, chat_template: str, answer: str
) -> None:
    family = own(chat_template)
    maker = ExampleMaker(family, 1000, VOCABULARY)

    with pytest.raises(DataError, match="1 answers do not go on from their prompt"):
        maker.make_all([talk("Hi", answer)])
    assert maker.counts.unfit == 1


def test_an_answer_with_a_border_is_learned_beside_one_without(own: Any) -> None:
    family = own(WITHOUT_BORDER)
    maker = ExampleMaker(family, 1000, VOCABULARY)

    examples = maker.make_all([talk("Hi", "nd so.", "Why?", ". So.", "And?", "nd now.")])

    assert [text for e in examples for text in learned(family, e)] == [". So.</s>"]
    assert maker.counts.unfit == 2


def test_a_model_without_eos_is_refused(own: Any) -> None:
    family = own(NO_EOS)
    family = Family(family.name, family.tokenizer, family.template, None, frozenset(), None)

    with pytest.raises(DataError, match="has no eos token"):
        make(family, talk("Hi", "Hello."))
