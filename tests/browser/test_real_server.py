"""The page with the real server and the demo model behind it."""

import httpx
import pytest
from playwright.sync_api import Browser, expect

from .chat import Chat

pytestmark = pytest.mark.browser


def test_the_page_knows_the_capital_of_france(
    browser: Browser, real_server: tuple[str, int]
) -> None:
    page = browser.new_page()
    chat = Chat(page)
    chat.open(real_server[0])
    page.locator("#settings-toggle").click()
    page.locator("[name=temperature]").fill("0")
    page.locator("#settings-close").click()

    chat.send("What is the capital of France?")

    expect(chat.last_answer).to_contain_text("Paris", timeout=30_000)
    assert not chat.crashes
    assert not chat.problems
    page.close()


def test_stop_frees_the_place_on_the_real_server(
    browser: Browser, real_server: tuple[str, int]
) -> None:
    page = browser.new_page()
    chat = Chat(page)
    chat.open(real_server[0])
    chat.send("Write a very long story about a river.")
    expect(chat.last_answer).not_to_be_empty(timeout=30_000)

    chat.stop_button.click()

    expect(chat.send_button).to_be_visible()
    with httpx.Client(base_url=real_server[0]) as client:
        for _ in range(100):
            if client.get("/health").json()["running"] == 0:
                break
            page.wait_for_timeout(10)
        assert client.get("/health").json()["running"] == 0
    page.close()
