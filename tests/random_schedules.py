"""One random crowd of requests, answered by the real books around a model made of hashes.

``Run`` takes the steps that ``batching.py`` takes, without a thread, and looks at everything
after each of them.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hash_model import STOP, VOCABULARY, HashPasses, lone_answer

from dbgpt_guanaco.engine.batch_sampler import BatchSampler, Drawn
from dbgpt_guanaco.engine.block_manager import BlockManager
from dbgpt_guanaco.engine.model_runner import ModelRunner
from dbgpt_guanaco.engine.scheduler import PrefillBudget, Scheduler, Step
from dbgpt_guanaco.engine.sequence import Sequence
from dbgpt_guanaco.types import SamplingParams

SALTS = ("", "", "", "a", "b")
GREEDY = SamplingParams(temperature=0)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine may be like.

    Attributes:
        overlaps: A step is started before the tokens of the one before are read, as on a GPU.
        waits_outside: Requests come in when their prompt has room, as ``batching.py`` lets them.
        failures: Share of steps that fail.
    """

    block_size: int
    num_blocks: int
    slots: int
    budget: PrefillBudget
    overlaps: bool
    waits_outside: bool
    failures: float


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for, at which step, and at which one they leave, if they do."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    salt: str
    arrives: int
    leaves: int | None


