"""The values that cross a border between layers. All are frozen.

``ChatMessage`` and ``SamplingParams`` come in with a request, ``GenerationRequest`` is what an
engine accepts, ``TextDelta`` and ``Usage`` are all that ever comes back.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from dbgpt_guanaco.errors import InvalidRequestError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]
StructureKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Structure:
    """A form that the whole answer must have. Whether it can be met is checked by the engine.

    Attributes:
        kind: ``json_object`` allows any JSON object and has no text.
        text: JSON of a schema, a regular expression, a JSON list of choices, or a grammar.
        parameter: Field of the request that it came in, for whoever is told that it is wrong.
    """

    kind: StructureKind
    text: str = ""
    parameter: str = "structure"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    Attributes:
        temperature: 0 picks the likeliest token; higher is more random.
        top_p: Smallest probability mass to sample from, in (0, 1].
        top_k: Sample among this many likeliest tokens; 0 means all.
        min_p: Drop tokens below this share of the likeliest one's probability, in [0, 1].
        typical_p: Mass of locally typical tokens to sample from, in (0, 1].
        repetition_penalty: Divides the score of each token seen in prompt or answer; 1 is off.
        presence_penalty: Subtracted once from the score of each token of the answer, in [-2, 2].
        frequency_penalty: Subtracted for each time a token stands in the answer, in [-2, 2].
        logit_bias: Added to the score of a token id, in [-100, 100].
        seed: Makes the draw repeatable, whatever runs beside it; None draws a fresh one.
        max_new_tokens: Upper bound on generated tokens; None is all the room there is.
        stop: Strings that end the answer; they are never part of it.
        stop_token_ids: Token ids that end the answer, beside the model's own.
        logprobs: Report the log-probability of each token.
        top_logprobs: With ``logprobs``, also of this many likeliest alternatives.
        structure: Form that the answer must have; None leaves it free.

    Raises:
        InvalidRequestError: A value is out of range.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    structure: Structure | None = None

    def __post_init__(self) -> None:
        # Each test asks for what is right: NaN fails every comparison.
        check = _Check(self)
        check("temperature", 0 <= self.temperature <= 100, "must be from 0 to 100")
        check("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1")
        check("top_k", 0 <= self.top_k <= MAX_SEED, "must be 0 (all) or more")
        check("min_p", 0 <= self.min_p <= 1, "must be from 0 to 1")
        check("typical_p", 0 < self.typical_p <= 1, "must be above 0 and at most 1")
        check(
            "repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "must be from 0.01 to 100"
        )
        check("presence_penalty", -2 <= self.presence_penalty <= 2, "must be from -2 to 2")
        check("frequency_penalty", -2 <= self.frequency_penalty <= 2, "must be from -2 to 2")
        check(
            "logit_bias",
            len(self.logit_bias) <= MAX_BIASES
            and all(-100 <= b <= 100 and t >= 0 for t, b in self.logit_bias.items()),
            f"must map at most {MAX_BIASES} token ids to numbers from -100 to 100",
        )
        check(
            "seed",
            self.seed is None or -MAX_SEED <= self.seed <= MAX_SEED,
            "must be a 64-bit integer",
        )
        check(
            "max_new_tokens",
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            "must be 1 or more",
        )
        check("stop", "" not in self.stop, "an empty stop string would end every answer")
        check(
            "stop",
            len(self.stop) <= MAX_STOP_STRINGS
            and all(len(s) <= MAX_STOP_CHARACTERS for s in self.stop),
            f"at most {MAX_STOP_STRINGS} strings of {MAX_STOP_CHARACTERS} characters",
        )
        check(
            "stop_token_ids",
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS
            and all(0 <= i < 2**31 for i in self.stop_token_ids),
            f"at most {MAX_STOP_TOKEN_IDS} token ids, each 0 or more",
        )
        check(
            "top_logprobs",
            0 <= self.top_logprobs <= MAX_TOP_LOGPROBS,
            f"must be from 0 to {MAX_TOP_LOGPROBS}",
        )
        check("top_logprobs", self.logprobs or self.top_logprobs == 0, "needs logprobs")


class _Check:
    """Raises with the name and the value of the field that is wrong."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def __call__(self, name: str, is_right: bool, rule: str) -> None:
        if not is_right:
            given = getattr(self._params, name)
            shown = f", got {given}" if isinstance(given, int | float) else ""
            raise InvalidRequestError(name, rule + shown)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What an engine is asked to continue.

    Attributes:
        prompt: Text ready for the tokenizer, or token ids taken as they are.
        sampling: How to choose tokens and when to stop.
        request_id: Names the request in logs and answers.
        add_special_tokens: Let the tokenizer add its bos; off where the prompt has it written.
        continues_prompt: The answer continues the prompt's text (completions); else it is a
            text of its own (chat) and the blank that some tokenizers write first is dropped.
        truncate_prompt_tokens: Keep only the newest tokens of a prompt: so many, or with 0 as
            many as leave room for the answer. None refuses a prompt that is too long.
        cache_salt: Only requests of the same salt share the keys and values of their prompts.
        lora: Name of the LoRA to be laid on the model; None is the model as it was loaded.
    """

    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    request_id: str = ""
    add_special_tokens: bool = True
    continues_prompt: bool = False
    truncate_prompt_tokens: int | None = None
    cache_salt: str = ""
    lora: str | None = None

    def __post_init__(self) -> None:
        if self.truncate_prompt_tokens is not None and not self.truncate_prompt_tokens >= 0:
            raise InvalidRequestError("truncate_prompt_tokens", "must be 0 or more")
        if not self.prompt:
            raise InvalidRequestError("prompt", "is empty")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log-probability under the model, before any warping.

    Attributes:
        token: Text of the token; a part of a character shows as U+FFFD.
        raw: Its exact bytes.
        characters: How many characters of the text it completed.
        top: The likeliest tokens of that step, best first, these without ``top``.
    """

    token_id: int
    token: str
    raw: bytes
    logprob: float
    characters: int = 0
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts of one generation.

    Attributes:
        completion_tokens: Every generated token, the one that ended the answer included.
        cached_tokens: Prompt tokens whose keys and values were there already.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text since the last delta; the last one carries ``finish_reason``.

    Attributes:
        text: May be empty in the last delta.
        usage: Counts so far.
        admitted_at_s: When its request got a slot, on the clock of ``time.monotonic``; None if it
            never had one.
        made_at_s: When it was made, on the same clock; it may be read later.
    """

    text: str
    usage: Usage
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    admitted_at_s: float | None = field(default=None, compare=False)
    made_at_s: float = field(default_factory=time.monotonic, compare=False)

    @property
    def is_last(self) -> bool:
        """Nothing follows."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients and the log are told of a loaded model.

    Attributes:
        name: Public name: the last component of LLM_MODEL.
        aliases: Further names that clients may use.
        family: Adapter that matched, or ``own template``.
        quantization: ``nf4``, ``int8`` or ``none``.
        context_tokens: Prompt and answer together.
        weight_bytes: Measured after loading.
        lora: Name of the LoRA laid on the base, if any.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    aliases: tuple[str, ...]
    family: str
    quantization: str
    compute_dtype: str
    device: str
    context_tokens: int
    weight_bytes: int
    lora: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that clients may use, the public one first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class EmbeddingCard:
    """What clients and the log are told of a loaded embedding model.

    Attributes:
        name: Public name: the last component of EMBEDDING_MODEL.
        dimension: Numbers of one vector.
        max_tokens: Longest text; what is longer is cut there.
        is_normalized: Every vector has length 1, so that the dot product is the cosine.
        created: When it was loaded, in seconds since 1970.
    """

    name: str
    dimension: int
    max_tokens: int
    is_normalized: bool
    device: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of some texts, in their order.

    Attributes:
        vectors: [N, dimension], 32-bit floats.
        prompt_tokens: Tokens read, over all texts, after each was cut to the longest.
    """

    vectors: tuple[Sequence[float], ...]
    prompt_tokens: int


DEPARTURE_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is right now, and what its cache of keys and values has saved.

    Attributes:
        kv_blocks: Blocks of the cache; 0 where an engine has none.
        kv_blocks_free: Of these, blocks that no request holds.
        prompt_tokens: Prompt tokens of all requests that ever ran.
        cached_tokens: Of these, tokens found in the cache.
        preemptions: Requests that lost their blocks to older ones and were computed again.
        device_bytes: Memory of the GPU that the engine's process has taken; 0 on a CPU.
        departures: Cancelled requests that had a slot, by the seconds until it was free again: up
            to each of ``DEPARTURE_BOUNDS_S``, and longer.
        departures_s: These seconds together.
    """

    running: int
    waiting: int
    slots: int
    queue_size: int
    kv_blocks: int = 0
    kv_blocks_free: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    device_bytes: int = 0
    departures: tuple[int, ...] = ()
    departures_s: float = 0.0
