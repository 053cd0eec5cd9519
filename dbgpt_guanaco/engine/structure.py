"""What keeps an answer in a form: which tokens may follow, told as bits.

A request's structure is compiled once, off the event loop. Each of its answers is followed by a
matcher of its own, which tells before each draw what may come, and afterwards takes what came.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.structure_grammar import grammar_of, parse, refusal, shortened
from dbgpt_guanaco.engine.structure_trial import try_out
from dbgpt_guanaco.errors import EngineBusyError, EngineStoppedError
from dbgpt_guanaco.types import SamplingParams, Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_COMPILED = 32
# New structures that may wait for their turn to be compiled.
MAX_WAITING = 16
# Any tokenizer spells this exactly if its tokens stand for bytes.
SAMPLE = 'A text: {"a": [1, -2.5e3]}\n'


class StructureMatcher(Protocol):
    """Follows one answer through its structure. Belongs to one thread at a time."""

    @property
    def is_over(self) -> bool:
        """Nothing but a stop token may follow."""
        ...

    def fill(self, bitmask: Tensor) -> None:
        """Write which tokens may come next: int32 [ceil(V / 32)], one bit each, lowest first.

        Raises:
            InvalidRequestError: None may, or it takes too much to say which.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn. What is wrong with it is told by the next ``fill``."""
        ...


def allowed(bitmask: Tensor, vocabulary_size: int) -> Tensor:
    """Return bits [B, ceil(V / 32)], int32, as booleans [B, V]."""
    places = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    bits = (bitmask[:, :, None] >> places) & 1  # [B, ceil(V / 32), 32]
    return bits.flatten(1)[:, :vocabulary_size].bool()


class StructureCompiler:
    """Makes matchers of structures, for one model. May be called from any thread.

    Args:
        tokenizer: A fast transformers tokenizer.
        vocabulary_size: V, the width of the logits.
        stop_token_ids: The model's own; they may come where a structure is complete.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - transformers types it in part
        vocabulary_size: int,
        stop_token_ids: frozenset[int],
    ) -> None:
        self._tokenizer, self._size = tokenizer, vocabulary_size
        self._stop_token_ids = stop_token_ids
        self._lock = threading.Lock()  # of the table and the count
        self._tokens: _Tokens | None = None
        self._compiled: OrderedDict[Structure, CompiledStructure] = OrderedDict()
        # A thread of its own: however slow a structure is, only other new ones wait for it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guanaco-structure")
        self._waiting, self._is_closed = 0, False

    async def follow(self, sampling: SamplingParams) -> StructureMatcher | None:
        """Return what follows one answer, None where it is free. Does not block the event loop.

        Raises:
            InvalidRequestError: The structure is wrong, too large, or cannot be met by this
                vocabulary.
            EngineBusyError: Too many new structures wait to be compiled.
            EngineStoppedError: The engine was closed meanwhile.
        """
        structure = sampling.structure
        if structure is None:
            return None
        compiled = self._known(structure) or await self._compile_in_turn(structure)
        return await asyncio.to_thread(compiled.matcher, frozenset(sampling.stop_token_ids))

    def close(self) -> None:
        """Compile nothing any more."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def compile(self, structure: Structure) -> "CompiledStructure":
        """Return what follows answers in this structure. Blocks for up to some seconds.

        Raises:
            InvalidRequestError: It is wrong, too large, or cannot be met by this vocabulary.
        """
        compiled = self._known(structure) or self._compile(structure)
        with self._lock:
            self._compiled[structure] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _known(self, structure: Structure) -> "CompiledStructure | None":
        with self._lock:
            compiled = self._compiled.get(structure)
            if compiled:
                self._compiled.move_to_end(structure)
            return compiled

    async def _compile_in_turn(self, structure: Structure) -> "CompiledStructure":
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise EngineBusyError(1, self._waiting - 1)
            self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self.compile, structure)
        except (asyncio.CancelledError, RuntimeError):
            task = asyncio.current_task()
            if self._is_closed and not (task and task.cancelling()):
                raise EngineStoppedError from None
            raise
        finally:
            with self._lock:
                self._waiting -= 1

    def _compile(self, structure: Structure) -> "CompiledStructure":
        if self._tokens is None:
            self._tokens = _Tokens(self._tokenizer, self._size)
        if not self._tokens.are_spelled_exactly:
            raise refusal(structure, "this model's tokenizer does not say which bytes a token is")
        try:
            grammar = grammar_of(structure)
            try_out(grammar)
            start = parse(self._tokens.tokenizer, grammar)
        except ValueError as error:
            raise refusal(structure, str(error)) from None
        return CompiledStructure(structure, start, self._tokens, self._stop_token_ids)


class CompiledStructure:
    """A structure that answers can be held to."""

    def __init__(
        self,
        structure: Structure,
        start: "LLMatcher",
        tokens: "_Tokens",
        stop_token_ids: frozenset[int],
    ) -> None:
        self._structure, self._start, self._tokens = structure, start, tokens
        self._stop_token_ids = stop_token_ids

    def matcher(self, stop_token_ids: frozenset[int]) -> StructureMatcher:
        """Return what follows one answer.

        Args:
            stop_token_ids: The request's own. Like the model's they may come where the
                structure is complete, and nowhere else.
        """
        stops = self._stop_token_ids | stop_token_ids
        return _Matcher(self._structure, self._start.deep_copy(), self._tokens, stops)


class _Matcher:
    def __init__(
        self,
        structure: Structure,
        matcher: "LLMatcher",
        tokens: "_Tokens",
        stop_token_ids: frozenset[int],
    ) -> None:
        self._structure, self._matcher = structure, matcher
        self._stop_token_ids, self._is_stopped = stop_token_ids, False
        self._stops = tokens.bits(stop_token_ids)  # [ceil(V / 32)]
        self._others = tokens.with_text & ~self._stops  # [ceil(V / 32)]
        # The library counts one token more than there are: its own end of the answer.
        self._all = torch.empty(tokens.size // 32 + 1, dtype=torch.int32)
        self._count = 0

    @property
    def is_over(self) -> bool:
        return self._is_stopped or (self._matcher.is_stopped() and not self._matcher.is_error())

    def fill(self, bitmask: Tensor) -> None:
        if self.is_over:
            bitmask.copy_(self._stops)
            return
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._all.data_ptr(), self._all.nbytes)
        if self._matcher.is_error():
            raise self._failure()
        torch.bitwise_and(self._all[: len(bitmask)], self._others, out=bitmask)
        if self._matcher.is_accepting():
            bitmask |= self._stops
        if not bitmask.any():
            raise self._failure()

    def accept(self, token_id: int) -> None:
        self._count += 1
        if token_id in self._stop_token_ids:
            self._is_stopped = True
        else:
            self._matcher.consume_token(token_id)

    def _failure(self) -> Exception:
        reason = self._matcher.stop_reason()
        place = f"after {self._count} tokens of the answer"
        if reason in ("ParserTooComplex", "LexerTooComplex"):
            return refusal(self._structure, f"takes too much to follow, {place}; make it simpler")
        if reason in ("NotStopped", "NoExtension", "NoExtensionBias"):
            return refusal(self._structure, f"no token of this model can follow {place}")
        return RuntimeError(f"llguidance, {place}: {shortened(self._matcher.get_error())}")


class _Tokens:
    """The bytes of each token, as llguidance takes them. Made once for each model.

    Attributes:
        size: V, the width of the logits.
        with_text: Bits of the tokens that are text, so no special ones and none past the
            tokenizer's end.
        are_spelled_exactly: The bytes are what an answer will show.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:  # noqa: ANN401
        self.size = size
        spelled = _spelled(tokenizer, size)
        self.with_text = self.bits(i for i, raw in enumerate(spelled) if raw)
        ids = tokenizer.backend_tokenizer.encode(SAMPLE, add_special_tokens=False).ids
        text = b"".join(spelled[i] for i in ids if i < size)
        self.are_spelled_exactly = text.removeprefix(b" ") == SAMPLE.encode()
        self.tokenizer = _ll_tokenizer(spelled)

    def bits(self, token_ids: Iterable[int]) -> Tensor:
        """Return int32 [ceil(V / 32)] with the bits of these tokens set."""
        places = torch.zeros(-(-self.size // 32) * 32, dtype=torch.int64)
        places[[i for i in token_ids if i < self.size]] = 1
        words = (places.view(-1, 32) << torch.arange(32)).sum(dim=1)
        return words.to(torch.int32)  # keeps the low 32 bits


def _spelled(tokenizer: Any, size: int) -> list[bytes]:  # noqa: ANN401
    """Return the bytes of each of V tokens; none where a token is no text."""
    vocabulary = Vocabulary(tokenizer)
    special = set(tokenizer.all_special_ids)
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    known = range(min(size, len(tokenizer)))
    spelled = [b"" if i in special else vocabulary.token_bytes(i) for i in known]
    return spelled + [b""] * (size - len(spelled))


def _ll_tokenizer(spelled: Sequence[bytes]) -> "LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Spelling(spelled)))


class _Spelling:
    """What llguidance asks of a tokenizer: what it calls eos is an id that no model has."""

    eos_token_id = None
    bos_token_id = None

    def __init__(self, spelled: Sequence[bytes]) -> None:
        self.tokens = spelled
        self.special_token_ids = [i for i, raw in enumerate(spelled) if not raw]

    def __call__(self, text: object) -> list[int]:
        # It is for certain text only, which is left to the model; see DRIVER.
        raise NotImplementedError
