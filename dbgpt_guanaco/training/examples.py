"""Conversations → token ids and labels, by the code and the template that serve."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dbgpt_guanaco.adapters.encoding import TextEncoder
from dbgpt_guanaco.adapters.family import Family
from dbgpt_guanaco.adapters.template import answers_of
from dbgpt_guanaco.errors import DataError, TrainingError
from dbgpt_guanaco.training.conversations import Conversation

# The label of a token that nothing is learned from; torch's cross entropy leaves it out.
UNLEARNED = -100

# The first id, and the one behind the last.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence of the training.

    Attributes:
        input_ids: Prompt and answers.
        labels: The ids to be learned, ``UNLEARNED`` elsewhere; of the same length.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def learned_tokens(self) -> int:
        """How many tokens are learned."""
        return sum(label != UNLEARNED for label in self.labels)


@dataclass(slots=True)
class Counts:
    """What became of the conversations.

    Attributes:
        conversations: That were given.
        cut: That lost turns at their end because they are too long.
        dropped: That were left out because even their first answer is too long.
        unfit: Answers that were left out because the template, or the tokenizer, writes them
            otherwise than after the prompt that is served.
        split: Conversations that became several examples, one for each answer.
        strange: That were left out because they hold a token the base has no embedding for.
    """

    conversations: int = 0
    examples: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut: int = 0
    dropped: int = 0
    unfit: int = 0
    split: int = 0
    strange: int = 0


@dataclass(slots=True)
class ExampleMaker:
    """Makes examples of one family, and counts.

    What stands before the first learned token of an answer is, id for id, the prompt that the
    server makes of the same messages.

    Attributes:
        max_tokens: Of an example; a longer conversation loses turns at its end.
        vocabulary_size: Tokens that the base has embeddings for; its tokenizer may know more.
    """

    family: Family
    max_tokens: int
    vocabulary_size: int
    counts: Counts = field(default_factory=Counts)

    def make_all(self, conversations: Iterable[Conversation]) -> list[Example]:
        """Return the examples of all conversations, in order.

        Raises:
            DataError: Nothing is left, or the model has no token that ends an answer.
        """
        if self.family.eos_token_id is None:
            raise DataError("the base has no eos token, so that its answers would have no end")
        found = [example for one in conversations for example in self._make(one)]
        if not found:
            raise DataError(
                f"nothing is left to learn: of {self.counts.conversations} conversations "
                f"{self.counts.dropped} are longer than {self.max_tokens} tokens even with one "
                f"answer, {self.counts.unfit} answers do not go on from their prompt, and "
                f"{self.counts.strange} hold tokens that the base has no embedding for"
            )
        if not all(self.family.stop_token_ids & set(example.labels) for example in found):
            raise TrainingError("an example has no eos among its labels; please report this")
        self.counts.examples = len(found)
        self.counts.tokens = sum(len(example.input_ids) for example in found)
        self.counts.learned_tokens = sum(example.learned_tokens for example in found)
        return found

    def _make(self, conversation: Conversation) -> list[Example]:
        self.counts.conversations += 1
        answers = answers_of(conversation)
        for kept in range(len(answers), 0, -1):
            drafts = self._drafts(conversation[: answers[kept - 1] + 1])
            examples = [self._labelled(ids, spans) for ids, spans in drafts]
            if any(max(example.input_ids) >= self.vocabulary_size for example in examples):
                self.counts.strange += 1
                return []
            if all(len(example.input_ids) <= self.max_tokens for example in examples):
                self.counts.cut += kept < len(answers)
                self.counts.split += len(examples) > 1
                self.counts.unfit += kept - sum(len(spans) for _, spans in drafts)
                return examples
        self.counts.dropped += 1
        return []

    def _drafts(self, conversation: Conversation) -> list[tuple[list[int], list[Span]]]:
        """Return texts with what is learned of each: one for all answers, or several.

        An answer that does not go on from its prompt in the whole text has a text of its own.
        """
        drafts = []
        ids, spans = self._spans(conversation)
        if together := [span for span in spans if span and spans[-1]]:
            drafts.append((ids, together))
        for number, span in zip(answers_of(conversation), spans, strict=True):
            if span is None or not together:
                ids, alone = self._spans(conversation[: number + 1])
                drafts += [(ids, [alone[-1]])] if alone[-1] else []
        return drafts

    def _spans(self, conversation: Conversation) -> tuple[list[int], list[Span | None]]:
        """Return the ids of a whole text, and for each answer which of them are learned."""
        transcript = self.family.template.transcribe(conversation)
        ids = self._ids(transcript.text, transcript.add_special_tokens)
        spans: list[Span | None] = []
        for number, end in zip(answers_of(conversation), transcript.ends, strict=True):
            prompt = self.family.template.render(conversation[:number])
            prompt_ids = self._ids(prompt.text, prompt.add_special_tokens)
            if end is None or ids[: len(prompt_ids)] != prompt_ids:
                spans.append(None)
                continue
            so_far = self._ids(transcript.text[:end], transcript.add_special_tokens)
            spans.append((len(prompt_ids), _common(so_far, ids)))
        return ids, spans

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return TextEncoder(self.family.tokenizer, self.family.bos_token_id).encode(
            text, add_special_tokens
        )

    def _labelled(self, ids: list[int], spans: list[Span]) -> Example:
        """Label the answers: each to its first eos; one is put after the last if it has none."""
        labels = [UNLEARNED] * len(ids)
        stops = self.family.stop_token_ids
        for begin, end in spans:
            end = next((i + 1 for i in range(begin, end) if ids[i] in stops), end)
            labels[begin:end] = ids[begin:end]
        eos = self.family.eos_token_id
        if labels[-1] != UNLEARNED and ids[-1] not in stops and eos is not None:
            ids, labels = [*ids, eos], [*labels, eos]
        return Example(tuple(ids), tuple(labels))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
