from itertools import combinations, product

from dbgpt_guanaco.engine.stopping import StopChecker


def shown(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    checker = StopChecker(stop)
    text = "".join(map(checker.feed, pieces)) + checker.flush()
    return text, checker.stopped


def test_same_text_however_it_is_split() -> None:
    words = ["".join(w) for n in (1, 2, 3) for w in product("ab", repeat=n)]
    texts = ["".join(w) for w in product("ab", repeat=5)]
    for stop, text in product(combinations(words, 2), texts):
        whole = shown(stop, [text])
        for cuts in product((0, 1), repeat=4):
            ends = [i + 1 for i, cut in enumerate(cuts) if cut]
            pieces = [text[i:j] for i, j in zip([0, *ends], [*ends, 5], strict=True)]

            assert shown(stop, pieces) == whole, (stop, pieces)


def test_the_match_that_is_complete_first_wins() -> None:
    assert shown(("def", "bcde"), ["abcdefgh"]) == ("a", True)
    assert shown(("cd", "bcde"), ["abcdefgh"]) == ("ab", True)


def test_no_part_of_a_stop_string_is_ever_shown() -> None:
    checker = StopChecker(["### Human:"])

    pieces = [checker.feed(character) for character in "Paris.\n### Human: more"]

    assert "".join(pieces) == "Paris.\n"
    assert checker.stopped


def test_text_that_only_began_like_a_stop_string_is_shown() -> None:
    assert shown(("### Human:",), ["a ##", "# H", "eading"]) == ("a ### Heading", False)
    assert shown(("### Human:",), ["a ##"]) == ("a ##", False)


def test_nothing_follows_a_stop() -> None:
    checker = StopChecker(["x"])

    assert checker.feed("axb") + checker.feed("c") + checker.flush() == "a"


def test_without_stop_strings_nothing_is_held_back() -> None:
    checker = StopChecker([])

    assert checker.feed("###") == "###"
