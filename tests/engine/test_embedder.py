"""all-MiniLM-L6-v2, as a knowledge base uses it."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbgpt_guanaco.adapters.embedding import LoadedEmbedder, load_embedder
from dbgpt_guanaco.engine.embedding import BATCH_TOKENS, MAX_BATCH, SentenceEmbedder, cut
from dbgpt_guanaco.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationFailedError,
    InvalidRequestError,
)
from dbgpt_guanaco.settings import EmbeddingSettings


@pytest.fixture(scope="module")
def loaded() -> LoadedEmbedder:
    loaded = load_embedder(EmbeddingSettings(), Path("no-such-folder"))
    assert loaded
    return loaded


@pytest.fixture
def embedder(loaded: LoadedEmbedder) -> Iterator[SentenceEmbedder]:
    embedder = SentenceEmbedder(loaded, max_requests=3)
    yield embedder
    embedder.close()


class HeldModel:
    """A model whose batches wait until a test lets them go."""

    def __init__(self, loaded: LoadedEmbedder) -> None:
        self.tokenizer = loaded.model.tokenizer
        self.started, self.go = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.result: Any = 1.0

    def encode(self, texts: list[str], **_: Any) -> Any:
        self.batches.append(len(texts))
        self.started.set()
        assert self.go.wait(10)
        return np.full((len(texts), 3), self.result)


@pytest.fixture
def held(loaded: LoadedEmbedder) -> Iterator[tuple[SentenceEmbedder, HeldModel]]:
    model = HeldModel(loaded)
    embedder = SentenceEmbedder(LoadedEmbedder(model, loaded.card), max_requests=2)  # type: ignore[arg-type]
    yield embedder, model
    model.go.set()
    embedder.close()


async def started(model: HeldModel) -> None:
    assert await asyncio.to_thread(model.started.wait, 10)


async def test_the_nearest_text_is_the_one_about_the_question(embedder: SentenceEmbedder) -> None:
    texts = [
        "The invoice must be paid within thirty days.",
        "Penguins live in the southern hemisphere.",
        "A B-tree keeps its keys sorted.",
    ]
    documents = np.array((await embedder.embed(texts)).vectors)
    question = np.array((await embedder.embed(["When is the bill due?"])).vectors[0])
    assert int((documents @ question).argmax()) == 0
    assert np.allclose((documents**2).sum(axis=1), 1, atol=1e-5)


async def test_a_large_list_gives_what_single_texts_give_in_their_order(
    embedder: SentenceEmbedder,
) -> None:
    texts = [f"row {i}: " + "word " * (i * 7 % 60) for i in range(150)]
    together = await embedder.embed(texts)
    alone = [(await embedder.embed([texts[i]])).vectors[0] for i in (0, 1, 77, 149)]
    assert np.allclose([together.vectors[i] for i in (0, 1, 77, 149)], alone, atol=1e-5)
    assert together.prompt_tokens == sum(
        len(embedder._model.tokenizer(text)["input_ids"]) for text in texts
    )


async def test_a_text_that_is_too_long_is_cut_and_counted_as_cut(
    embedder: SentenceEmbedder,
) -> None:
    long = await embedder.embed(["word " * 5000])
    cut_here = await embedder.embed(["word " * 254])
    assert long.prompt_tokens == cut_here.prompt_tokens == 256
    assert np.allclose(long.vectors, cut_here.vectors, atol=1e-6)


async def test_no_texts_are_no_vectors(embedder: SentenceEmbedder) -> None:
    embeddings = await embedder.embed([])
    assert (embeddings.vectors, embeddings.prompt_tokens) == ((), 0)


@given(st.lists(st.integers(0, 3 * BATCH_TOKENS), max_size=300))
def test_batches_hold_every_text_once_and_fit(lengths: list[int]) -> None:
    batches = list(cut(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (padded <= BATCH_TOKENS and len(batch) <= MAX_BATCH)


async def test_a_request_that_is_cancelled_computes_no_further_batch(
    held: tuple[SentenceEmbedder, HeldModel],
) -> None:
    embedder, model = held
    task = asyncio.create_task(embedder.embed(["text"] * (3 * MAX_BATCH)))
    await started(model)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model.go.set()
    await embedder.embed(["next"])
    assert model.batches == [MAX_BATCH, 1]


async def test_too_many_requests_are_refused_and_the_place_comes_back(
    held: tuple[SentenceEmbedder, HeldModel],
) -> None:
    embedder, model = held
    tasks = [asyncio.create_task(embedder.embed(["text"])) for _ in range(2)]
    await started(model)
    with pytest.raises(EngineBusyError):
        await embedder.embed(["one more"])
    model.go.set()
    await asyncio.gather(*tasks)
    assert len((await embedder.embed(["again"])).vectors) == 1


async def test_closing_ends_what_waits(held: tuple[SentenceEmbedder, HeldModel]) -> None:
    embedder, model = held
    running = asyncio.create_task(embedder.embed(["text"]))
    await started(model)
    waiting = asyncio.create_task(embedder.embed(["text"]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(embedder.close))
    with pytest.raises(EngineStoppedError):
        await waiting
    model.go.set()
    await closing
    assert len((await running).vectors) == 1
    with pytest.raises(EngineStoppedError):
        await embedder.embed(["late"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_vector_that_is_not_finite_is_an_error_and_the_next_request_works(
    held: tuple[SentenceEmbedder, HeldModel], value: float
) -> None:
    embedder, model = held
    model.go.set()
    model.result = value
    with pytest.raises(GenerationFailedError):
        await embedder.embed(["text"])
    model.result = 1.0
    assert [list(v) for v in (await embedder.embed(["text"])).vectors] == [[1.0, 1.0, 1.0]]


async def test_half_a_surrogate_pair_is_the_clients_error(
    embedder: SentenceEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidRequestError, match="half a surrogate pair"):
        await embedder.embed(["fine", "broken \ud83d"])
    assert not caplog.records


async def test_a_huge_text_costs_what_is_read_of_it(embedder: SentenceEmbedder) -> None:
    huge = await embedder.embed(["word " * 600_000])  # 3 MB
    assert huge.prompt_tokens == 256


async def test_a_short_request_waits_for_one_batch_of_a_large_one(
    held: tuple[SentenceEmbedder, HeldModel],
) -> None:
    embedder, model = held
    large = asyncio.create_task(embedder.embed(["text"] * (5 * MAX_BATCH)))
    await started(model)
    short = asyncio.create_task(embedder.embed(["short"]))
    await asyncio.sleep(0)
    model.go.set()
    await short
    assert model.batches.index(1) <= 2
    await large
