"""Asking, answering, stopping: what the page and the server say to each other."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .chat import Chat
from .fake_server import FakeServer, Script

pytestmark = pytest.mark.browser

WAIT_S = 10


def test_first_words_appear_before_the_answer_is_over(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("First words", ", then the rest."), hold_after=1)

    chat.send("Hi")

    expect(chat.last_answer).to_have_text("First words")
    expect(chat.stop_button).to_be_visible()
    server.release.set()
    expect(chat.last_answer).to_have_text("First words, then the rest.")
    expect(chat.send_button).to_be_visible()
    assert chat.problems == []


def test_stop_closes_the_connection_and_the_page_can_send_again(
    chat: Chat, server: FakeServer
) -> None:
    server.script = Script(("word {index} ",), is_endless=True)
    chat.send("Count")
    expect(chat.last_answer).to_contain_text("word 3")

    chat.stop_button.click()

    assert server.disconnected.wait(WAIT_S)
    expect(chat.last_note).to_have_text("Stopped.")
    expect(chat.last_answer).to_contain_text("word 3")
    server.script = Script(("Again.",))
    chat.ask("And now?")
    expect(chat.last_answer).to_have_text("Again.")


def test_stop_works_before_the_first_word(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("late",), hold_after=0)
    chat.send("Hi")
    expect(chat.page.locator(".stats").last).to_contain_text("Waiting for the first token")

    chat.stop_button.click()

    assert server.disconnected.wait(WAIT_S)
    expect(chat.last_note).to_have_text("Stopped.")


def test_new_conversation_stops_the_answer_and_forgets_the_old_one(
    chat: Chat, server: FakeServer
) -> None:
    server.script = Script(("word ",), is_endless=True)
    chat.send("Old question")
    expect(chat.last_answer).to_contain_text("word")

    chat.page.get_by_role("button", name="New conversation").click()

    assert server.disconnected.wait(WAIT_S)
    expect(chat.page.locator(".question")).to_have_count(0)
    server.script = Script()
    chat.ask("New question")
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "New question"}]


def test_the_second_turn_sends_the_history(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("One ", "answer."))
    chat.ask("First")
    chat.ask("Second")

    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "One answer."},
        {"role": "user", "content": "Second"},
    ]


def test_retry_asks_the_same_again_and_replaces_the_answer(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("Bad.",))
    chat.ask("First")
    server.script = Script(("Better.",))

    chat.page.get_by_role("button", name="Retry").click()

    expect(chat.answers).to_have_text(["Better."])
    assert server.bodies[1] == server.bodies[0]


def test_a_question_without_an_answer_is_not_sent_as_history(
    chat: Chat, server: FakeServer
) -> None:
    server.script = Script(refuse=429, error="all places are taken")
    chat.ask("Refused")
    server.script = Script()
    chat.ask("Heard")

    assert server.bodies[1]["messages"] == [{"role": "user", "content": "Heard"}]


def test_the_conversation_survives_a_reload(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("An *answer* to keep.",))
    chat.ask("A question to keep")
    chat.draft.fill("Not sent yet")

    chat.page.reload()

    expect(chat.page.locator(".question")).to_have_text("A question to keep")
    expect(chat.last_answer.locator("em")).to_have_text("answer")
    expect(chat.page.locator(".stats").last).to_contain_text("1 token")
    expect(chat.draft).to_have_value("Not sent yet")


def test_a_reload_in_the_middle_keeps_what_was_said(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("Half an answer", "never seen"), hold_after=1)
    chat.send("Hi")
    expect(chat.last_answer).to_have_text("Half an answer")

    chat.page.reload()

    expect(chat.last_answer).to_have_text("Half an answer")
    expect(chat.last_note).to_contain_text("The connection ended before the answer did.")
    expect(chat.send_button).to_be_visible()


def test_only_models_that_chat_are_offered(chat: Chat, server: FakeServer) -> None:
    chat.ask("Hi")
    assert server.bodies[0]["model"] == "guanaco-7b"
    names = chat.page.get_by_label("Model").locator("option").all_text_contents()
    assert names == ["guanaco-7b", "guanaco-13b"]


def test_the_chosen_model_is_asked(chat: Chat, server: FakeServer) -> None:
    chat.page.get_by_label("Model").select_option("guanaco-13b")
    chat.ask("Hi")

    assert server.bodies[0]["model"] == "guanaco-13b"
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_speed_is_corrected_by_the_usage_at_the_end(chat: Chat, server: FakeServer) -> None:
    stats = chat.page.locator(".stats").last
    server.script = Script(("a", "b", "c"), hold_after=2, completion_tokens=41)
    chat.send("Hi")
    expect(stats).to_contain_text("2 tokens")
    expect(stats).to_contain_text("first token")

    server.release.set()

    expect(stats).to_contain_text("41 tokens")
    expect(stats).to_contain_text("tokens/s")


def test_the_token_limit_is_told(chat: Chat, server: FakeServer) -> None:
    server.script = Script(("Cut o",), finish_reason="length")
    chat.ask("Hi")

    expect(chat.last_note).to_have_text("Ended at the token limit.")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (Script(refuse=400, error="9000 tokens do not fit"), "9000 tokens do not fit"),
        (Script(refuse=429, error="all places are taken"), "all places are taken"),
        (Script(("Half ",), error="out of memory"), "out of memory"),
        (Script(("Half ",), is_cut=True), "The connection ended before the answer did."),
    ],
    ids=["refused", "busy", "in the stream", "cut"],
)
def test_an_error_is_readable_and_can_be_retried(
    chat: Chat, server: FakeServer, script: Script, told: str
) -> None:
    server.script = script
    chat.ask("Hi")

    expect(chat.last_note).to_contain_text(told)
    expect(chat.last_answer).to_have_text("" if script.refuse else "Half")
    server.script = Script(("Fine.",))
    chat.page.get_by_role("button", name="Retry").click()
    expect(chat.answers).to_have_text(["Fine."])


def test_a_server_that_is_away_is_told_and_found_again(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat()
    chat.page.context.set_offline(True)
    expect(chat.health).to_contain_text("Server is away")
    chat.ask("Anybody?")
    expect(chat.last_note).to_contain_text("The server cannot be reached.")

    chat.page.context.set_offline(False)

    expect(chat.health).to_contain_text("Ready")


def test_the_page_shows_how_far_the_model_is_and_comes_to_life_with_it(
    chat: Chat, server: FakeServer
) -> None:
    ready, models = server.health, server.models
    server.models = []
    server.health = {"status": "loading", "stage": "loading weights", "done": 120, "total": 272,
                     "unit": "tensors", "seconds": 3.2}  # fmt: skip
    chat.page.reload()
    expect(chat.health).to_have_text("Loading the model: loading weights 44 %, 3 s so far")

    server.health, server.models = ready, models

    expect(chat.health).to_contain_text("Ready")
    expect(chat.page.get_by_label("Model")).to_have_value("guanaco-7b")


def test_the_queue_display_follows_the_server(chat: Chat, server: FakeServer) -> None:
    expect(chat.health).to_have_text("Ready · 5 slots free")
    server.health = {**server.health, "running": 5, "waiting": 3}
    expect(chat.health).to_have_text("5 of 5 slots in use · 3 waiting")
