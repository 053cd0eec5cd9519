"""The settings panel: what is set is sent, what is not is not."""

import pytest
from playwright.sync_api import expect

from .chat import Chat
from .fake_server import FakeServer

pytestmark = pytest.mark.browser

ALWAYS = {"model", "messages", "stream", "stream_options"}
DEFAULT_MAX_TOKENS = 1024


def test_unset_controls_are_not_sent(chat: Chat, server: FakeServer) -> None:
    chat.ask("Hi")

    assert set(server.bodies[0]) == {*ALWAYS, "max_tokens"}
    assert server.bodies[0]["max_tokens"] == DEFAULT_MAX_TOKENS


def test_set_controls_are_sent(chat: Chat, server: FakeServer) -> None:
    chat.open_settings()
    for label, value in {
        "System prompt": "Be brief.",
        "Temperature": "0",
        "Top P": "0.9",
        "Top K": "40",
        "Min P": "0.05",
        "Repetition penalty": "1.1",
        "Max tokens": "64",
        "Seed": "7",
        "Stop strings": "END\n\\n\\n",
    }.items():
        chat.page.get_by_label(label, exact=True).fill(value)
    chat.ask("Hi")

    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: value for name, value in body.items() if name not in ALWAYS} == {
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 64,
        "seed": 7,
        "stop": ["END", "\n\n"],
    }


def test_a_value_out_of_range_is_told_and_not_sent(chat: Chat, server: FakeServer) -> None:
    chat.open_settings()
    chat.page.get_by_label("Top P").fill("1.5")

    chat.send("Hi")

    expect(chat.page.get_by_role("status")).to_have_text("A setting is out of range: Top P.")
    expect(chat.draft).to_have_value("Hi")
    assert server.bodies == []


def test_settings_survive_a_reload_and_can_be_cleared(chat: Chat, server: FakeServer) -> None:
    chat.open_settings()
    chat.page.get_by_label("Seed").fill("7")
    chat.page.reload()
    chat.open_settings()
    expect(chat.page.get_by_label("Seed")).to_have_value("7")

    chat.page.get_by_role("button", name="Clear these settings").click()

    chat.ask("Hi")
    assert "seed" not in server.bodies[0]
