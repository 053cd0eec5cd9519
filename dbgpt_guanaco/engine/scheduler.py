"""What the next step computes: one token of everybody who decodes, and pieces of prompts.

Who came first goes first. A sequence is let in when the blocks of its prompt are there; when
blocks run out later, the newest one gives up its own and is computed again. So the oldest
always gets to its end, and nobody waits for ever.
"""

from collections import deque
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence that a step computes.

    Attributes:
        start: First token, and how many lie before it in the cache.
        end: Behind the last one.
        is_last: A token is drawn behind it.
    """

    sequence: Sequence
    start: int
    end: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass.

    Attributes:
        decodes: Of each the newest token is computed and another one drawn.
        chunks: Pieces of prompts.
    """

    decodes: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]

    @property
    def drawing(self) -> list[Sequence]:
        """The sequences for which a token is drawn, in the order of their logits."""
        return [*self.decodes, *(c.sequence for c in self.chunks if c.is_last)]

    @property
    def sequences(self) -> list[Sequence]:
        """All that take part."""
        return [*self.decodes, *(c.sequence for c in self.chunks)]

    def halves(self) -> "tuple[Step, Step]":
        """Return two steps that compute the same one after the other.

        Blocks that a chunk shares were filled before it, or by a chunk before it, so what comes
        first is computed first.
        """
        left = sum(chunk.end - chunk.start for chunk in self.chunks) // 2
        first, second = list[Chunk](), list[Chunk]()
        for chunk in self.chunks:
            cut = min(chunk.start + left, chunk.end)
            left -= cut - chunk.start
            if cut > chunk.start:
                first.append(replace(chunk, end=cut, is_last=chunk.is_last and cut == chunk.end))
            if cut < chunk.end:
                second.append(replace(chunk, start=cut))
        return Step(self.decodes, tuple(first)), Step((), tuple(second))

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)


LEAST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PrefillBudget:
    """Prompt tokens of one step.

    Attributes:
        alone: While nobody decodes.
        beside: While others wait for their next token.
        per_decode: Fewer beside a few others: so many for each of them, but 16 at least. Where
            time grows with tokens, 2 keep a step within three times what it takes without
            prompts. 0 is off.
    """

    alone: int
    beside: int
    per_decode: int = 0

    def tokens(self, decodes: int) -> int:
        """Return how many beside so many decoding sequences."""
        if not decodes:
            return self.alone
        few = max(LEAST_TOKENS, self.per_decode * decodes)
        return min(self.beside, few) if self.per_decode else self.beside


class Scheduler:
    """Decides who computes what, and who holds which blocks.

    Args:
        blocks: The cache's books.
        budget: Prompt tokens of one step.
        slots: Sequences that may hold blocks at a time.
    """

    def __init__(self, blocks: BlockManager, budget: PrefillBudget, slots: int) -> None:
        self._blocks, self.budget, self._slots = blocks, budget, slots
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of their coming
        self.preemptions = 0
        self.cached_tokens = 0  # prompt tokens that did not have to be computed

    @property
    def sequences(self) -> list[Sequence]:
        """All that run and wait."""
        return [*self.running, *self.waiting]

    @property
    def is_idle(self) -> bool:
        """There is nobody."""
        return not self.running and not self.waiting

    def can_seat(self, token_ids: Many[int], salt: str) -> bool:
        """Say whether a prompt's blocks are there, beside those of everybody who is here."""
        here = len(self.running) + len(self.waiting)
        coming = sum(self._blocks.blocks_for(s.num_tokens) for s in self.waiting)
        shared = self._blocks.find(token_ids, salt)
        new = self._blocks.blocks_for(len(token_ids)) - len(shared)
        return here < self._slots and self._blocks.can_hold(shared, new, here + coming)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for blocks."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._blocks.release(sequence.blocks)
            sequence.start_again()
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Step:
        """Return the next step; it is taken as done, so a second call returns the one after.

        A step that fails is told by ``discard``.
        """
        before = self.preemptions
        decodes = self._schedule_decodes()
        budget = self.budget.tokens(len(decodes))
        chunks = self._continue_prompts(budget)
        budget -= sum(chunk.end - chunk.start for chunk in chunks)
        if self.preemptions == before:
            chunks += self._admit(budget)
        for sequence in [*decodes, *(c.sequence for c in chunks if c.is_last)]:
            sequence.expect_token()
        return Step(tuple(decodes), tuple(chunks))

    def discard(self, step: Step) -> None:
        """What a step wrote is not to be trusted: let nobody find the blocks it may have filled."""
        for sequence in step.sequences:
            self._blocks.forget(sequence.blocks)

    def _schedule_decodes(self) -> list[Sequence]:
        """Oldest first: who gives way is newer, and has not been scheduled yet."""
        decodes: list[Sequence] = []
        for sequence in list(self.running):
            if not sequence.is_decoding or not sequence.has_room:
                continue
            if sequence in self.running and self._grow(sequence):
                decodes.append(sequence)
                self._advance(sequence, sequence.num_tokens)
        return decodes

    def _grow(self, sequence: Sequence) -> bool:
        """Give a sequence the block of its newest token; return whether it is still running."""
        needed = self._blocks.blocks_for(sequence.num_tokens) - len(sequence.blocks)
        while needed > self._blocks.num_free:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        sequence.blocks += self._blocks.take(needed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _continue_prompts(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self.running:
            if budget and not sequence.is_decoding and sequence.num_computed < sequence.num_tokens:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].end - chunks[-1].start
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        chunks = []
        while budget and self.waiting and len(self.running) < self._slots:
            sequence = self.waiting[0]
            is_known = len(sequence.token_ids) == sequence.num_tokens
            if not is_known or not self._seat(sequence):
                break
            self.waiting.popleft()
            self.running.append(sequence)
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1].end - chunks[-1].start
        return chunks

    def _seat(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks of its prompt, shared ones first, if they are there."""
        shared = self._blocks.find(sequence.token_ids, sequence.salt)
        new = self._blocks.blocks_for(sequence.num_tokens) - len(shared)
        # Each that runs will soon want a block; letting one more in must not take the last.
        if not self._blocks.can_hold(shared, new, reserve=len(self.running)):
            return False
        self._blocks.share(shared)
        sequence.blocks = [*shared, *self._blocks.take(new)]
        sequence.node = self._blocks.node(shared, sequence.salt)
        sequence.num_remembered = len(shared)
        sequence.num_computed = len(shared) * self._blocks.block_size
        if not sequence.is_seated:
            sequence.is_seated = True
            sequence.answer.cached_tokens = sequence.num_computed
            self.cached_tokens += sequence.num_computed
        return True

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget)
        is_last = end == sequence.num_tokens
        self._advance(sequence, end)
        sequence.is_decoding = is_last
        return Chunk(sequence, start, end, is_last)

    def _advance(self, sequence: Sequence, end: int) -> None:
        """Count tokens as computed, and let their blocks be found.

        A layer writes all keys and values of a pass before it reads any, so what this step
        computes may be shared by those who join it. Tokens that the host does not know yet
        are remembered with the next step.
        """
        sequence.num_computed = end
        known = min(end, len(sequence.token_ids)) // self._blocks.block_size
        first = sequence.num_remembered
        if known > first:
            size = self._blocks.block_size
            sequence.node = self._blocks.remember(
                sequence.node,
                sequence.blocks[first:known],
                sequence.token_ids[first * size : known * size],
            )
            sequence.num_remembered = known
