"""A person chats on DB-GPT's page."""

from itertools import pairwise

from e2e.deployment import Deployment
from e2e.direct import direct_answer
from e2e.web_api import WebApi

SYSTEM = ("system", "You are a helpful AI assistant.")  # DB-GPT's own, of its normal chat
FIRST = "My name is Quentin and I live in Oslo. Say hello to me."
SECOND = "Which city do I live in?"
TOKENS = 24
LONG = 256  # takes over a second, so that frames sent every 50 ms are many


def test_dbgpt_shows_the_model_s_own_answer(deployment: Deployment, web: WebApi) -> None:
    texts = web.ask("chat_normal", FIRST, max_tokens=TOKENS)
    own = direct_answer(deployment.guanaco, [SYSTEM, ("user", FIRST)], TOKENS)
    assert texts[-1].strip() == own.strip()
    assert own.strip()


def test_the_second_turn_sees_the_first(deployment: Deployment, web: WebApi) -> None:
    conversation = web.new_conversation("chat_normal")
    first = web.ask("chat_normal", FIRST, conversation=conversation, max_tokens=TOKENS)[-1]
    second = web.ask("chat_normal", SECOND, conversation=conversation, max_tokens=TOKENS)[-1]
    turns = [SYSTEM, ("user", FIRST), ("assistant", first.strip()), ("user", SECOND)]
    assert second.strip() == direct_answer(deployment.guanaco, turns, TOKENS).strip()
    forgetful = direct_answer(deployment.guanaco, [SYSTEM, ("user", SECOND)], TOKENS)
    assert second.strip() != forgetful.strip()


def test_an_answer_is_shown_while_the_model_still_writes(
    deployment: Deployment, web: WebApi
) -> None:
    with web.asking("chat_normal", "Tell me about the sea.", max_tokens=LONG) as answer:
        texts = answer.texts()
        first = next(texts)
        assert deployment.running == 1
        rest = list(texts)
    shown = [first, *rest]
    assert len(set(shown)) >= 10
    for earlier, later in pairwise(shown):
        assert later.startswith(earlier.rstrip())


def test_a_conversation_is_stored_with_its_answer(web: WebApi) -> None:
    conversation = web.new_conversation("chat_normal")
    answer = web.ask("chat_normal", FIRST, conversation=conversation, max_tokens=TOKENS)[-1]
    stored = {message["role"]: message["context"] for message in web.history(conversation)}
    assert stored["human"] == FIRST
    assert stored["view"].strip() == answer.strip()


def test_a_long_chinese_question_comes_back_whole(deployment: Deployment, web: WebApi) -> None:
    question = "请用中文介绍一下数据库和表的关系。🎉" * 8
    answer = web.ask("chat_normal", question, max_tokens=TOKENS)[-1]
    own = direct_answer(deployment.guanaco, [SYSTEM, ("user", question)], TOKENS)
    assert answer.strip() == own.strip()
