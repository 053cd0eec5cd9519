"""Logits [N, V] → one token for each of N sequences, each as its own request asks.

Greedy and sampled sequences stand in one batch. Each draws with random numbers of its own, so a
seed gives the same tokens whatever runs beside it. What few requests ask for is computed for
their rows only, and nothing waits for the device. ``sampling.py`` does the same for one sequence,
with transformers' own classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dbgpt_guanaco.engine.filters import filtered
from dbgpt_guanaco.engine.race import likeliest, race
from dbgpt_guanaco.engine.rows import Asked, Row
from dbgpt_guanaco.engine.sampling import Draw
from dbgpt_guanaco.engine.structure import StructureMatcher, allowed
from dbgpt_guanaco.engine.transfer import fetch, pinned_copy, to_device
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drawn:
    """N tokens, and what is told of some, that may still be on their way to the host.

    Attributes:
        numbers: On the host, once ``ready`` has happened: the tokens, -1 where logits were not
            finite; then, of each row in ``told``, the token's log-probability, the ``width``
            best ones and their tokens.
        ready: Event behind the copy to the host; None where there was none to wait for.
        count: N.
        told: Of rows that want log-probabilities, how many beside the token's own.
        width: The most of them.
    """

    numbers: Tensor
    ready: torch.cuda.Event | None
    count: int
    told: dict[int, int]
    width: int

    def token_ids(self) -> list[int]:
        """Wait for the tokens."""
        if self.ready:
            self.ready.synchronize()
        return [int(i) for i in self.numbers[: self.count].tolist()]

    def draws(self, position: int, token_id: int) -> tuple[Draw, ...]:
        """Return what is told of one token, if its request wants it."""
        if position not in self.told:
            return ()
        number, line = self.told[position], list(self.told).index(position)
        lines = self.numbers[self.count :].view(len(self.told), -1)
        own, *rest = lines[line].tolist()
        pairs = zip(map(int, rest[self.width :]), rest[: self.width], strict=True)
        return (Draw(token_id, own, tuple(pairs)[:number]),)


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
        row = Row(self._free[-1], params, self._size, matcher)
        if row.is_penalized:
            prompt_has, counts = self._tables()
            prompt_has[row.index] = False
            prompt_has[row.index, to_device(prompt, self._device)] = True
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
        bitmask, broken = self._bitmask(rows)
        asked = Asked(rows, broken, self._device)
        best = likeliest(logits)
        is_right = logits.gather(1, best[:, None])[:, 0].isfinite()
        scores = self._processed(logits, asked, bitmask)
        tokens = best if scores is logits else likeliest(scores)
        self._sample(tokens, scores, asked)
        self.last_tokens[asked.places("index")] = tokens
        self._count(tokens, asked)
        if broken:
            is_right[asked.places("broken")] = False
        return self._fetch(logits, tokens.where(is_right, -1), asked)

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._prompt_has is None or self._counts is None:
            shape = (self._rows, self._size)
            self._prompt_has = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, device=self._device)
        return self._prompt_has, self._counts

    def _bitmask(self, rows: Sequence[Row]) -> tuple[Tensor | None, list[int]]:
        """Return what structures allow, on the device, and the rows where that went wrong."""
        guided = [(n, row.matcher) for n, row in enumerate(rows) if row.matcher]
        if not guided:
            return None, []
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
        return pinned_copy(bitmask, self._device), broken

    def _processed(self, logits: Tensor, asked: Asked, bitmask: Tensor | None) -> Tensor:
        """Return scores with penalties, bias and structure; the logits where nobody has any."""
        if all(row.is_plain for row in asked.rows):
            return logits
        scores = logits.float().clone()
        if asked.penalized:
            self._penalize(scores, asked)
        if any(row.params.logit_bias for row in asked.rows):
            where = asked.places("bias_rows"), asked.places("bias_ids")
            scores[where] += asked.column("bias")[:, 0]
        if bitmask is not None:
            guided = asked.places("guided")
            mask = allowed(bitmask, self._size)
            scores[guided] = scores[guided].masked_fill(~mask, -torch.inf)
        return scores

    def _penalize(self, scores: Tensor, asked: Asked) -> None:
        prompt_has, counts = self._tables()
        where = asked.places("penalized")
        index = asked.places("index")[where]
        own, seen = scores[where], counts[index]
        repetition = asked.column("repetition")
        repeated = torch.where(own > 0, own / repetition, own * repetition)
        own = torch.where(prompt_has[index] | (seen > 0), repeated, own)
        own = own - asked.column("frequency") * seen
        scores[where] = own - asked.column("presence") * (seen > 0)

    def _count(self, tokens: Tensor, asked: Asked) -> None:
        if asked.penalized:
            _, counts = self._tables()
            where = asked.places("penalized")
            counts[asked.places("index")[where], tokens[where]] += 1

    def _sample(self, tokens: Tensor, scores: Tensor, asked: Asked) -> None:
        """Write a drawn token [N] for each row that is not greedy."""
        if asked.free:
            weights = self._weights("free", scores, asked)
            noise = asked.table("free_noise", len(weights))
            tokens[asked.places("free")] = race(weights, noise)
        if asked.filtered:
            weights = self._weights("filtered", scores, asked)
            params = [asked.rows[n].params for n in asked.filtered]
            weights = filtered(weights, asked.table("filtered_filters", len(weights)), params)
            noise = asked.table("filtered_noise", len(weights))
            tokens[asked.places("filtered")] = race(weights, noise)

    def _weights(self, kind: str, scores: Tensor, asked: Asked) -> Tensor:
        own = scores.index_select(0, asked.places(kind)).float()  # a copy in any case
        return own.div_(asked.column(f"{kind}_temperature")).softmax(dim=-1)

    def _fetch(self, logits: Tensor, tokens: Tensor, asked: Asked) -> Drawn:
        told = {n: asked.rows[n].params.top_logprobs for n in asked.told}
        width = max(told.values(), default=0)
        numbers = tokens
        if told:
            where = asked.places("told")
            logprobs = logits[where].float().log_softmax(dim=-1)
            own = logprobs.gather(1, tokens[where].clamp(min=0)[:, None])
            values, ids = logprobs.topk(width)
            lines = torch.cat([own.double(), values.double(), ids.double()], dim=1)
            numbers = torch.cat([tokens.double(), lines.flatten()])
        return Drawn(*fetch(numbers), len(asked.rows), told, width)
