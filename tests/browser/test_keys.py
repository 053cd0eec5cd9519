"""A server that wants a key: the page asks its reader, and keeps what it is told in its tab."""

import pytest
from playwright.sync_api import Locator, expect

from .chat import Chat
from .fake_server import FakeServer

pytestmark = pytest.mark.browser

KEY = "sesame-opens-the-door"


def key_field(chat: Chat) -> Locator:
    return chat.page.locator("input[name=key]")


def give(chat: Chat, key: str) -> None:
    key_field(chat).fill(key)
    key_field(chat).press("Tab")


def test_a_key_is_asked_for_and_sent(chat: Chat, server: FakeServer) -> None:
    server.key = KEY
    chat.page.reload()
    expect(chat.page.get_by_role("status")).to_contain_text("asks for an API key")
    expect(key_field(chat)).to_be_focused()

    give(chat, KEY)

    expect(chat.page.get_by_label("Model")).to_have_value("guanaco-7b")
    chat.ask("Hi")
    assert server.authorizations == [f"Bearer {KEY}"]


def test_a_key_is_asked_for_once_and_a_closed_panel_stays_closed(
    chat: Chat, server: FakeServer
) -> None:
    server.key = KEY
    chat.page.reload()
    expect(key_field(chat)).to_be_focused()
    chat.page.get_by_role("button", name="Close settings").click()

    with chat.page.expect_response("**/v1/models") as asked_again:
        pass

    assert asked_again.value.status == 401
    expect(key_field(chat)).to_be_hidden()


def test_a_wrong_key_is_told(chat: Chat, server: FakeServer) -> None:
    server.key = KEY
    chat.page.reload()

    give(chat, "open-barley")
    expect(chat.page.get_by_role("status")).to_contain_text("does not know this API key")
    chat.page.get_by_role("button", name="中文").click()
    give(chat, "open-oats")

    expect(chat.page.get_by_role("status")).to_contain_text("服务器不认识此 API 密钥")


def test_a_key_that_was_taken_back_is_told_by_the_answer(chat: Chat, server: FakeServer) -> None:
    server.key = KEY

    chat.ask("Hi")

    expect(chat.last_note).to_contain_text("asks for an API key")


def test_a_key_survives_a_reload_and_is_in_no_other_tab(chat: Chat, server: FakeServer) -> None:
    chat.open_settings()
    give(chat, KEY)
    chat.page.reload()
    expect(key_field(chat)).to_have_value(KEY)

    other = chat.page.context.new_page()
    other.goto(server.url)
    expect(other.locator("input[name=key]")).to_have_value("")
    kept = other.evaluate("JSON.stringify([localStorage.length, document.cookie])")
    other.close()

    assert kept == '[0,""]'
