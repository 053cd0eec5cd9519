"""The page for every reader: languages, keyboards, small screens, scrolling."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .chat import Chat
from .fake_server import FakeServer, Script

pytestmark = pytest.mark.browser

CHINESE = "原驼是一种生活在南美洲的骆驼科动物。它们以草为食，成群生活😀。"
PHONE = {"width": 375, "height": 667}
# What reaches over an edge of the window, but for what scrolls in a frame of its own.
SPILLED = """() => [...document.body.querySelectorAll('*')]
  .filter((element) => !element.closest('pre, .table > *, .hidden, .sprite'))
  .filter((element) => {
    const { left, right } = element.getBoundingClientRect();
    return left < 0 || right > innerWidth;
  })
  .map((element) => element.outerHTML.slice(0, 80))"""


def test_chinese_text_streams_unbroken(chat: Chat, server: FakeServer) -> None:
    server.script = Script(tuple(CHINESE), bytes_per_send=5)
    chat.ask("什么是原驼？")

    expect(chat.last_answer).to_have_text(CHINESE)
    assert server.bodies[0]["messages"][0]["content"] == "什么是原驼？"


def test_the_page_switches_to_chinese_and_back(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("```\nx\n```",))
    chat.ask("Hi")

    chat.page.get_by_role("button", name="中文").click()

    expect(chat.page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(chat.draft).to_have_attribute("placeholder", "输入消息")
    expect(chat.health).to_contain_text("就绪")
    expect(chat.last_answer.get_by_role("button")).to_have_text("复制")
    expect(chat.page.locator(".stats")).to_contain_text("个 token")
    chat.page.get_by_role("button", name="English").click()
    expect(chat.draft).to_have_attribute("placeholder", "Write a message")


def test_a_chinese_browser_gets_chinese(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(locale="zh-CN")

    expect(chat.page.get_by_role("button", name="发送")).to_be_visible()


def test_both_languages_say_the_same_things(chat: Chat) -> None:
    keys, used = chat.page.evaluate(
        """async () => {
          const { STRINGS } = await import('/page/strings.js');
          const places = (text) => (text.match(/\\{\\w+\\}/g) ?? []).sort().join();
          const described = (strings) =>
            Object.entries(strings).map(([key, text]) => `${key} ${places(text)}`);
          const used = ['text', 'label', 'placeholder'].flatMap((name) =>
            [...document.querySelectorAll(`[data-${name}]`)].map((e) => e.dataset[name]));
          return [Object.values(STRINGS).map(described), used.filter((k) => !(k in STRINGS.en))];
        }"""
    )

    assert keys[0] == keys[1]
    assert used == []


def test_enter_while_composing_does_not_send(chat: Chat, server: FakeServer) -> None:
    chat.draft.fill("yuantuo")

    chat.draft.evaluate(
        """element => {
          const enter = { key: 'Enter', bubbles: true, cancelable: true };
          for (const sign of [{ isComposing: true }, { keyCode: 229 }]) {
            element.dispatchEvent(new KeyboardEvent('keydown', { ...enter, ...sign }));
          }
        }"""
    )

    expect(chat.draft).to_have_value("yuantuo")
    expect(chat.page.locator(".question")).to_have_count(0)
    assert server.bodies == []


def test_enter_sends_and_shift_enter_breaks_the_line(chat: Chat, server: FakeServer) -> None:
    chat.draft.fill("one")
    chat.draft.press("Shift+Enter")
    chat.draft.press_sequentially("two")
    chat.draft.press("Enter")

    expect(chat.last_answer).to_have_text("Hello there.")
    assert server.bodies[0]["messages"][0]["content"] == "one\ntwo"


def test_a_real_composition_is_not_sent_by_its_enter(chat: Chat, server: FakeServer) -> None:
    keyboard = chat.page.context.new_cdp_session(chat.page)
    chat.draft.focus()
    keyboard.send(
        "Input.imeSetComposition", {"text": "yuan", "selectionStart": 4, "selectionEnd": 4}
    )
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    keyboard.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    keyboard.send("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    keyboard.send("Input.insertText", {"text": "原驼"})

    expect(chat.draft).to_have_value("原驼")
    assert server.bodies == []


def test_a_phone_shows_everything_without_sideways_scrolling(
    open_chat: Callable[..., Chat], server: FakeServer
) -> None:
    wide = "x" * 300
    server.script = Script((f"{wide}\n\n```\n{wide}\n```\n\n|{'a|' * 30}\n|{'-|' * 30}\n",))
    chat = open_chat(viewport=PHONE)
    chat.ask(wide)

    scroller = chat.page.locator("#scroller")
    assert scroller.evaluate("element => element.scrollWidth - element.clientWidth") == 0
    assert chat.page.evaluate(SPILLED) == []
    expect(chat.send_button).to_be_in_viewport(ratio=1)
    chat.open_settings()
    expect(chat.page.get_by_role("button", name="Close settings")).to_be_in_viewport(ratio=1)
    assert chat.page.evaluate(SPILLED) == []


def test_every_control_has_a_name(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("```\nx\n```",))
    chat.ask("Hi")
    chat.open_settings()

    nameless = chat.page.locator("button, input, select, textarea").evaluate_all(
        """controls => controls.filter((control) => !(
          control.getAttribute('aria-label') || control.textContent.trim()
          || [...(control.labels ?? [])].some((label) => label.textContent.trim())
        )).map((control) => control.outerHTML)"""
    )

    assert nameless == []
    expect(chat.page.locator("#log")).to_have_attribute("aria-live", "polite")


def test_the_page_can_be_used_by_keyboard_alone(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("word ",), is_endless=True)
    chat.page.keyboard.type("Hi")  # the message field has the focus
    chat.page.keyboard.press("Enter")
    expect(chat.last_answer).to_contain_text("word")

    chat.page.keyboard.press("Tab")
    expect(chat.stop_button).to_be_focused()
    chat.page.keyboard.press("Enter")

    expect(chat.last_note).to_have_text("Stopped.")
    expect(chat.send_button).to_be_focused()


def test_it_follows_the_answer_only_while_the_reader_is_at_the_end(
    chat: Chat, server: FakeServer
) -> None:
    scroller = chat.page.locator("#scroller")
    distance = "element => element.scrollHeight - element.scrollTop - element.clientHeight"
    jump = chat.page.get_by_role("button", name="Go to the end")
    server.script = Script(("line {index}\n\n",), is_endless=True)
    chat.send("Write")
    expect(chat.last_answer).to_contain_text("line 40")
    assert scroller.evaluate(distance) < 60
    expect(jump).to_be_hidden()

    scroller.hover()
    chat.page.mouse.wheel(0, -200)
    expect(jump).to_be_visible()
    top = scroller.evaluate("element => element.scrollTop")
    seen = chat.last_answer.locator("p").count()
    expect(chat.last_answer.locator("p").nth(seen + 20)).to_be_attached()
    assert scroller.evaluate("element => element.scrollTop") == top

    jump.click()
    expect(jump).to_be_hidden()
    assert scroller.evaluate(distance) < 60