class Run:
    """Answers the requests of one seed.

    Attributes:
        seen: How often what happened.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self._shape = shape = _shape(self._draw)
        self._blocks = WatchedBlocks(shape.num_blocks, shape.block_size, self.seen)
        self._scheduler = Scheduler(self._blocks, shape.budget, shape.slots)
        self._sampler = BatchSampler(VOCABULARY, 32, CPU)
        self._passes = HashPasses(shape.num_blocks, shape.block_size)
        self._runner = ModelRunner(self._passes, self._sampler, CPU)
        self._requests = list(_requests(self._draw, shape))
        self._coming = deque(sorted(self._requests, key=lambda r: r.arrives))
        self._outside: deque[Sequence] = deque()
        self._request_of: dict[Sequence, Request] = {}  # in the order of their coming
        self._pending: tuple[Step, Drawn] | None = None
        self._ended = 0
        self._now = 0

    def run(self) -> None:
        """Take steps until everybody is gone.

        Raises:
            AssertionError: Something is wrong, or somebody waits for ever.
        """
        tokens = sum(len(r.prompt) + r.max_new_tokens for r in self._requests)
        limit = self._coming[-1].arrives + tokens + 2 * len(self._requests)
        while self._ended < len(self._requests):
            assert self._now <= limit, f"somebody still waits after {limit} steps"
            self._arrive()
            self._leave_cancelled()
            self._advance()
            self._check_books()
            self._now += 1
        assert self._blocks.num_free == self._blocks.num_blocks, "blocks are held by nobody"
        self.seen["preemptions"] = self._scheduler.preemptions
        self.seen["cached tokens"] = self._scheduler.cached_tokens

    def _arrive(self) -> None:
        while self._coming and self._coming[0].arrives <= self._now:
            request = self._coming.popleft()
            self._outside.append(_sequence(request))
            self._request_of[self._outside[-1]] = request
        while self._outside and self._may_enter(self._outside[0]):
            sequence = self._outside.popleft()
            sequence.row = self._sampler.open(GREEDY, sequence.token_ids, None)
            self._scheduler.add(sequence)
        assert not (self._outside and self._scheduler.is_idle), "an empty engine takes nobody"

    def _may_enter(self, sequence: Sequence) -> bool:
        if not self._shape.waits_outside:
            return True
        return self._scheduler.can_seat(sequence.token_ids, sequence.salt)

    def _leave_cancelled(self) -> None:
        for sequence in [*self._scheduler.sequences, *self._outside]:
            leaves = self._request_of[sequence].leaves
            if leaves is not None and leaves <= self._now:
                self.seen[f"cancelled {self._place(sequence)}"] += 1
                self._leave(sequence)

    def _place(self, sequence: Sequence) -> str:
        if sequence in self._outside:
            return "outside"
        if sequence in self._scheduler.running:
            return "in decode" if sequence.is_decoding else "in prefill"
        return "when preempted" if sequence.is_seated else "waiting"

    def _advance(self) -> None:
        """Take a step as ``BatchingEngine._step`` does, and see the oldest one come nearer."""
        oldest = next(iter(self._scheduler.sequences), None)
        done = oldest.num_computed if oldest else 0
        step = self._scheduler.schedule()
        self._check_step(step)
        try:
            drawn = self._compute(step) if step else None
        except RuntimeError:
            self._contain(step)
            return
        self._read_pending()
        self._pending = (step, drawn) if drawn else None
        if not self._shape.overlaps:
            self._read_pending()
        assert not oldest or oldest.is_over or oldest.num_computed > done, "the oldest stands still"

    def _compute(self, step: Step) -> Drawn:
        self._passes.is_failing = self._draw.random() < self._shape.failures
        self._passes.is_full = self._draw.random() < self._shape.failures
        self.seen["halved steps"] += self._passes.is_full and bool(step.chunks)
        return self._runner.run(step)

    def _contain(self, step: Step) -> None:
        """End whom ``BatchingEngine._contain`` ends."""
        self.seen["failed steps"] += 1
        pending, self._pending = self._pending, None
        for failed in [step, *([pending[0]] if pending else [])]:
            self._scheduler.discard(failed)
            for sequence in failed.sequences:
                if not sequence.is_over:
                    self._leave(sequence)

    def _read_pending(self) -> None:
        if not self._pending:
            return
        (step, drawn), self._pending = self._pending, None
        for sequence, token in zip(step.drawing, drawn.token_ids(), strict=True):
            if not sequence.is_over:
                sequence.append(token)
                if token == STOP or len(sequence.token_ids) == sequence.max_tokens:
                    self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        request = self._request_of[sequence]
        found = sequence.token_ids[len(request.prompt) :]
        expected = lone_answer(request.prompt, request.max_new_tokens, request.salt)
        assert found == expected, f"{request} got {found}, alone {expected}"
        self.seen["finished"] += 1
        self.seen["stopped"] += found[-1] == STOP
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        sequence.is_over = True
        if sequence in self._outside:
            self._outside.remove(sequence)
        else:
            self._scheduler.remove(sequence)
            self._sampler.close(sequence.row)
        self._ended += 1

    def _check_step(self, step: Step) -> None:
        budget = self._shape.budget.beside if step.decodes else self._shape.budget.alone
        assert sum(c.end - c.start for c in step.chunks) <= budget, "a step exceeds its budget"
        assert len(set(step.sequences)) == len(step.sequences), "somebody is in a step twice"
        self.seen["chunked prefills"] += sum(not c.is_last for c in step.chunks)
        self.seen["mixed steps"] += bool(step.decodes and step.chunks)
        self.seen["recomputed answers"] += sum(
            c.is_last and c.end > len(c.sequence.generation.input_ids) for c in step.chunks
        )
        size = self._shape.block_size
        writers = {b: c for c in step.chunks for b in c.sequence.blocks[c.start // size :]}
        for chunk in step.chunks:
            others = [writers.get(b, chunk) for b in chunk.sequence.blocks[: chunk.start // size]]
            self.seen["shared within a step"] += any(o is not chunk for o in others)

    def _check_books(self) -> None:
        """Look at the books, with their own check and without it."""
        running, blocks = self._scheduler.running, self._blocks
        blocks.check([sequence.blocks for sequence in running])
        held = Counter(block for sequence in running for block in sequence.blocks)
        assert [held[b] for b in range(blocks.num_blocks)] == blocks._holders
        assert set(blocks._free) == set(range(blocks.num_blocks)) - set(held)
        assert blocks.num_free + len(held) == blocks.num_blocks
        assert len(running) <= self._shape.slots
        order = [s for s in self._request_of if s in set(self._scheduler.sequences)]
        assert order == self._scheduler.sequences, "somebody overtook somebody"
        assert not any(s.blocks or s.num_computed for s in self._scheduler.waiting)
        for sequence in running:
            assert len(sequence.blocks) * blocks.block_size >= sequence.num_computed
            assert len(set(sequence.blocks)) == len(sequence.blocks)
        self._check_shared({block for block, holders in held.items() if holders > 1})

    def _check_shared(self, shared: Iterable[int]) -> None:
        """Who holds the same block must have written the same, up to its end."""
        size = self._shape.block_size
        for block in shared:
            self.seen["shared blocks"] += 1
            holders = [s for s in self._scheduler.running if block in s.blocks]
            texts = {(s.salt, *s.token_ids[: (s.blocks.index(block) + 1) * size]) for s in holders}
            assert len(texts) == 1, f"block {block} is shared by other texts"
            assert (len(texts.pop()) - 1) % size == 0, f"block {block} is shared before it is full"


class WatchedBlocks(BlockManager):
    """The real books; counts what is taken although it could still be found."""

    def __init__(self, num_blocks: int, block_size: int, seen: Counter[str]) -> None:
        super().__init__(num_blocks, block_size)
        self._seen = seen

    def take(self, number: int) -> list[int]:
        """See ``BlockManager``."""
        known = len(self._key_of)
        taken = super().take(number)
        self._seen["evicted blocks"] += known - len(self._key_of)
        return taken


def _shape(draw: random.Random) -> Shape:
    beside = draw.randint(1, 9)
    return Shape(
        block_size=draw.randint(2, 4),
        num_blocks=draw.randint(5, 14),
        slots=draw.randint(1, 6),
        budget=PrefillBudget(draw.choice([beside, draw.randint(1, 30)]), beside),
        overlaps=draw.random() < 0.5,
        waits_outside=draw.random() < 0.5,
        failures=draw.choice([0, 0, 0, 0.05]),
    )


def _requests(draw: random.Random, shape: Shape) -> Iterator[Request]:
    """Make prompts that begin alike, and such that go on where others' answers end."""
    capacity = shape.num_blocks * shape.block_size
    texts, arrives = [tuple(_tokens(draw, capacity))], 0
    for _ in range(draw.randint(3, 10)):
        stem = draw.choice(texts)[: draw.randint(0, draw.choice([4, capacity]))]
        prompt = (*stem, *_tokens(draw, draw.randint(1, 3)))[: capacity - 1]
        room, salt = capacity - len(prompt), draw.choice(SALTS)
        count = draw.randint(1, min(room, draw.choice([3, 12, 30])))
        arrives += draw.choice([0, 0, 0, 1, draw.randint(0, 8)])
        leaves = arrives + draw.randint(0, 20) if draw.random() < 0.2 else None
        yield Request(prompt, count, salt, arrives, leaves)
        texts.append((*prompt, *lone_answer(prompt, count, salt)))


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1, VOCABULARY) for _ in range(count)]


def _sequence(request: Request) -> Sequence:
    """Return a sequence without a reader; it gets its row when it comes in."""
    generation: Any = SimpleNamespace(
        input_ids=request.prompt,
        kv_tokens=len(request.prompt) + request.max_new_tokens,
        request=SimpleNamespace(request_id="test"),
        cache_salt=request.salt,
        lora=request.salt,
    )
    nothing: Any = None
    return Sequence(generation, SimpleNamespace(cached_tokens=0), nothing)  # type: ignore[arg-type] # told above
