"""Answers on screen: Markdown as it grows, and text that means harm."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .chat import Chat
from .fake_server import FakeServer, Script

pytestmark = pytest.mark.browser

RICH = """# Title

Some **bold** text with `code` and a [link](https://example.org/a?b=c&d=e).

| name | size |
|:-----|-----:|
| one  |    1 |
| two  |   22 |

```python
print("</script>")
```

1. first
   - inner

     loose
2. second

> quoted

See [the note].

[the note]: https://example.org/note
"""
HOSTILE = """<script>window.harmed = 1</script>
<img src=x onerror="window.harmed = 1">
<style>body{display:none}</style><iframe src="http://127.0.0.1:9/f"></iframe>

[click](javascript:window.harmed=1) [mixed](JaVaScRiPt:window.harmed=1)
[data](data:text/html,<script>window.harmed=1</script>) [path](/v1/models)
[entity](&#106;avascript:window.harmed=1) <javascript:window.harmed=1>

![remote](http://127.0.0.1:9/x.png) ![quote](http://127.0.0.1:9/" onerror="window.harmed=1)
![inline](data:image/svg+xml,<svg onload=window.harmed=1>)

[title](https://example.org "x" onclick="window.harmed=1")

```html" onclick="window.harmed=1
</script><script>window.harmed = 1</script>
```

<a href="https://example.org" onclick="window.harmed=1" class="round" id="send">raw</a>
"""


def test_markdown_is_shown_without_breaking_the_policy(chat: Chat, server: FakeServer) -> None:
    server.script = Script((RICH,))
    chat.ask("Show")

    answer = chat.last_answer
    expect(answer.locator("h1")).to_have_text("Title")
    expect(answer.locator("td[align=right]").last).to_have_text("22")
    expect(answer.locator("pre code")).to_have_text('print("</script>")\n')
    expect(answer.locator(".code-head span")).to_have_text("python")
    link = answer.get_by_role("link", name="link")
    expect(link).to_have_attribute("href", "https://example.org/a?b=c&d=e")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(link).to_have_attribute("target", "_blank")
    assert chat.problems == []


def test_hostile_output_runs_nothing_and_asks_for_nothing(chat: Chat, server: FakeServer) -> None:
    server.script = Script(tuple(HOSTILE))
    chat.ask("Harm me")

    answer = chat.last_answer
    expect(answer).to_contain_text("<script>window.harmed = 1</script>")
    assert answer.locator("script, img, style, iframe, svg, form, input").count() == 0
    hrefs = answer.locator("a[href]").evaluate_all("links => links.map(a => a.protocol)")
    assert set(hrefs) == {"http:", "https:"}
    handlers = answer.evaluate(
        "root => [...root.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        ".filter(name => name.startsWith('on') || ['style', 'id', 'src'].includes(name))"
    )
    assert handlers == []
    assert chat.page.evaluate("window.harmed") is None
    assert [url for url in chat.requests if not url.startswith(server.url)] == []
    assert chat.problems == []


def test_a_javascript_link_is_text(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("[x](javascript:alert(1))",))
    chat.ask("Harm me")

    expect(chat.last_answer).to_have_text("[x](javascript:alert(1))")
    expect(chat.last_answer.locator("a")).to_have_count(0)


def test_a_remote_image_is_a_link(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("![a](http://127.0.0.1:9/x.png)",))
    chat.ask("Harm me")

    expect(chat.last_answer.get_by_role("link", name="a")).to_have_attribute(
        "href", "http://127.0.0.1:9/x.png"
    )


def test_the_question_is_shown_as_text(chat: Chat, server: FakeServer) -> None:
    chat.ask("<img src=x onerror=alert(1)> **not bold**")

    expect(chat.page.locator(".bubble")).to_have_text("<img src=x onerror=alert(1)> **not bold**")
    expect(chat.page.locator(".bubble *")).to_have_count(0)


def test_growing_letter_by_letter_ends_like_the_whole(chat: Chat) -> None:
    """Blocks that were settled early stay what they are in the whole."""
    grown_and_whole = """async (text) => {
          const { Markdown } = await import('/page/markdown.js');
          const { StreamedMarkdown } = await import('/page/streamed.js');
          const markdown = new Markdown();
          const grown = document.createElement('div');
          const streamed = new StreamedMarkdown(grown, markdown, () => {});
          for (let end = 1; end <= text.length; end += 1) streamed.show(text.slice(0, end));
          streamed.finish(text);
          const whole = document.createElement('div');
          whole.append(markdown.render(text));
          const plain = (root) => root.innerHTML.replace(/\\s*\\n\\s*/g, '\\n');
          return [plain(grown), plain(whole)];
        }"""

    for text in (RICH, HOSTILE, RICH.replace("\n", "\r\n")):
        grown, whole = chat.page.evaluate(grown_and_whole, text)
        assert grown == whole


def test_an_unfinished_code_block_is_already_one(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("Look:\n\n``", "`py", "thon\nx = 1\n``", "`\n\nDone."), hold_after=3)
    chat.send("Code")

    expect(chat.last_answer.locator("pre code")).to_have_text("x = 1\n")
    expect(chat.last_answer.locator(".code-head span")).to_have_text("python")
    server.release.set()
    expect(chat.last_answer.locator("p").last).to_have_text("Done.")
    expect(chat.last_answer.locator("pre")).to_have_count(1)


def test_a_link_is_its_text_until_its_address_is_complete(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("See [the paper](https://exa", "mple.org)."), hold_after=1)
    chat.send("Link")

    expect(chat.last_answer).to_have_text("See the paper")
    expect(chat.last_answer.locator("a")).to_have_count(0)
    server.release.set()
    expect(chat.last_answer.locator("a")).to_have_attribute("href", "https://example.org")


def test_finished_blocks_and_growing_code_stay_the_same_elements(
    chat: Chat, server: FakeServer
) -> None:
    server.script = Script(("First.\n\n```\nx\n", "y\n", "z\n"), hold_after=1)
    chat.send("Code")
    expect(chat.last_answer.locator("code")).to_have_text("x\n")
    elements = chat.last_answer.locator(":scope > *").element_handles()

    server.release.set()

    expect(chat.last_answer.locator("code")).to_have_text("x\ny\nz\n")
    assert [element.evaluate("element => element.isConnected") for element in elements] == [
        True,
        True,
    ]


def test_a_half_written_definition_is_not_remembered(chat: Chat) -> None:
    text = "[note]: https://example.org/whole\n\nSee [note].\n\nMore"
    shown = chat.page.evaluate(
        """async (text) => {
          const { Markdown } = await import('/page/markdown.js');
          const { StreamedMarkdown } = await import('/page/streamed.js');
          const root = document.createElement('div');
          const streamed = new StreamedMarkdown(root, new Markdown(), () => {});
          for (let end = 1; end <= text.length; end += 1) streamed.show(text.slice(0, end));
          return root.querySelector('a').href;
        }""",
        text,
    )

    assert shown == "https://example.org/whole"


def test_a_long_answer_does_not_freeze_the_page(chat: Chat, server: FakeServer) -> None:
    paragraph = "Some **words** and `code`, then more words.\n\n- a\n- b\n\n"
    server.script = Script((*[paragraph] * 2000, "The end."))
    chat.page.evaluate(
        """() => {
          window.longest = 0;
          new PerformanceObserver((list) => {
            for (const task of list.getEntries()) {
              window.longest = Math.max(window.longest, task.duration);
            }
          }).observe({ entryTypes: ['longtask'] });
        }"""
    )

    chat.ask("Write a lot")

    expect(chat.last_answer.locator("p").last).to_have_text("The end.")
    expect(chat.last_answer.locator("li")).to_have_count(4000)
    assert chat.page.evaluate("window.longest") < 1500  # ms; a render of it all takes longer


def test_copying_an_answer_and_a_code_block(
    open_chat: Callable[..., Chat], server: FakeServer
) -> None:
    chat = open_chat(permissions=["clipboard-read", "clipboard-write"])
    server.script = Script(("Look:\n\n```\nx = 1\n```\n",))
    chat.ask("Code")
    read = "navigator.clipboard.readText()"

    chat.last_answer.get_by_role("button", name="Copy").click()
    expect(chat.last_answer.get_by_role("button", name="Copied")).to_be_visible()
    assert chat.page.evaluate(read) == "x = 1\n"

    chat.page.locator(".foot").get_by_role("button", name="Copy").click()
    expect(chat.page.locator(".foot").get_by_role("button", name="Copied")).to_be_visible()
    assert chat.page.evaluate(read) == "Look:\n\n```\nx = 1\n```\n"
