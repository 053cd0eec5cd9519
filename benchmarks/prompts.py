"""What is asked. Every server of a run gets the same prompts in the same order."""

import random
from dataclasses import dataclass

QUESTIONS = (
    "Explain in simple words why the sky is blue.",
    "Write a short story about a llama who learns to read.",
    "What is the difference between a process and a thread?",
    "Give me a recipe for a vegetable soup, step by step.",
    "Summarize the causes of the French Revolution.",
    "Write a Python function that merges two sorted lists, and explain it.",
    "How does a vaccine teach the immune system?",
    "Plan a three-day trip to a city you like, with reasons.",
    "Compare trains and planes for a journey of 600 kilometres.",
    "What should I check before I sign a rental contract?",
    "Explain how a hash table works and when it is slow.",
    "Write a polite letter that asks a neighbour to be quieter at night.",
    "Describe the life cycle of a star like our sun.",
    "Which exercises help against back pain from sitting?",
    "Explain compound interest with an example in numbers.",
    "Write a dialogue between a teacher and a curious student about gravity.",
)

# Frequent short words: most tokenizers spend about one token on each.
_WORDS = (
    "the of and to in is that for it was on with as at by from this are or an be we you all not "
    "can had her one our out day get has him his how man new now old see two way who boy did "
    "its let put say she too use time year work back call came each even find give good hand "
    "help here home just keep kind know last left life like line live long look made make many "
    "more most move much must name need next only open over part place point read right same "
    "seem show side small sound still such take tell than them then there these thing"
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes the prompt of every request of a run.

    Attributes:
        questions: Asked in turn; not empty.
        prefix_words: Words of filler text before the question, 0 for none.
        is_prefix_shared: One filler text for all requests instead of one for each.
        seed: Decides the filler texts. Two runs with one seed send the same ones, and a server
            with a prefix cache will remember them.
    """

    questions: tuple[str, ...] = QUESTIONS
    prefix_words: int = 0
    is_prefix_shared: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("no questions to ask")
        if not self.prefix_words >= 0:
            raise ValueError(f"prefix_words must be 0 or more, got {self.prefix_words}")

    def make(self, index: int, key: str) -> str:
        """Return one prompt.

        Args:
            index: Picks the question.
            key: Names the request; two keys have different filler texts.
        """
        question = self.questions[index % len(self.questions)]
        if not self.prefix_words:
            return question
        # A string seed is hashed by sha512, so it means the same in every process.
        dice = random.Random(f"{self.seed}/{'shared' if self.is_prefix_shared else key}")
        return f"{' '.join(dice.choices(_WORDS.split(), k=self.prefix_words))}\n\n{question}"
