"""A person makes a knowledge base on DB-GPT's page and chats with it."""

from e2e.belongings import PASSAGES
from e2e.deployment import Deployment
from e2e.web_api import WebApi

QUESTION = "When was the lighthouse constructed?"


def test_the_chunk_that_answers_is_recalled_first(web: WebApi, space: str) -> None:
    assert PASSAGES[0] in web.recall(space, QUESTION, count=3)[0]


def test_another_question_recalls_another_chunk(web: WebApi, space: str) -> None:
    assert PASSAGES[1] in web.recall(space, "How do I bake a loaf?", count=1)[0]


def test_a_chat_with_a_knowledge_base_shows_what_it_was_given(
    deployment: Deployment, web: WebApi, space: str
) -> None:
    start = len(deployment.web.log)
    texts = web.ask("chat_knowledge", QUESTION, about=space)
    answer, _, references = texts[-1].partition("<references")
    assert answer.strip()
    assert "ERROR" not in answer
    assert "Gull Point" in references
    assert PASSAGES[0] in deployment.sent_by_dbgpt(start)
