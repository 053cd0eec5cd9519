"""What every engine must do. The streaming engine is the reference for those that follow."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from faults.stage import own_threads
from tiny import CONTEXT_TOKENS, tiny_loaded

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.detokenizer import Vocabulary
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationFailedError,
    GuanacoError,
    InvalidRequestError,
    OutOfMemoryError,
    PromptTooLongError,
)
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams, TextDelta

ENGINES = [StreamingEngine, BatchingEngine]
# A place must be free again within this time, as the project promises.
FREE_WITHIN_S = 0.25

MakeEngine = Callable[..., Any]


@pytest.fixture(scope="module")
def loaded(llama_tokenizer: Any) -> LoadedModel:
    return tiny_loaded(llama_tokenizer)


@pytest.fixture(scope="module")
def served(llama_tokenizer: Any) -> LoadedModel:
    """The same weights once more: an engine may change how its model attends."""
    return tiny_loaded(llama_tokenizer)


@pytest.fixture(params=ENGINES)
def make_engine(request: pytest.FixtureRequest, served: LoadedModel) -> Iterator[MakeEngine]:
    made = []

    def make(loaded: LoadedModel = served, slots: int = 4, queue_size: int = 32) -> Any:
        settings = EngineSettings(slots=slots, queue_size=queue_size, prefill_chunk_tokens=16)
        made.append(request.param(loaded, settings))
        made[-1].wait_until_warm()
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> Any:
    return make_engine()


def ask(prompt: str | tuple[int, ...] = (1, 50, 60, 70), **sampling: Any) -> GenerationRequest:
    values = {"temperature": 0.0, "max_new_tokens": 12} | sampling
    return GenerationRequest(prompt, SamplingParams(**values), request_id="test")


async def read(generation: Any) -> list[TextDelta]:
    return [delta async for delta in generation]


async def answer(engine: Any, request: GenerationRequest) -> list[TextDelta]:
    return await asyncio.wait_for(read(await engine.submit(request)), timeout=30)


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def reference(loaded: LoadedModel, ids: tuple[int, ...], count: int, **options: Any) -> list[int]:
    """What transformers' own generate gives."""
    output = loaded.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        **options,
    )
    return [int(i) for i in output[0, len(ids) :]]


vocabulary_of = lru_cache(Vocabulary)


def decoded(loaded: LoadedModel, ids: list[int]) -> str:
    return vocabulary_of(loaded.tokenizer).decode(ids)  # proved in test_detokenizer.py


async def free(engine: Any) -> float:
    """Wait until nothing runs or waits; return how long that took, in seconds."""
    start = time.monotonic()
    while engine.load.running or engine.load.waiting:
        assert time.monotonic() - start < 10
        await asyncio.sleep(0.002)
    return time.monotonic() - start


PROMPTS = [(1, 50, 60, 70), (1, 300), tuple(range(3, 120)), (1, *range(200, 250))]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_greedy_is_what_transformers_gives(
    engine: Any, loaded: LoadedModel, prompt: tuple[int, ...]
) -> None:
    deltas = await answer(engine, ask(prompt, max_new_tokens=40))

    expected = reference(loaded, prompt, 40)
    assert text_of(deltas) == decoded(loaded, expected)
    assert deltas[-1].usage.prompt_tokens == len(prompt)
    assert deltas[-1].usage.completion_tokens == len(expected)


async def test_neighbours_change_nothing(engine: Any) -> None:
    alone = [text_of(await answer(engine, ask(p, max_new_tokens=30))) for p in PROMPTS]

    together = await asyncio.gather(
        *(answer(engine, ask(p, max_new_tokens=30)) for p in PROMPTS * 4)
    )

    assert [text_of(deltas) for deltas in together] == alone * 4


async def test_a_seed_gives_the_same_text_in_any_company(engine: Any) -> None:
    seeded = ask(temperature=1.0, seed=7, max_new_tokens=30)
    alone = text_of(await answer(engine, seeded))
    others = [ask(temperature=1.0, seed=s, max_new_tokens=30) for s in range(100, 110)]

    crowd = await asyncio.gather(*(answer(engine, r) for r in [*others, seeded, *others]))

    assert text_of(crowd[10]) == alone
    assert len({text_of(deltas) for deltas in crowd}) > 5


