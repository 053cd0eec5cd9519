"""The batching engine: one forward pass a step for everybody who is being answered.

Each step computes the next token of all sequences that decode and a piece of the prompts that
wait, so a new request joins between two tokens of the others and leaves again without them
noticing. ``scheduler.py`` says who, ``block_manager.py`` where, ``model_runner.py`` computes,
``batch_sampler.py`` draws; here they are put into a loop, with requests coming in and text
going out. What fails is contained: it ends the answers of that step and nothing else.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence as Many
from dataclasses import replace

import torch

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.engine.admission import Admission
from dbgpt_guanaco.engine.answer import Answer
from dbgpt_guanaco.engine.batch_sampler import Drawn
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.device import device_bytes
from dbgpt_guanaco.engine.generation import StreamingGeneration, post_all
from dbgpt_guanaco.engine.loras import LoraShelf
from dbgpt_guanaco.engine.machinery import Machinery
from dbgpt_guanaco.engine.prompt import PromptEncoder, embedding_rows
from dbgpt_guanaco.engine.readout import Readout, told
from dbgpt_guanaco.engine.sampling import check_token_ids
from dbgpt_guanaco.engine.scheduler import Step
from dbgpt_guanaco.engine.sequence import Sequence
from dbgpt_guanaco.engine.stopping import StopChecker
from dbgpt_guanaco.engine.structure import StructureCompiler
from dbgpt_guanaco.engine.watchdog import Watchdog
from dbgpt_guanaco.errors import (
    EngineStoppedError,
    GenerationFailedError,
    GuanacoError,
)
from dbgpt_guanaco.settings import EngineSettings, LifeSettings
from dbgpt_guanaco.types import (
    EngineLoad,
    GenerationRequest,
    ModelCard,
)

logger = logging.getLogger(__name__)

# How long the end of the engine's thread is waited for.
CLOSE_S = 30.0
# Failing steps in a row after which the engine no longer trusts its own memory.
MAX_FAILURES = 2
_UNBOUNDED = 2**62  # tokens of an admission: blocks are counted by the scheduler
FAILED = "the engine has failed; the server's log says why"
REBUILDING = "the engine failed and is being rebuilt; the server's log says why"


class BatchingEngine:
    """Answers many requests at once, in one thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        settings: EngineSettings,
        life: LifeSettings | None = None,
        *,
        reserved_bytes: int = 0,
    ) -> None:
        self._loaded = loaded
        context_tokens = loaded.card.context_tokens
        self._machinery = Machinery(
            loaded.model, settings, context_tokens, reserved_bytes=reserved_bytes
        )
        context_tokens = min(context_tokens, self._machinery.capacity_tokens)
        self.card: ModelCard = replace(loaded.card, context_tokens=context_tokens)
        self.template: PromptTemplate = loaded.template
        self.loras = LoraShelf(loaded, settings)
        self._vocabulary = Vocabulary(loaded.tokenizer)
        self._encoder = PromptEncoder(
            loaded.tokenizer, loaded.bos_token_id, context_tokens, embedding_rows(loaded.model)
        )
        self._structures = StructureCompiler(
            loaded.tokenizer, self._machinery.vocabulary_size, loaded.stop_token_ids
        )
        self._admission: Admission[StreamingGeneration] = Admission(
            settings.slots, settings.queue_size, _UNBOUNDED
        )
        self._readout = Readout(self._machinery, self._admission)
        self._pending: tuple[Step, Drawn] | None = None
        self._failures = 0
        self._prompt_tokens = 0
        self._problem: str | None = None
        self._failure: BaseException | None = None
        self._is_abandoned = False
        timeout_s = (life or LifeSettings()).step_timeout_s
        self._watchdog = Watchdog(timeout_s, self._on_stuck)
        self._is_warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guanaco-engine", daemon=True)
        self._thread.start()

    def wait_until_warm(self) -> None:
        """Wait for a first pass, whose result is compared with the model's own.

        Raises:
            GenerationFailedError: The model cannot compute, or not in this way.
        """
        self._is_warm.wait()
        if self._failure:
            raise GenerationFailedError(f"the first pass: {self._failure}") from self._failure

    @property
    def load(self) -> EngineLoad:
        """See ``Engine``."""
        blocks = self._machinery.blocks
        return replace(
            self._admission.load,
            kv_blocks=blocks.num_blocks,
            kv_blocks_free=blocks.num_free,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._machinery.scheduler.cached_tokens,
            preemptions=self._machinery.scheduler.preemptions,
            device_bytes=device_bytes(self._loaded.model.device),
        )

    @property
    def problem(self) -> str | None:
        """See ``Engine``."""
        closed = "the engine is closed" if self._admission.is_closed else None
        return self._problem or self._watchdog.problem or closed

    @property
    def is_alive(self) -> bool:
        """See ``Engine``."""
        return self._thread.is_alive() and self.problem is None

    @property
    def is_lost(self) -> bool:
        """See ``Engine``."""
        is_dead = not self._thread.is_alive() and self._problem is not None
        return is_dead or self._is_abandoned or self._watchdog.is_lost

    async def submit(self, request: GenerationRequest) -> StreamingGeneration:
        """See ``Engine``."""
        check_token_ids(request.sampling, self._machinery.vocabulary_size)
        if problem := self._problem or self._watchdog.problem:
            raise EngineStoppedError(problem)
        served = self.loras.get(request.lora) if request.lora else self._loaded
        self._admission.check()
        input_ids, max_new_tokens = await asyncio.to_thread(self._encoder.fit, request)
        matcher = await self._structures.follow(request.sampling)
        generation = StreamingGeneration(
            request,
            input_ids,
            max_new_tokens,
            self._admission.give_up,
            self._vocabulary.decode,
            matcher,
            stop_token_ids=served.stop_token_ids,
            lora=served.lora,
        )
        self._admission.enter(generation)
        return generation

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> Many[int]:
        """See ``Engine``."""
        return await asyncio.to_thread(self._encoder.encode, text, add_special_tokens)

    async def detokenize(self, token_ids: Many[int]) -> str:
        """See ``Engine``."""
        self._encoder.check_ids(token_ids)
        return await asyncio.to_thread(self._encoder.decode, token_ids)

    async def embed(self, text: str) -> Many[float]:
        """See ``Engine``."""
        token_ids = await self.tokenize(text, add_special_tokens=True)
        return await asyncio.to_thread(self._machinery.mean_embedding, token_ids)

    def close(self) -> None:
        """End every request and the thread; returns when both are gone, or the thread is stuck."""
        ended = [*self._admission.dismiss(), *self._admission.close()]
        post_all((generation, EngineStoppedError()) for generation in ended)
        self._thread.join(CLOSE_S)
        self._is_abandoned = self._thread.is_alive()
        if self._is_abandoned:
            logger.error("the engine's thread is stuck, and left behind")
            return
        self._structures.close()
        self._machinery.close()

    def _run(self) -> None:
        """Take steps until the engine is closed. The engine's thread lives here."""
        torch.set_grad_enabled(False)
        try:
            self._machinery.warm_up()
            self._is_warm.set()
            while not self._admission.is_closed:
                self._admit()
                self._watchdog.begin()
                self._step()
                while self._watchdog.end():
                    self._watchdog.begin()  # a device that hangs may hang again
                    self._recover()
        except BaseException as error:  # the thread ends here: whoever waits must hear of it
            self._failure = error
            self._problem = FAILED  # strangers read this, and not what a library says
            logger.exception("the engine's thread died")
        finally:
            waiting = self._admission.close()  # first: whoever waits for it to be warm looks here
            self._is_warm.set()
            stopped = EngineStoppedError(*([self._problem] if self._problem else []))
            post_all((generation, stopped) for generation in waiting)
            self._readout.end_all(self._machinery.scheduler.sequences, stopped)
            self._watchdog.close()

    def _admit(self) -> None:
        scheduler = self._machinery.scheduler
        while generation := self._admission.next(wait=scheduler.is_idle, fits=self._fits):
            try:
                self._watchdog.begin()  # it waits for the device, too
                scheduler.add(self._sequence(generation))
            except Exception as error:
                self._watchdog.end()
                logger.exception("request %s cannot be begun", generation.request.request_id)
                self._admission.leave(generation)
                generation.post(told(error))

    def _sequence(self, generation: StreamingGeneration) -> Sequence:
        answer = Answer(
            self._vocabulary,
            self._vocabulary.detokenizer(continues_text=generation.request.continues_prompt),
            StopChecker(generation.request.sampling.stop),
            generation.stop_token_ids,
            len(generation.input_ids),
        )
        row = self._machinery.sampler.open(
            generation.request.sampling, generation.input_ids, generation.matcher
        )
        self._prompt_tokens += len(generation.input_ids)
        return Sequence(generation, answer, row)

    def _fits(self, generation: StreamingGeneration) -> bool:
        return self._machinery.scheduler.can_seat(generation.input_ids, generation.cache_salt)

    def _step(self) -> None:
        """Start the next step, then read what the one before has drawn.

        On a CPU a step is done when it has been started, so its own tokens are read. The same
        holds where the next mask of a structure depends on the token.
        """
        step: Step | None = None
        try:
            self._readout.leave_cancelled()
            if self._must_know_tokens():
                self._read_pending()
            step = self._machinery.scheduler.schedule()
            drawn = self._machinery.run(step) if step else None
            self._read_pending()
            self._pending = (step, drawn) if drawn else None
            if not self._machinery.overlaps:
                self._read_pending()
            self._failures = 0 if step else self._failures
        except Exception as error:
            self._contain(error, step)

    def _must_know_tokens(self) -> bool:
        return any(s.row.matcher for s in self._machinery.scheduler.sequences)

    def _read_pending(self) -> None:
        """Hand out the text of the tokens that the step before has drawn."""
        if not self._pending:
            return
        step, drawn = self._pending
        token_ids = drawn.token_ids()  # if this fails, the step has, and is still there to be ended
        self._pending = None
        failure = self._readout.read(step, drawn, token_ids)
        if failure and not self._machinery.is_sound():
            raise failure

    def _contain(self, error: Exception, step: Step | None) -> None:
        """End the answers that a failed step belonged to, and see whether the rest is sound."""
        logger.exception("a step failed")
        self._failures += 1
        if self._failures >= MAX_FAILURES:  # before anybody hears of it and comes again
            self._problem = REBUILDING
        steps = [s for s in (step, self._pending[0] if self._pending else None) if s]
        self._pending = None
        reason = told(error)
        for failed in steps:
            self._machinery.scheduler.discard(failed)
            self._readout.end_all(failed.sequences, reason)
        if not steps:  # the scheduler itself failed: nobody knows where anybody stands
            self._readout.end_all(self._machinery.scheduler.sequences, reason)
        if self._failures < MAX_FAILURES and self._machinery.is_sound():
            return
        self._rebuild(reason)

    def _on_stuck(self, problem: str) -> None:
        """Tell everybody. The engine's thread cannot; it clears up if the step returns."""
        logger.error("%s; all answers end", problem)
        stopped = EngineStoppedError(problem)
        post_all((generation, stopped) for generation in self._admission.dismiss())

    def _recover(self) -> None:
        logger.warning("the step that was stuck has returned")
        self._pending = None
        self._rebuild(EngineStoppedError(REBUILDING))

    def _rebuild(self, reason: GuanacoError) -> None:
        """Start with an empty cache. Nobody is let in meanwhile; if it fails, the engine ends."""
        self._problem = REBUILDING
        logger.error(self._problem)
        self._readout.end_all(self._machinery.scheduler.sequences, reason)
        # Not what was told: a reader may be suspended in the frames that it has by now.
        self._machinery.rebuild(reason.__cause__)
        self._machinery.warm_up()
        self._failures, self._problem, self._prompt_tokens = 0, None, 0
        logger.warning("the engine has been rebuilt and takes requests again")
