"""Logits [N, V] → one token for each of N sequences, each as its own request asks.

Greedy and sampled sequences stand in one batch. A draw takes one number of a sequence's own
random stream and looks up in which token's share of the probability it falls, so a seed gives
the same tokens whatever runs beside it. What few requests ask for is computed for their rows
only. ``sampling.py`` does the same for one sequence, with transformers' own classes.
"""

import logging
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TypicalLogitsWarper

from dbgpt_guanaco.engine.sampling import LEAST_TEMPERATURE, Draw
from dbgpt_guanaco.engine.structure import StructureMatcher, allowed
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import SamplingParams

logger = logging.getLogger(__name__)

# Nucleus sampling looks at this many likeliest tokens first: sorting a whole vocabulary costs
# more than everything else, and the rest is hardly ever needed.
CANDIDATES = 1024


class Row:
    """How one sequence's tokens are drawn.

    Attributes:
        index: Its place in tables that hold a row for each sequence.
        problem: Why its structure could not be followed any further.
    """

    def __init__(
        self, index: int, params: SamplingParams, matcher: StructureMatcher | None = None
    ) -> None:
        self.index, self.params, self.matcher = index, params, matcher
        self.problem: InvalidRequestError | None = None
        seed = secrets.randbits(63) if params.seed is None else params.seed
        # Python hashes a seed's absolute value; -1 and 1 would be one seed.
        self._random = random.Random(f"{seed}")  # noqa: S311 - not for secrets

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is taken."""
        return self.params.temperature == 0

    @property
    def is_penalized(self) -> bool:
        """Tokens that stand there already are less likely, or more."""
        p = self.params
        return bool(p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty)

    @property
    def is_plain(self) -> bool:
        """The model's logits are taken as they are."""
        return not (self.is_penalized or self.params.logit_bias or self.matcher)

    def uniform(self) -> float:
        """Return the next number of this sequence's random stream, in [0, 1)."""
        return self._random.random()


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens that may still be on the device.

    Attributes:
        tokens: [N] on the host, once ``ready`` has happened; -1 where logits were not finite.
        ready: Event behind the copy to the host; None where there was none to wait for.
        logprobs: For rows that want them: the drawn token's, and the likeliest tokens'.
    """

    tokens: Tensor
    ready: torch.cuda.Event | None
    logprobs: dict[int, tuple[Tensor, Tensor, Tensor]]

    def token_ids(self) -> list[int]:
        """Wait for the tokens."""
        if self.ready:
            self.ready.synchronize()
        return [int(i) for i in self.tokens.tolist()]

    def draws(self, position: int, token_id: int) -> tuple[Draw, ...]:
        """Return what is told of one token, if its request wants it."""
        if position not in self.logprobs:
            return ()
        own, values, ids = self.logprobs[position]
        return (Draw(token_id, float(own), tuple(zip(ids.tolist(), values.tolist(), strict=True))),)


class BatchSampler:
    """Draws for a whole batch at once.

    Args:
        vocabulary_size: V, the width of the logits.
        rows: Sequences that may be there at a time.

    Attributes:
        last_tokens: [rows] newest token of each row, on the device, where the next step
            reads it.
    """

    def __init__(self, vocabulary_size: int, rows: int, device: torch.device) -> None:
        self._size, self._device, self._rows = vocabulary_size, device, rows
        self._free = list(range(rows))[::-1]
        self.last_tokens = torch.zeros(rows, dtype=torch.long, device=device)
        # Made when a request first asks for a penalty, [rows, V] each.
        self._prompt_has: Tensor | None = None
        self._counts: Tensor | None = None

    def open(
        self, params: SamplingParams, prompt: Sequence[int], matcher: StructureMatcher | None
    ) -> Row:
        """Give a sequence a row.

        Raises:
            LookupError: There is none left.
        """
        if not self._free:
            raise LookupError("every row is taken")
        row = Row(self._free[-1], params, matcher)
        if row.is_penalized:
            prompt_has, counts = self._tables()
            prompt_has[row.index] = False
            prompt_has[row.index, torch.tensor(prompt, device=self._device)] = True
            counts[row.index] = 0
        self._free.pop()  # only now: a table may not have fitted the memory
        return row

    def close(self, row: Row) -> None:
        """Take a row back."""
        self._free.append(row.index)

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        """Draw a token for each row.

        Args:
            logits: [N, V] as the model gave them; not modified.
            rows: N rows, each once.
        """
        best = logits.argmax(dim=-1)  # [N]; NaN and infinity win
        is_right = logits.gather(1, best[:, None])[:, 0].isfinite()
        scores, broken = self._processed(logits, rows)
        tokens = best if scores is logits else scores.argmax(dim=-1)
        sampled = [n for n, row in enumerate(rows) if not row.is_greedy]
        if sampled:
            where = self._index(sampled)
            chosen = [rows[n] for n in sampled]
            tokens[where] = self._sample(scores[where].float(), chosen)
        index = self._index([row.index for row in rows])
        self.last_tokens[index] = tokens
        self._count(tokens, rows)
        if broken:
            is_right[self._index(broken)] = False
        return self._fetch(logits, tokens.where(is_right, -1), rows)

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._prompt_has is None or self._counts is None:
            shape = (self._rows, self._size)
            self._prompt_has = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, device=self._device)
        return self._prompt_has, self._counts

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self._device, non_blocking=True)

    def _processed(self, logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, list[int]]:
        """Return scores with penalties, bias and structure; the logits where nobody has any.

        With them come the rows whose structure could not be followed.
        """
        if all(row.is_plain for row in rows):
            return logits, []
        scores = logits.float().clone()
        self._penalize(scores, rows)
        for n, row in enumerate(rows):
            if row.params.logit_bias:
                bias = row.params.logit_bias
                values = torch.tensor(list(bias.values()), device=self._device)
                scores[n, self._index(list(bias))] += values
        return scores, self._restrict(scores, rows)

    def _penalize(self, scores: Tensor, rows: Sequence[Row]) -> None:
        penalized = [n for n, row in enumerate(rows) if row.is_penalized]
        if not penalized:
            return
        prompt_has, counts = self._tables()
        where = self._index(penalized)
        index = self._index([rows[n].index for n in penalized])
        params = [rows[n].params for n in penalized]
        own, seen = scores[where], counts[index]
        repetition = self._column([p.repetition_penalty for p in params])
        repeated = torch.where(own > 0, own / repetition, own * repetition)
        own = torch.where(prompt_has[index] | (seen > 0), repeated, own)
        own = own - self._column([p.frequency_penalty for p in params]) * seen
        scores[where] = own - self._column([p.presence_penalty for p in params]) * (seen > 0)

    def _restrict(self, scores: Tensor, rows: Sequence[Row]) -> list[int]:
        """Leave only what structures allow; return the rows where that went wrong."""
        guided = [(n, row.matcher) for n, row in enumerate(rows) if row.matcher]
        if not guided:
            return []
        broken = []
        bitmask = torch.full((len(guided), -(-self._size // 32)), -1, dtype=torch.int32)
        for line, (n, matcher) in zip(bitmask, guided, strict=True):
            try:
                matcher.fill(line)
            except InvalidRequestError as error:
                rows[n].problem = error
                broken.append(n)
            except Exception:  # one request's structure must not end its neighbours' answers
                logger.exception("a structure could not be followed")
                broken.append(n)
        where = self._index([n for n, _ in guided])
        mask = allowed(bitmask, self._size).to(self._device)
        scores[where] = scores[where].masked_fill(~mask, -torch.inf)
        return broken

    def _count(self, tokens: Tensor, rows: Sequence[Row]) -> None:
        penalized = [n for n, row in enumerate(rows) if row.is_penalized]
        if penalized:
            _, counts = self._tables()
            index = self._index([rows[n].index for n in penalized])
            counts[index, tokens[self._index(penalized)]] += 1

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._device, non_blocking=True)[
            :, None
        ]

    def _sample(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        """Draw from scores [n, V], float32, → [n]."""
        scores = scores / self._column([max(r.params.temperature, LEAST_TEMPERATURE) for r in rows])
        uniforms = self._column([row.uniform() for row in rows])
        filtered = [n for n, row in enumerate(rows) if _is_filtered(row.params)]
        tokens = _look_up(scores.softmax(dim=-1), uniforms)
        if filtered:
            where = self._index(filtered)
            params = [rows[n].params for n in filtered]
            tokens[where] = self._sample_filtered(scores[where], params, uniforms[where])
        return tokens

    def _sample_filtered(
        self, scores: Tensor, params: Sequence[SamplingParams], uniforms: Tensor
    ) -> Tensor:
        """Draw among the tokens that top_k, top_p, min_p and typical_p leave."""
        values, ids = scores.topk(min(CANDIDATES, self._size), dim=-1)  # [n, C], best first
        kept, is_enough = _filter(values, scores.logsumexp(-1, keepdim=True), params, self._size)
        if not bool(is_enough.all()):
            values, ids = scores.sort(dim=-1, descending=True)
            kept, _ = _filter(values, scores.logsumexp(-1, keepdim=True), params, self._size)
        kept = self._typical(kept, params)
        place = _look_up(kept.softmax(dim=-1), uniforms)
        return ids.gather(1, place[:, None])[:, 0]

    def _typical(self, scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
        for mass in {p.typical_p for p in params} - {1.0}:
            where = self._index([n for n, p in enumerate(params) if p.typical_p == mass])
            scores[where] = TypicalLogitsWarper(mass)(None, scores[where])
        return scores

    def _fetch(self, logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> Drawn:
        told = {}
        for n, row in enumerate(rows):
            if row.params.logprobs:
                logprobs = logits[n].float().log_softmax(dim=-1)
                values, ids = logprobs.topk(row.params.top_logprobs)
                told[n] = (logprobs[tokens[n].clamp(min=0)], values, ids)
        if self._device.type != "cuda":
            return Drawn(tokens, None, told)
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch leaves it so
        ready.record()
        return Drawn(host, ready, told)


def _is_filtered(p: SamplingParams) -> bool:
    return bool(p.top_k or p.top_p < 1 or p.min_p or p.typical_p < 1)


def _look_up(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token [n] in whose share of [n, C] probabilities each uniform [n, 1] falls."""
    shares = probabilities.cumsum(dim=-1)
    # The last share is 1 but for rounding; a token of no share is never met.
    place = torch.searchsorted(shares, uniforms * shares[:, -1:], right=True)[:, 0]
    return place.clamp(max=probabilities.shape[-1] - 1)


