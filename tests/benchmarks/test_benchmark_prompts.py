import pytest

from benchmarks.prompts import QUESTIONS, Prompts


def test_questions_are_asked_in_turn() -> None:
    prompts = Prompts(questions=("a", "b"))

    assert [prompts.make(index, "key") for index in range(3)] == ["a", "b", "a"]


def test_built_in_questions_differ() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def test_filler_has_the_words_asked_for_and_stands_first() -> None:
    filler, question = Prompts(("a?",), prefix_words=50).make(0, "key").split("\n\n")

    assert len(filler.split()) == 50
    assert question == "a?"


def test_every_request_has_its_own_filler_from_the_start() -> None:
    prompts = Prompts(("a?",), prefix_words=50)

    starts = {" ".join(prompts.make(0, f"{n}").split()[:8]) for n in range(100)}

    assert len(starts) == 100


def test_a_shared_prefix_is_the_same_for_all() -> None:
    prompts = Prompts(("a?",), prefix_words=50, is_prefix_shared=True)

    assert prompts.make(0, "one") == prompts.make(0, "two")


def test_a_seed_repeats_the_texts_and_another_does_not() -> None:
    one, same, other = (Prompts(("a?",), 20, seed=seed).make(0, "k") for seed in (1, 1, 2))

    assert one == same
    assert one != other


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="no questions"):
        Prompts(())
