from typing import Any

import pytest

from dbgpt_guanaco.errors import DataError
from dbgpt_guanaco.training.formats import read_messages

CHAT = [("user", "Hi"), ("assistant", "Hello.")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello."},
                ]
            },
            [("system", "Be brief."), *CHAT],
        ),
        (
            {
                "id": "x",
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello."},
                ],
            },
            CHAT,
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello."},
                ],
            },
            [("system", "Be brief."), *CHAT],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, CHAT),
        ({"instruction": "Hi", "output": "Hello."}, CHAT),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "### all of it"},
            [("user", "Add.\n\n1 and 2"), ("assistant", "3")],
        ),
        ({"text": "### Human: Hi### Assistant: Hello."}, CHAT),
        (
            {"text": "### Human: Hi### Assistant: Hello.### Human: Why?### Assistant: So."},
            [*CHAT, ("user", "Why?"), ("assistant", "So.")],
        ),
        ({"text": "### Human: Hi### Assistant: Hello.### Human: Why?"}, CHAT),
        (
            {
                "message_tree_id": "t",
                "prompt": {
                    "role": "prompter",
                    "text": "Hi",
                    "replies": [
                        {"role": "assistant", "text": "Worse.", "rank": 1, "replies": []},
                        {"role": "assistant", "text": "Unranked.", "rank": None, "replies": []},
                        {
                            "role": "assistant",
                            "text": "Hello.",
                            "rank": 0,
                            "replies": [{"role": "prompter", "text": "Why?", "replies": []}],
                        },
                    ],
                },
            },
            CHAT,
        ),
        (
            {
                "messages": [
                    {"role": "User", "content": " Hi\n"},
                    {"role": "assistant", "content": "\nHello. "},
                ]
            },
            CHAT,
        ),
    ],
    ids=[
        "messages",
        "ShareGPT",
        "ShareGPT with a system message",
        "Alpaca",
        "Alpaca without input",
        "Alpaca with input",
        "OpenAssistant as text",
        "OpenAssistant as text, two rounds",
        "OpenAssistant as text, a question last",
        "OpenAssistant as a tree",
        "blanks around",
    ],
)
def test_a_format_is_recognised(line: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert [(m.role, m.content) for m in read_messages(line)] == expected


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({}, "has none of the keys messages, conversations, instruction, prompt, text, but none"),
        ({"question": "Hi", "answer": "Hello."}, "but answer, question"),
        ({"messages": "Hi"}, "its turns are no list of objects"),
        ({"messages": ["Hi"]}, "its turns are no list of objects"),
        ({"messages": []}, "holds no answer"),
        (chat(("user", "Hi")), "holds no answer"),
        (chat(("system", "Hi")), "holds no answer"),
        (chat(("tool", "42")), "role 'tool' is none of system, user, human"),
        (chat((None, "Hi")), "role None is none of"),
        (chat(("user", ["Hi"]), ("assistant", "x")), "the text of a user turn is list"),
        (chat(("user", None), ("assistant", "x")), "the text of a user turn is NoneType"),
        (chat(("user", "Hi"), ("assistant", " ")), "a turn of the assistant is empty"),
        (chat(("user", ""), ("assistant", "x")), "a turn of the user is empty"),
        (chat(("assistant", "x")), "a turn of the assistant stands where the user's belongs"),
        (
            chat(("user", "Hi"), ("user", "Hi"), ("assistant", "x")),
            "a turn of the user stands where the assistant's belongs",
        ),
        (
            chat(("user", "Hi"), ("system", "x"), ("assistant", "x")),
            "a system message stands between the turns",
        ),
        ({"instruction": "Hi"}, "has an instruction and no output"),
        ({"instruction": 1, "output": "x"}, "instruction and input must be text"),
        ({"text": "Once upon a time"}, "its text does not begin with '### Human:'"),
        ({"text": "A preamble. ### Human: Hi### Assistant: x"}, "does not begin with"),
        ({"prompt": "Hi"}, "its prompt is no tree of messages"),
        ({"prompt": {"role": "prompter", "text": "Hi", "replies": ["x"]}}, "is no tree"),
        (chat(("user", "Hi"), ("assistant", "x")) | {"tools": [{}]}, "has tools, which is not"),
    ],
)
def test_what_is_no_conversation_is_refused(line: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as refused:
        read_messages(line)

    assert problem in str(refused.value)