async def test_without_a_seed_answers_differ(engine: Any) -> None:
    texts = {text_of(await answer(engine, ask(temperature=1.5))) for _ in range(5)}

    assert len(texts) > 1


async def test_the_context_bounds_the_answer(engine: Any) -> None:
    prompt = (1, *[50] * (CONTEXT_TOKENS - 6))
    request = GenerationRequest(prompt, SamplingParams(temperature=0, logit_bias={2: -100}))

    deltas = await answer(engine, request)

    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].usage.completion_tokens == 5


async def test_a_prompt_without_room_for_an_answer_is_refused(engine: Any) -> None:
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT_TOKENS} tokens do not fit"):
        await engine.submit(ask((1,) * CONTEXT_TOKENS))
    assert engine.load.waiting == 0


@pytest.mark.parametrize(("keep", "expected"), [(0, 244), (10, 10), (10_000, 255)])
async def test_a_truncated_prompt_keeps_its_newest_tokens(
    engine: Any, loaded: LoadedModel, keep: int, expected: int
) -> None:
    ids = (1, *range(3, 400))
    request = GenerationRequest(
        ids, SamplingParams(temperature=0, max_new_tokens=12), truncate_prompt_tokens=keep
    )

    generation = await engine.submit(request)

    # The bos stays in front, since the model has never read a text without it.
    assert list(generation.input_ids) == [1, *ids[len(ids) - expected + 1 :]]
    assert (await read(generation))[-1].usage.prompt_tokens == expected


async def test_text_far_longer_than_the_context_is_not_tokenized(engine: Any) -> None:
    with pytest.raises(InvalidRequestError, match="characters are more than"):
        await engine.submit(ask("a" * 64 * CONTEXT_TOKENS + "a"))


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (ask((1, 10**7)), "prompt"),
        (ask((1, -4)), "prompt"),
        (ask("ab\ud800"), "prompt"),
        (ask(logit_bias={10**7: 1.0}), "logit_bias"),
        (ask(stop_token_ids=(10**7,)), "stop_token_ids"),
    ],
)
async def test_what_does_not_fit_the_model_is_refused(
    engine: Any, request_: GenerationRequest, named: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await engine.submit(request_)
    assert raised.value.parameter == named
    assert await free(engine) < FREE_WITHIN_S


async def test_a_stop_string_ends_the_answer_before_itself(engine: Any) -> None:
    whole = text_of(await answer(engine, ask(max_new_tokens=40)))
    stop = whole[len(whole) // 2 :][:3]

    deltas = await answer(engine, ask(max_new_tokens=40, stop=(stop,)))

    assert text_of(deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage.completion_tokens <= 40


async def test_a_stop_token_ends_the_answer_and_is_no_text(
    engine: Any, loaded: LoadedModel
) -> None:
    ids = reference(loaded, (1, 50, 60, 70), 12)
    stop = next(i for n, i in enumerate(ids) if n >= 4 and i not in ids[:n])

    deltas = await answer(engine, ask(stop_token_ids=(stop,)))

    assert text_of(deltas) == decoded(loaded, ids[: ids.index(stop)])
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage.completion_tokens == ids.index(stop) + 1


async def test_stop_beats_length(engine: Any) -> None:
    whole = text_of(await answer(engine, ask(max_new_tokens=12)))

    deltas = await answer(engine, ask(max_new_tokens=12, stop=(whole[-2:],)))

    assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize("penalty", [0.6, 1.7])
async def test_repetition_penalty_is_transformers_own(
    engine: Any, loaded: LoadedModel, penalty: float
) -> None:
    deltas = await answer(engine, ask(max_new_tokens=30, repetition_penalty=penalty))

    expected = reference(loaded, (1, 50, 60, 70), 30, repetition_penalty=penalty)
    assert text_of(deltas) == decoded(loaded, expected)


async def test_logprobs_are_the_models_own(engine: Any, loaded: LoadedModel) -> None:
    request = ask(logprobs=True, top_logprobs=3, repetition_penalty=1.5, temperature=0.3, seed=1)
    told = [lp for delta in await answer(engine, request) for lp in delta.logprobs]

    ids = [1, 50, 60, 70]
    for token in told:
        expected = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.token_id]), abs=1e-3)
        best = [t.token_id for t in token.top]
        assert best == expected.topk(3).indices.tolist()
        assert token.top[0].logprob >= token.top[1].logprob >= token.top[2].logprob
        ids.append(token.token_id)
    assert len(told) == 12


