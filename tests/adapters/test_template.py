import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.llama import Llama2ChatAdapter
from dbgpt_guanaco.adapters.template import (
    OwnTemplate,
    PromptTemplate,
    RenderedPrompt,
    merge_neighbours,
    split_system,
)
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import ChatMessage


def system(text: str) -> ChatMessage:
    return ChatMessage("system", text)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


GUANACO_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], f"{GUANACO_SYSTEM}\n### Human: Hi\n### Assistant:"),
        ([system("Be brief."), user("Hi")], "Be brief.\n### Human: Hi\n### Assistant:"),
        ([system(""), user("Hi")], f"{GUANACO_SYSTEM}\n### Human: Hi\n### Assistant:"),
        (
            [user("Hi"), assistant("Hello."), user("Why?")],
            f"{GUANACO_SYSTEM}\n### Human: Hi\n### Assistant: Hello.\n### Human: Why?\n"
            "### Assistant:",
        ),
        (
            [user("One"), user("Two")],
            f"{GUANACO_SYSTEM}\n### Human: One\n### Human: Two\n### Assistant:",
        ),
        (
            [system("First."), user("Hi"), system("Second.")],
            "First.\n\nSecond.\n### Human: Hi\n### Assistant:",
        ),
        (
            [system("S"), user("Hi"), assistant("Yes, and")],
            "S\n### Human: Hi\n### Assistant: Yes, and\n### Assistant:",
        ),
    ],
)
def test_guanaco_writes(messages: list[ChatMessage], expected: str) -> None:
    assert GuanacoAdapter.template.render(messages) == RenderedPrompt(expected, True)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], f"{VICUNA_SYSTEM} USER: Hi ASSISTANT:"),
        ([system("Be brief."), user("Hi")], "Be brief. USER: Hi ASSISTANT:"),
        (
            [user("Hi"), assistant("Hello."), user("Why?")],
            f"{VICUNA_SYSTEM} USER: Hi ASSISTANT: Hello.</s>USER: Why? ASSISTANT:",
        ),
        ([user("One"), user("Two")], f"{VICUNA_SYSTEM} USER: One USER: Two ASSISTANT:"),
        (
            [system("First."), system("Second."), user("Hi")],
            "First.\n\nSecond. USER: Hi ASSISTANT:",
        ),
    ],
)
def test_vicuna_writes(messages: list[ChatMessage], expected: str) -> None:
    assert VicunaAdapter.template.render(messages) == RenderedPrompt(expected, True)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], "[INST] Hi [/INST]"),
        (
            [system("Be brief."), user("Hi")],
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
        ),
        (
            [user("Hi"), assistant(" Hello. "), user(" Why?\n")],
            "[INST] Hi [/INST] Hello. </s><s>[INST] Why? [/INST]",
        ),
        (
            [system("S"), user("1"), assistant("2"), user("3"), assistant("4"), user("5")],
            "[INST] <<SYS>>\nS\n<</SYS>>\n\n1 [/INST] 2 </s><s>[INST] 3 [/INST] 4 </s>"
            "<s>[INST] 5 [/INST]",
        ),
        ([user("One"), user("Two")], "[INST] One\n\nTwo [/INST]"),
        (
            [user("1"), assistant("2"), assistant("3"), user("4")],
            "[INST] 1 [/INST] 2\n\n3 </s><s>[INST] 4 [/INST]",
        ),
        (
            [system("First."), user("Hi"), assistant("Yes"), system("Second."), user("Why?")],
            "[INST] <<SYS>>\nFirst.\n\nSecond.\n<</SYS>>\n\nHi [/INST] Yes </s>"
            "<s>[INST] Why? [/INST]",
        ),
    ],
)
def test_llama_2_writes(messages: list[ChatMessage], expected: str) -> None:
    assert Llama2ChatAdapter.template.render(messages) == RenderedPrompt(expected, True)


def test_llama_2_refuses_a_conversation_that_ends_with_an_answer() -> None:
    with pytest.raises(InvalidRequestError, match="first and the last message must be the user's"):
        Llama2ChatAdapter.template.render([user("Hi"), assistant("Hello.")])


