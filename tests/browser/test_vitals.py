"""The panel behind the line of health."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

from .chat import Chat
from .fake_server import FakeServer

pytestmark = pytest.mark.browser

BUSY = {
    "running": 3, "waiting": 2, "kv_blocks": 100, "kv_blocks_free": 38, "kv_usage": 0.62,
    "prompt_tokens": 400, "cached_tokens": 100, "generation_tokens": 1000,
}  # fmt: skip


def open_panel(chat: Chat) -> Locator:
    chat.page.locator("#health").click()
    panel = chat.page.locator("#vitals")
    expect(panel).to_be_visible()
    return panel


def test_the_panel_shows_the_servers_numbers(
    open_chat: Callable[..., Chat], server: FakeServer
) -> None:
    server.health |= BUSY

    panel = open_panel(open_chat())

    expect(panel.locator("[data-vital=running]")).to_have_text("3 of 5")
    expect(panel.locator("[data-vital=waiting]")).to_have_text("2")
    expect(panel.locator("[data-vital=kv]")).to_have_text("62%")
    expect(panel.locator("[data-vital=hits]")).to_have_text("25%")


def test_it_speaks_both_languages(open_chat: Callable[..., Chat], server: FakeServer) -> None:
    server.health |= BUSY
    chat = open_chat()
    expect(open_panel(chat)).to_contain_text("Running")
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#vitals")).to_be_hidden()

    chat.page.locator("#language").click()

    panel = open_panel(chat)
    expect(panel).to_contain_text("运行中")
    expect(panel.locator("[data-vital=running]")).to_have_text("3 / 5")
    assert not re.search("[A-Za-z]{3}", panel.inner_text().replace("token", ""))


def test_the_rate_is_what_the_total_grew_by_in_the_time_between(
    browser: Browser, server: FakeServer
) -> None:
    server.health |= BUSY
    profile = browser.new_context(locale="en-US")  # a clock that stands still stands for all of it
    chat = Chat(profile.new_page())
    chat.page.clock.install(time=0)
    chat.page.clock.pause_at(1000)
    chat.open(server.url)
    rate = open_panel(chat).locator("[data-vital=rate]")
    expect(rate).to_have_text("–")

    server.health |= {"generation_tokens": 1080}
    chat.page.clock.run_for(2000)

    expect(rate).to_have_text("40.0")
    profile.close()


@pytest.mark.parametrize("told", [{}, {"kv_blocks": 0, "kv_usage": 0, "prompt_tokens": 0}])
def test_what_the_server_does_not_know_is_a_dash(
    open_chat: Callable[..., Chat], server: FakeServer, told: dict[str, Any]
) -> None:
    server.health |= told

    panel = open_panel(open_chat())

    for name in ("rate", "kv", "hits"):
        expect(panel.locator(f"[data-vital={name}]")).to_have_text("–")