async def test_logprobs_never_tell_a_stop_string(engine: Any) -> None:
    whole = text_of(await answer(engine, ask(max_new_tokens=40)))
    for start in range(5, 20):
        stop = whole[start : start + 3]

        deltas = await answer(engine, ask(max_new_tokens=40, stop=(stop,), logprobs=True))

        told = sum(lp.characters for delta in deltas for lp in delta.logprobs)
        assert told <= len(text_of(deltas)) == whole.index(stop)


async def test_logprobs_of_a_stop_token_are_not_told(engine: Any, loaded: LoadedModel) -> None:
    ids = reference(loaded, (1, 50, 60, 70), 12)
    stop = next(i for n, i in enumerate(ids) if n >= 4 and i not in ids[:n])

    deltas = await answer(engine, ask(stop_token_ids=(stop,), logprobs=True))

    told = [lp.token_id for delta in deltas for lp in delta.logprobs]
    assert told == ids[: ids.index(stop)]


async def test_a_bias_can_force_and_forbid_a_token(engine: Any, loaded: LoadedModel) -> None:
    forced = await answer(engine, ask(logit_bias={77: 100.0}, max_new_tokens=3))
    first = reference(loaded, (1, 50, 60, 70), 1)[0]
    other = await answer(engine, ask(logit_bias={first: -100.0}, logprobs=True, max_new_tokens=1))

    assert text_of(forced) == decoded(loaded, [77, 77, 77])
    assert other[-1].usage.completion_tokens == 1
    assert [lp.token_id for d in other for lp in d.logprobs] != [first]


async def test_a_frequency_penalty_ends_a_repetition(engine: Any) -> None:
    request = ask(logit_bias={77: 20.0}, frequency_penalty=2.0, logprobs=True, max_new_tokens=60)

    ids = [lp.token_id for d in await answer(engine, request) for lp in d.logprobs]

    assert ids[0] == 77
    assert 1 < ids.count(77) < 40


async def test_echo_text_is_the_prompt(engine: Any) -> None:
    generation = await engine.submit(ask("The capital of France"))

    assert generation.prompt_text == "The capital of France"
    await read(generation)


async def test_one_more_than_slots_and_places_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1, queue_size=1)
    endless = ask(max_new_tokens=200, logit_bias={2: -100.0})
    first = await engine.submit(endless)
    await anext(aiter(first))
    second = await engine.submit(endless)

    with pytest.raises(EngineBusyError, match="1 running and 1 waiting"):
        await engine.submit(endless)
    second.cancel()
    third = await engine.submit(ask())
    first.cancel()
    assert (await read(third))[-1].finish_reason == "length"


@pytest.mark.parametrize("deltas_read", [0, 1, 3])
async def test_a_cancelled_request_frees_its_place(engine: Any, deltas_read: int) -> None:
    generation = await engine.submit(ask(max_new_tokens=200, logit_bias={2: -100.0}))
    deltas = aiter(generation)
    for _ in range(deltas_read):
        await anext(deltas)
    departures = sum(engine.load.departures)

    generation.cancel()
    generation.cancel()

    assert await free(engine) < FREE_WITHIN_S
    # Who reads nothing may still be waiting, and leaves no slot.
    assert sum(engine.load.departures) >= departures + bool(deltas_read)
    rest = [delta async for delta in deltas]
    assert rest[-1].finish_reason == "cancelled"
    generation.cancel()
    assert text_of(await answer(engine, ask()))


async def test_deltas_tell_when_their_request_got_its_slot(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)

    first, second = await asyncio.gather(*(answer(engine, ask(p)) for p in PROMPTS[:2]))

    slots = [{delta.admitted_at_s for delta in deltas} for deltas in (first, second)]
    (began, began_later), ended = (slot.pop() for slot in slots), first[-1].made_at_s
    assert began is not None
    assert began_later is not None
    assert began < first[0].made_at_s <= ended <= began_later < second[0].made_at_s
    assert slots == [set(), set()]


async def test_a_cancel_in_the_queue_frees_the_place_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)
    running = await engine.submit(ask(max_new_tokens=200, logit_bias={2: -100.0}))
    waiting = await engine.submit(ask())
    await anext(aiter(running))

    waiting.cancel()

    assert engine.load.waiting == 0
    assert [delta.finish_reason for delta in await read(waiting)] == ["cancelled"]
    running.cancel()
    assert await free(engine) < FREE_WITHIN_S