@pytest.mark.parametrize("first", [[], [system("S")]])
def test_llama_2_refuses_an_answer_without_a_question(first: list[ChatMessage]) -> None:
    with pytest.raises(InvalidRequestError, match="first and the last message must be the user's"):
        Llama2ChatAdapter.template.render([*first, assistant("Welcome!"), user("Hi")])


@pytest.mark.parametrize(
    ("template", "marker"),
    [
        (GuanacoAdapter.template, "### Human:"),
        (Llama2ChatAdapter.template, "[INST]"),
    ],
)
def test_the_marker_of_the_next_turn_ends_an_answer(template: PromptTemplate, marker: str) -> None:
    assert marker in template.stop


def own(jinja: str) -> OwnTemplate:
    """Return a tokenizer's template as transformers runs it."""

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(jinja)

    def apply(messages: list[dict[str, str]], **flags: bool) -> str:
        assert flags == {"tokenize": False, "add_generation_prompt": True}
        return compiled.render(messages=messages, add_generation_prompt=True)

    return OwnTemplate(apply)


WRITE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system!') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages if m.role != 'system' %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("jinja", "messages", "expected"),
    [
        (WRITE, [system("S"), user("Hi")], "<system>S<user>Hi<assistant>"),
        (WRITE, [user("One"), user("Two")], "<user>One<user>Two<assistant>"),
        (NO_SYSTEM + WRITE, [system("S"), user("Hi")], "<user>S\n\nHi<assistant>"),
        (
            NO_SYSTEM + WRITE,
            [system("S"), user("1"), assistant("2"), user("3")],
            "<user>S\n\n1<assistant>2<user>3<assistant>",
        ),
        (ALTERNATE + WRITE, [user("One"), user("Two")], "<user>One\n\nTwo<assistant>"),
        (
            ALTERNATE + WRITE,
            [system("S"), user("One"), user("Two")],
            "<system>S<user>One\n\nTwo<assistant>",
        ),
        (
            NO_SYSTEM + ALTERNATE + WRITE,
            [system("S"), user("One"), user("Two"), system("T")],
            "<user>S\n\nT\n\nOne\n\nTwo<assistant>",
        ),
    ],
)
def test_own_template_writes_what_it_first_refuses(
    jinja: str, messages: list[ChatMessage], expected: str
) -> None:
    assert own(jinja).render(messages) == RenderedPrompt(expected, False)


def test_own_template_that_refuses_everything_says_its_first_reason() -> None:
    with pytest.raises(InvalidRequestError, match=r"^messages: the model's chat template refused"):
        own("{{ raise_exception('never') }}").render([system("S"), user("Hi")])
    with pytest.raises(InvalidRequestError, match=r"refused them: no system!$"):
        own(NO_SYSTEM + "{{ raise_exception('nor that') }}").render([system("S"), user("Hi")])


def test_own_template_runs_in_a_sandbox() -> None:
    with pytest.raises(InvalidRequestError, match="unsafe"):
        own("{{ messages.__class__.__mro__ }}").render([user("Hi")])


TEMPLATES: list[PromptTemplate] = [
    GuanacoAdapter.template,
    VicunaAdapter.template,
    Llama2ChatAdapter.template,
    own(WRITE),
]


@pytest.mark.parametrize("template", TEMPLATES, ids=["guanaco", "vicuna", "llama-2", "own"])
@pytest.mark.parametrize("messages", [[], [system("S")], [system("S"), system("T")]])
def test_a_conversation_without_a_turn_is_refused(
    template: PromptTemplate, messages: list[ChatMessage]
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^messages: must hold at least one message"):
        template.render(messages)


def test_system_messages_become_one_text_wherever_they_stand() -> None:
    assert split_system([system("A"), user("Hi"), system(""), system("B")]) == (
        "A\n\nB",
        [user("Hi")],
    )


def test_neighbours_of_one_role_become_one_message() -> None:
    turns = [user("1"), user("2"), assistant("3"), user("4")]

    assert merge_neighbours(turns) == [user("1\n\n2"), assistant("3"), user("4")]
