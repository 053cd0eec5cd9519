"""The streaming engine: ``model.generate`` for each request, all in one thread, in turn.

Every request runs its own ``generate`` as a greenlet of the engine's thread. Before each
forward pass it hands over to the next one, so all of them advance at the pace of the device,
none waits for another's last token, and no two passes ever run at once. A cancelled request
ends at that same place, in the middle of a long prompt too, which is computed in chunks.

This engine is the reference: any causal LM that transformers can generate with works here.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from greenlet import getcurrent, greenlet
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.engine.admission import Admission
from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.device import device_bytes
from dbgpt_guanaco.engine.generation import StreamingGeneration
from dbgpt_guanaco.engine.lora_layers import ALL, LoraLayers
from dbgpt_guanaco.engine.loras import LoraShelf
from dbgpt_guanaco.engine.prompt import PromptEncoder, embedding_rows
from dbgpt_guanaco.engine.sampling import Sampler, check_token_ids
from dbgpt_guanaco.engine.stopping import StopChecker
from dbgpt_guanaco.engine.streamer import AnswerStreamer, GenerationEndedError, StopOnTokens
from dbgpt_guanaco.engine.structure import StructureCompiler
from dbgpt_guanaco.engine.watchdog import Watchdog
from dbgpt_guanaco.errors import (
    EngineStoppedError,
    GenerationFailedError,
    GuanacoError,
    InvalidRequestError,
    OutOfMemoryError,
)
from dbgpt_guanaco.settings import EngineSettings, LifeSettings
from dbgpt_guanaco.types import (
    EngineLoad,
    GenerationRequest,
    ModelCard,
    TextDelta,
)

logger = logging.getLogger(__name__)

# How long the end of the engine's thread is waited for.
CLOSE_S = 30.0
# Prompt tokens of one forward pass. A cancel waits for one pass at most.
PREFILL_CHUNK = {"cpu": 64, "cuda": 512}


class _Turn(greenlet):
    """A ``generate`` that can be left before each forward pass and taken up again."""

    def __init__(self, generation: StreamingGeneration, run: Callable[[], None]) -> None:
        super().__init__(run)
        self.generation = generation


class StreamingEngine:
    """Answers requests with ``model.generate``, one thread for all of them."""

    def __init__(
        self, loaded: LoadedModel, settings: EngineSettings, life: LifeSettings | None = None
    ) -> None:
        self.card: ModelCard = loaded.card
        self.template: PromptTemplate = loaded.template
        self._loaded = loaded
        self._vocabulary = Vocabulary(loaded.tokenizer)
        self._encoder = PromptEncoder(
            loaded.tokenizer,
            loaded.bos_token_id,
            loaded.card.context_tokens,
            embedding_rows(loaded.model),
        )
        self._device: torch.device = loaded.model.device
        self._prefill_chunk = settings.prefill_chunk_tokens or PREFILL_CHUNK[self._device.type]
        self._vocabulary_size = int(loaded.model.get_output_embeddings().weight.shape[0])
        self._structures = StructureCompiler(
            loaded.tokenizer, self._vocabulary_size, loaded.stop_token_ids
        )
        self._admission: Admission[StreamingGeneration] = Admission(
            settings.slots, settings.queue_size, loaded.kv_tokens
        )
        self.loras, self._lora_layers = LoraShelf(loaded, settings), LoraLayers(loaded.model)
        self._hook = loaded.model.register_forward_pre_hook(self._hand_over)
        self._is_abandoned = False
        timeout_s = (life or LifeSettings()).step_timeout_s
        self._watchdog = Watchdog(timeout_s, self._on_stuck)
        self._is_warm = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="guanaco-engine", daemon=True)
        self._thread.start()

    def wait_until_warm(self) -> None:
        """Wait for a first short pass, which lays out weights and compiles kernels.

        Raises:
            GenerationFailedError: The model cannot compute.
        """
        self._is_warm.wait()
        if self._failure:
            raise GenerationFailedError(f"the first pass: {self._failure}") from self._failure

    @property
    def load(self) -> EngineLoad:
        """See ``Engine``."""
        return replace(self._admission.load, device_bytes=device_bytes(self._device))

    @property
    def problem(self) -> str | None:
        """See ``Engine``."""
        return None if self.is_alive else str(self._stopped())

    @property
    def is_alive(self) -> bool:
        """The engine's thread runs and takes requests."""
        is_well = self._watchdog.problem is None and not self._admission.is_closed
        return is_well and self._thread.is_alive()

    @property
    def is_lost(self) -> bool:
        """See ``Engine``."""
        is_dead = not self._thread.is_alive() and self._failure is not None
        return is_dead or self._is_abandoned or self._watchdog.is_lost

    async def submit(self, request: GenerationRequest) -> StreamingGeneration:
        """See ``Engine``."""
        check_token_ids(request.sampling, self._vocabulary_size)
        if self._failure or self._watchdog.problem:
            raise self._stopped()
        served = self.loras.get(request.lora) if request.lora else self._loaded
        self._admission.check()
        input_ids, max_new_tokens = await asyncio.to_thread(self._encoder.fit, request)
        generation = StreamingGeneration(
            request,
            input_ids,
            max_new_tokens,
            self._admission.give_up,
            self._vocabulary.decode,
            await self._structures.follow(request.sampling),
            stop_token_ids=served.stop_token_ids,
            lora=served.lora,
        )
        self._admission.enter(generation)
        return generation

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """See ``Engine``."""
        return await asyncio.to_thread(self._encoder.encode, text, add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See ``Engine``."""
        self._encoder.check_ids(token_ids)
        return await asyncio.to_thread(self._encoder.decode, token_ids)

    async def embed(self, text: str) -> Sequence[float]:
        """See ``Engine``."""
        token_ids = await self.tokenize(text, add_special_tokens=True)
        return await asyncio.to_thread(self._mean_embedding, token_ids)

    def close(self) -> None:
        """End every request and the thread; returns when both are gone, or the thread is stuck."""
        for generation in [*self._admission.dismiss(), *self._admission.close()]:
            generation.post(self._stopped())
        self._thread.join(CLOSE_S)
        self._is_abandoned = self._thread.is_alive()
        if self._is_abandoned:
            logger.error("the engine's thread is stuck, and left behind")
            return
        self._structures.close()
        self._hook.remove()
        self._lora_layers.remove()

    def _mean_embedding(self, token_ids: Sequence[int]) -> list[float]:
        with torch.no_grad():
            ids = torch.tensor([token_ids], dtype=torch.long, device=self._device)
            rows = self._loaded.model.get_input_embeddings()(ids)  # [1, T, hidden]
            return [float(x) for x in rows[0].float().mean(dim=0)]

    def _run(self) -> None:
        """Take turns until the engine is closed. The engine's thread lives here."""
        torch.set_grad_enabled(False)
        turns: deque[_Turn] = deque()
        try:
            self._warm_up()
            self._is_warm.set()
            while not self._admission.is_closed:
                self._admit(turns)
                self._watchdog.begin()
                self._step(turns)
                if self._watchdog.end():
                    self._recover(turns)
        except BaseException as error:  # the thread ends here: whoever waits must hear of it
            self._failure = error
            logger.exception("the engine's thread died")
        finally:
            waiting = self._admission.close()  # first: whoever waits for it to be warm looks here
            self._is_warm.set()
            for generation in [*waiting, *(t.generation for t in turns)]:
                self._admission.leave(generation)
                generation.post(self._stopped())
            self._watchdog.close()

    def _stopped(self) -> EngineStoppedError:
        if self._failure:
            return EngineStoppedError("the engine has failed; the server's log says why")
        return EngineStoppedError(*filter(None, [self._watchdog.problem]))

    def _on_stuck(self, problem: str) -> None:
        """Tell everybody. The engine's thread cannot; they leave if the step returns."""
        logger.error("%s; all answers end", problem)
        for generation in self._admission.dismiss():
            generation.post(EngineStoppedError(problem))

    def _recover(self, turns: Iterable[_Turn]) -> None:
        logger.warning("the step that was stuck has returned")
        for turn in turns:
            turn.generation.is_cancelled = True

    def _warm_up(self) -> None:
        ids = torch.zeros((1, 2), dtype=torch.long, device=self._device)
        config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
        self._loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )

    def _admit(self, turns: deque[_Turn]) -> None:
        while generation := self._admission.next(wait=not turns):
            turns.append(_Turn(generation, partial(self._answer, generation)))

    def _step(self, turns: deque[_Turn]) -> None:
        """Give one request a forward pass, the cancelled ones first: they only leave."""
        if not turns:
            return
        turn = next((t for t in turns if t.generation.is_cancelled), turns[0])
        turn.switch()
        turns.remove(turn)  # only now: if the switch raises, whoever cleans up must find it
        if not turn.dead:
            turns.append(turn)

    def _answer(self, generation: StreamingGeneration) -> None:
        """Run one request from its first token to its last delta, or its error."""
        outcome: TextDelta | GuanacoError
        try:
            outcome = self._last_delta(generation)
        except torch.OutOfMemoryError as cause:
            outcome = OutOfMemoryError("the device has no memory left for this request")
            outcome.__cause__ = cause
            logger.exception("request %s: out of memory", generation.request.request_id)
        except InvalidRequestError as error:  # a structure that leads nowhere
            outcome = error
        except Exception as cause:
            outcome = GenerationFailedError("the model failed on this request; the log says why")
            outcome.__cause__ = cause
            logger.exception("request %s failed", generation.request.request_id)
        # The place is free before the client hears the end, so that it can ask again at once.
        self._admission.leave(generation)
        generation.post(outcome)
        if isinstance(outcome, OutOfMemoryError):
            torch.cuda.empty_cache()

    def _last_delta(self, generation: StreamingGeneration) -> TextDelta:
        """Run ``generate``, which posts deltas, and return the one that remains."""
        sampling, matcher = generation.request.sampling, generation.matcher
        sampler = Sampler(sampling, self._vocabulary_size, self._device, matcher)
        answer = Answer(
            self._vocabulary,
            self._vocabulary.detokenizer(continues_text=generation.request.continues_prompt),
            StopChecker(sampling.stop),
            generation.stop_token_ids,
            len(generation.input_ids),
        )
        streamer = AnswerStreamer(
            tokenizer=self._loaded.tokenizer,
            answer=answer,
            draws=sampler.draws,
            post=generation.post,
            matcher=matcher,
        )
        with contextlib.suppress(GenerationEndedError):
            self._generate(generation, sampler, streamer)
        if generation.is_cancelled:
            return answer.cancel()
        return answer.finish(is_complete=bool(matcher and matcher.is_over))

    def _generate(
        self,
        generation: StreamingGeneration,
        sampler: Sampler,
        streamer: AnswerStreamer,
    ) -> None:
        chunk = self._prefill_chunk
        input_ids = torch.tensor([generation.input_ids], dtype=torch.long, device=self._device)
        self._loaded.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=GenerationConfig(
                max_new_tokens=generation.max_new_tokens,
                do_sample=False,  # the sampler has drawn
                pad_token_id=0,  # a batch of one is never padded; stops the warning
                prefill_chunk_size=chunk if input_ids.shape[1] > chunk else None,
            ),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList(
                [StopOnTokens(sorted(generation.stop_token_ids), self._device)]
            ),
            streamer=streamer,
        )

    def _hand_over(self, *_: object) -> None:
        """Let the others go first, then go on. Runs before every forward pass of the model.

        Raises:
            GenerationEndedError: The request was cancelled meanwhile.
        """
        turn = getcurrent()
        if isinstance(turn, _Turn):
            assert turn.parent  # the engine's loop, which runs the turns
            turn.parent.switch()
            if turn.generation.is_cancelled:
                raise GenerationEndedError
            lora = turn.generation.lora
            self._lora_layers.apply({lora: ALL} if lora else {})