class BrokenModel:
    """Breaks the forward pass of a model on demand."""

    def __init__(self, model: Any) -> None:
        self.error: BaseException | None = None
        self.poison = False
        model.register_forward_hook(self._hook)

    def _hook(self, _module: Any, _inputs: Any, output: Any) -> Any:
        if self.error:
            raise self.error
        if self.poison:
            output.logits = output.logits * float("nan")
        return output


@pytest.fixture
def broken(llama_tokenizer: Any, make_engine: MakeEngine) -> tuple[Any, BrokenModel]:
    loaded = tiny_loaded(llama_tokenizer)
    model = BrokenModel(loaded.model)
    return make_engine(loaded), model


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("the kernel said no"), GenerationFailedError),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
    ],
)
@pytest.mark.parametrize("deltas_read", [0, 2])
async def test_an_exception_inside_generate_reaches_the_reader(
    broken: tuple[Any, BrokenModel], error: BaseException, told: type[GuanacoError],
    deltas_read: int,
) -> None:  # fmt: skip
    engine, model = broken
    if not deltas_read:
        model.error = error
    generation = await engine.submit(ask(max_new_tokens=200, logit_bias={2: -100.0}))
    deltas = aiter(generation)
    for _ in range(deltas_read):
        await anext(deltas)
    model.error = error

    with pytest.raises(told) as raised:
        await asyncio.wait_for(_exhaust(deltas), timeout=1)

    assert "kernel" not in str(raised.value)  # the log says it, not the client's error
    model.error = None
    assert await free(engine) < FREE_WITHIN_S
    assert text_of(await answer(engine, ask()))


async def _exhaust(deltas: Any) -> None:
    async for _ in deltas:
        pass


async def test_nan_logits_are_an_error_and_no_answer(broken: tuple[Any, BrokenModel]) -> None:
    engine, model = broken
    model.poison = True

    for temperature in (0.0, 1.0):
        with pytest.raises(GenerationFailedError):
            await answer(engine, ask(temperature=temperature))
    model.poison = False
    assert text_of(await answer(engine, ask()))


async def test_closing_ends_everybody_and_leaves_no_thread(make_engine: MakeEngine) -> None:
    before = own_threads()
    engine = make_engine(slots=1)
    assert {t.name for t in own_threads() - before} == {"guanaco-engine", "guanaco-watchdog"}
    endless = ask(max_new_tokens=200, logit_bias={2: -100.0})
    running, waiting = await engine.submit(endless), await engine.submit(endless)
    await anext(aiter(running))
    assert engine.is_alive

    await asyncio.to_thread(engine.close)

    for generation in (running, waiting):
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(read(generation), timeout=1)
    with pytest.raises(EngineStoppedError):
        await engine.submit(ask())
    assert not engine.is_alive
    assert own_threads() <= before


async def test_many_requests_leave_no_thread_behind(engine: Any) -> None:
    await answer(engine, ask())
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(40)))
    before = threading.active_count()

    for _ in range(5):
        await asyncio.gather(*(answer(engine, ask()) for _ in range(8)))

    assert threading.active_count() <= before


async def test_tokenizing_is_what_a_request_is_charged(engine: Any) -> None:
    ids = await engine.tokenize("The capital 巴黎", add_special_tokens=True)
    deltas = await answer(engine, ask("The capital 巴黎"))

    assert deltas[-1].usage.prompt_tokens == len(ids)
    assert ids[0] == 1
    assert await engine.detokenize(ids[1:]) == "The capital 巴黎"
    with pytest.raises(InvalidRequestError):
        await engine.detokenize([10**7])


async def test_a_bos_written_in_the_prompt_is_not_doubled(engine: Any) -> None:
    assert list(await engine.tokenize("<s> Paris", add_special_tokens=True)).count(1) == 1


async def test_an_embedding_is_the_mean_of_the_input_rows(engine: Any, loaded: LoadedModel) -> None:
    ids = await engine.tokenize("Paris", add_special_tokens=True)
    rows = loaded.model.get_input_embeddings()(torch.tensor(ids))

    assert await engine.embed("Paris") == pytest.approx(rows.mean(dim=0).tolist(), abs=1e-6)
