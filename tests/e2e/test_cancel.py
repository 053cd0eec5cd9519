"""A person closes DB-GPT's page before an answer is complete."""

from itertools import islice

import pytest

from e2e.deployment import Deployment
from e2e.processes import wait_until
from e2e.web_api import WebApi

STORY = "Write a very long story about a dragon, with many chapters."
# More than the demo model writes in the time that a test waits.
TOKENS = 2000
FREE_WITHIN_S = 1.0


def close_early(
    deployment: Deployment, web: WebApi, mode: str, about: str = "", texts: int = 3
) -> None:
    """Close the page as soon as a text has come; our place must be free soon.

    That moment is the hard one: DB-GPT rests after each text, and does not wait for us.
    """
    with web.asking(mode, STORY, about=about, max_tokens=TOKENS) as answer:
        shown = answer.texts()
        next(shown)
        assert deployment.running == 1
        list(islice(shown, texts))
    wait_until(lambda: deployment.running == 0, "our place is free", FREE_WITHIN_S, poll_s=0.02)


@pytest.mark.parametrize("texts", [1, 2, 40])
def test_closing_the_page_frees_our_place(deployment: Deployment, web: WebApi, texts: int) -> None:
    close_early(deployment, web, "chat_normal", texts=texts)


def test_closing_the_page_before_the_first_text_frees_our_place(
    deployment: Deployment, web: WebApi
) -> None:
    long_prompt = f"{STORY} " * 60  # takes the model longer to read than a person to leave
    with web.asking("chat_normal", long_prompt, max_tokens=TOKENS):
        wait_until(lambda: deployment.running == 1, "our server reads", 10, poll_s=0.02)
    wait_until(lambda: deployment.running == 0, "our place is free", FREE_WITHIN_S, poll_s=0.02)


def test_closing_a_chat_with_a_database_frees_our_place(
    deployment: Deployment, web: WebApi, database: str
) -> None:
    close_early(deployment, web, "chat_with_db_qa", about=database)


def test_closing_a_chat_with_a_knowledge_base_frees_our_place(
    deployment: Deployment, web: WebApi, space: str
) -> None:
    close_early(deployment, web, "chat_knowledge", about=space)


def test_closing_all_pages_lets_the_next_one_chat(deployment: Deployment, web: WebApi) -> None:
    for _ in range(5):  # as many as our server answers at a time
        close_early(deployment, web, "chat_normal")
    assert web.ask("chat_normal", "Are you still there?", max_tokens=4)[-1].strip()
