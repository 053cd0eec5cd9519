"""Logits [B, V] → token ids [B], as one request asks.

The draw is made here and not in ``generate``: each request has random numbers of its own, so a
seed gives the same tokens whatever runs beside it, and in either engine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from dbgpt_guanaco.engine.race import Noise, race
from dbgpt_guanaco.engine.structure import StructureMatcher, allowed
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import SamplingParams

# Below this the likeliest token has all the mass, and logits divided by less overflow.
LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn token with the model's own log-probabilities, before any warping.

    Attributes:
        top: Token id and log-probability of the likeliest tokens, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def check_token_ids(params: SamplingParams, vocabulary_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequestError: One is too large.
    """
    for name, ids in (
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
    ):
        if any(i >= vocabulary_size for i in ids):
            raise InvalidRequestError(name, f"token ids must be below {vocabulary_size}")


class Sampler(LogitsProcessor):  # type: ignore[misc] # transformers is not typed
    """Draws the next token of one sequence and leaves only it possible.

    Used as the last logits processor of a greedy ``generate``. Penalties come first, then
    bias, then what a structure allows, then the warpers in transformers' own order.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocabulary_size: int,
        device: torch.device,
        matcher: StructureMatcher | None = None,
    ) -> None:
        self._params, self._matcher = params, matcher
        self._noise, self._device = Noise(params.seed, vocabulary_size), device
        self._processors, self._warpers = _processors(params), _warpers(params)
        self._counts = torch.zeros(vocabulary_size, device=device)  # [V], of the answer
        self._bias = torch.zeros(vocabulary_size, device=device)  # [V]
        for token_id, bias in params.logit_bias.items():
            self._bias[token_id] = bias
        self.draws: list[Draw] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw a token.

        Args:
            input_ids: Prompt and answer so far, shape [1, T].
            scores: Logits, shape [1, V], float32; not modified.

        Returns:
            Scores, shape [1, V], whose one finite entry is the drawn token.

        Raises:
            FloatingPointError: The model gave NaN or infinity.
            InvalidRequestError: The structure of the answer cannot be followed any further.
        """
        if not bool(scores.max().isfinite()):  # NaN wins every max
            raise FloatingPointError("the model gave NaN or infinite logits")
        warped = self._restrict(self._penalize(self._processors(input_ids, scores)))
        if self._params.temperature == 0:
            token = warped.argmax(dim=-1)  # [1]
        else:
            token = self._drawn(self._warpers(input_ids, warped).softmax(dim=-1))
        self._counts[token] += 1
        if self._matcher:
            self._matcher.accept(int(token))
        if self._params.logprobs:
            self.draws.append(_draw(scores[0], int(token), self._params.top_logprobs))
        return torch.full_like(scores, -torch.inf).index_fill_(1, token, 0.0)

    def _drawn(self, probabilities: Tensor) -> Tensor:
        noise = torch.from_numpy(self._noise.next())[None]
        return race(probabilities, noise.to(self._device))

    def _penalize(self, scores: Tensor) -> Tensor:
        frequency, presence = self._params.frequency_penalty, self._params.presence_penalty
        if frequency or presence:
            scores = scores - frequency * self._counts - presence * (self._counts > 0)
        return scores + self._bias if self._params.logit_bias else scores

    def _restrict(self, scores: Tensor) -> Tensor:
        if not self._matcher:
            return scores
        size = scores.shape[-1]
        bitmask = torch.empty(1, -(-size // 32), dtype=torch.int32)
        self._matcher.fill(bitmask[0])
        return scores.masked_fill(~allowed(bitmask, size).to(scores.device), -torch.inf)


def _processors(params: SamplingParams) -> LogitsProcessorList:
    if params.repetition_penalty == 1:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    """Return transformers' own warpers, in the order of its ``generate``."""
    warpers = LogitsProcessorList()
    if params.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(max(params.temperature, LEAST_TEMPERATURE)))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        warpers.append(TypicalLogitsWarper(params.typical_p))
    return warpers


def _draw(scores: Tensor, token_id: int, top: int) -> Draw:
    logprobs = scores.float().log_softmax(dim=-1)  # [V]
    values, ids = logprobs.topk(top)
    pairs = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Draw(token_id, float(logprobs[token_id]), pairs)
