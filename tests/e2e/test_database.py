"""A person chats with a database on DB-GPT's page."""

from e2e.belongings import COLUMN
from e2e.deployment import Deployment
from e2e.web_api import WebApi

QUESTION = "Which orchard has the largest harvest?"


def test_a_question_about_a_database_is_answered(
    deployment: Deployment, web: WebApi, database: str
) -> None:
    start = len(deployment.web.log)
    texts = web.ask("chat_with_db_qa", QUESTION, about=database)
    assert "ERROR" not in texts[-1]
    assert texts[-1].strip()
    # It was shown as it grew, however few frames a short answer takes.
    assert len(texts[0]) < len(texts[-1]) / 2
    assert len(set(texts)) >= 3
    # What DB-GPT sent to the model has the table in it.
    request = deployment.sent_by_dbgpt(start)
    assert COLUMN in request
    assert QUESTION in request


def test_a_question_that_runs_sql_is_answered_in_dbgpt_s_own_words(
    web: WebApi, database: str
) -> None:
    """The demo model writes no valid plan: DB-GPT must say so, and not fail."""
    texts = web.ask("chat_with_db_execute", QUESTION, about=database)
    assert texts[-1].strip()
    assert "LLM_ERROR" not in texts[-1]
    assert "SERVER_ERROR" not in texts[-1]