def _filter(
    values: Tensor, total: Tensor, params: Sequence[SamplingParams], size: int
) -> tuple[Tensor, Tensor]:
    """Apply top_k, top_p and min_p to sorted scores, as transformers' warpers do in a row.

    Args:
        values: [n, C] scores of the likeliest tokens, best first.
        total: [n, 1] logsumexp of all scores.
        params: What each row asks for.
        size: V; C is as large or smaller.

    Returns:
        The scores with -inf for what is dropped, and of each row [n] whether C were enough.
    """
    device, candidates = values.device, values.shape[-1]
    asked = torch.tensor([[p.top_k or size, p.top_p, p.min_p] for p in params], dtype=torch.float64)
    asked = asked.to(device, non_blocking=True)
    k = asked[:, :1].clamp(max=size).long()
    is_cut = k < size
    kth = values.gather(1, k.clamp(max=candidates) - 1)
    in_k = (values >= kth) | ~is_cut  # ties with the k-th stay, as in transformers
    own_total = values.masked_fill(~in_k, -torch.inf).logsumexp(-1, keepdim=True)
    probabilities = (values - torch.where(is_cut, own_total, total)).exp() * in_k
    before = probabilities.cumsum(dim=-1) - probabilities
    in_p = (before < asked[:, 1:2]) | (asked[:, 1:2] >= 1)
    in_p[:, 0] = True
    floor = asked[:, 2:] * probabilities[:, :1]
    kept = values.masked_fill(~(in_k & in_p & (probabilities >= floor)), -torch.inf)
    reaches_end = ~kept[:, -1].isneginf() | (is_cut & (k > candidates))[:, 0]
    return kept, ~reaches_end if candidates < size else torch.ones_like(reaches_end)
