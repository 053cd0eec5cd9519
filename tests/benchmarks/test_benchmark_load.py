import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fake_openai import FakeOpenAI, Script, serving

from benchmarks.load import (
    BenchmarkError,
    Load,
    Server,
    ask,
    find_model,
    open_client,
    run,
    run_stage,
)
from benchmarks.measures import Answer, Failure, Stage, summarize
from benchmarks.prompts import Prompts

ONE = Load(streams=(1,), requests_per_stream=1, warmup=0, timeout_s=10)
SCRIPTS = {
    "plain": Script(),
    "peer": Script(),
    "slow": Script(first_delay_s=0.05, gap_s=0.02, keeps_alive=True),
    "finish": Script(usage="finish", completion_tokens=11),
    "final": Script(usage="final", completion_tokens=12),
    "none": Script(usage="none"),
    "busy": Script(status=429),
    "patient": Script(status=429, retry_after="3"),
    "moody": Script(status=503, fails_every=3),
    "error": Script(ending="error"),
    "cut": Script(ending="cut"),
    "silent": Script(ending="silent"),
    "never": Script(ending="never"),
    "drip": Script(ending="drip"),
    "two": Script(models=("a", "b")),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeOpenAI]:
    with serving(**SCRIPTS) as fake:
        yield fake


@pytest.fixture
def fake(shared: FakeOpenAI) -> FakeOpenAI:
    shared.forget()
    return shared


def measure(fake: FakeOpenAI, name: str, load: Load = ONE, streams: int = 1) -> Stage:
    server = Server(name, fake.url(name), "fake")
    # A run that would hang fails instead.
    return asyncio.run(asyncio.wait_for(run_stage(server, load, Prompts(), streams, 1), 15))


def only_answer(stage: Stage) -> Answer:
    [outcome] = stage.outcomes
    assert isinstance(outcome, Answer), outcome
    return outcome


def test_times_are_at_least_what_the_server_waits(fake: FakeOpenAI) -> None:
    stage = measure(fake, "slow")
    answer = only_answer(stage)

    assert answer.ttft_s >= 0.05
    # A late piece shortens the next gap, so only the sum has a bound.
    assert answer.outputs_s[-1] >= 0.05 + 2 * 0.02
    assert len(answer.itls_s) == 2
    assert stage.duration_s >= answer.e2e_s >= answer.outputs_s[-1]


@pytest.mark.parametrize(
    ("name", "tokens", "source"),
    [("finish", 11, "usage"), ("final", 12, "usage"), ("none", 3, "chunks")],
)
def test_tokens_are_counted_exactly(fake: FakeOpenAI, name: str, tokens: int, source: str) -> None:
    answer = only_answer(measure(fake, name))

    assert (answer.output_tokens, answer.token_source) == (tokens, source)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("busy", "http 429"),
        ("error", "stream error"),
        ("cut", "broken stream"),
        ("silent", "broken stream"),
    ],
)
def test_errors_are_counted_by_kind(fake: FakeOpenAI, name: str, kind: str) -> None:
    load = Load(requests_per_stream=2, warmup=1, timeout_s=10)

    summary = summarize([measure(fake, name, load, streams=2)])

    assert summary.answered == 0
    assert summary.errors == {kind: 4}
    assert summary.warmup_errors == {kind: 2}


def test_the_detail_of_an_error_is_what_the_server_said(fake: FakeOpenAI) -> None:
    [outcome] = measure(fake, "busy").outcomes

    assert isinstance(outcome, Failure)
    assert "busy" in outcome.detail


@pytest.mark.parametrize("name", ["never", "drip"])
def test_an_answer_that_never_ends_is_a_timeout(fake: FakeOpenAI, name: str) -> None:
    load = Load(requests_per_stream=1, warmup=0, timeout_s=0.2)

    assert summarize([measure(fake, name, load)]).errors == {"timeout": 1}


def test_nobody_at_the_address_is_a_connection_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = Server("gone", f"http://127.0.0.1:{port}", "fake")

    stage = asyncio.run(run_stage(server, ONE, Prompts(), 1, 1))

    assert summarize([stage]).errors == {"connection": 1}


def test_some_failures_do_not_stop_the_others(fake: FakeOpenAI) -> None:
    load = Load(requests_per_stream=3, warmup=0, timeout_s=10)

    summary = summarize([measure(fake, "moody", load, streams=2)])

    assert (summary.answered, summary.errors) == (4, {"http 503": 2})
    assert summary.output_tokens == 4 * 3


def test_streams_run_at_the_same_time(fake: FakeOpenAI) -> None:
    fake.gate(size=4)

    summary = summarize([measure(fake, "plain", ONE, streams=4)])

    assert summary.answered == 4


def test_stages_are_interleaved(fake: FakeOpenAI) -> None:
    servers = [Server(name, fake.url(name), "fake") for name in ("plain", "peer")]
    load = Load(streams=(1, 2), rounds=2, requests_per_stream=1, warmup=1, timeout_s=10)
    seen: list[Stage] = []

    stages = asyncio.run(run(servers, load, Prompts(), seen.append))

    assert seen == stages
    order = [(stage.streams, stage.round_number, stage.server) for stage in stages]
    assert order == [
        (1, 1, "plain"), (1, 1, "peer"), (1, 2, "plain"), (1, 2, "peer"),
        (2, 1, "plain"), (2, 1, "peer"), (2, 2, "plain"), (2, 2, "peer"),
    ]  # fmt: skip
    # A warm-up and a measured request for each stream of each stage.
    assert (
        fake.asked
        == ["plain"] * 2
        + ["peer"] * 2
        + ["plain"] * 2
        + ["peer"] * 2
        + (["plain"] * 4 + ["peer"] * 4) * 2
    )


def test_servers_get_the_same_prompts_and_no_request_the_same_twice(fake: FakeOpenAI) -> None:
    servers = [Server(name, fake.url(name), "fake") for name in ("plain", "peer")]
    load = Load(streams=(2,), rounds=2, requests_per_stream=2, warmup=1, timeout_s=10)

    asyncio.run(run(servers, load, Prompts(prefix_words=30)))

    sent = {name: Counter(fake.prompts_of(name)) for name in ("plain", "peer")}
    assert sent["plain"] == sent["peer"]
    assert set(sent["plain"].values()) == {1}
    assert sent["plain"].total() == 2 * (2 + 4)


def test_a_request_asks_for_usage_and_carries_the_load(fake: FakeOpenAI) -> None:
    measure(fake, "plain", Load(requests_per_stream=1, warmup=0, max_tokens=5, temperature=0.5))

    [body] = fake.bodies
    assert body["messages"][0]["role"] == "user"
    del body["messages"]
    assert body == {
        "model": "fake",
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_plain_endpoint_gets_a_prompt(fake: FakeOpenAI) -> None:
    load = Load(requests_per_stream=1, warmup=0, endpoint="/v1/completions")

    assert only_answer(measure(fake, "plain", load)).output_tokens == 3
    assert isinstance(fake.bodies[0]["prompt"], str)


def test_a_key_is_sent_and_never_shown(fake: FakeOpenAI) -> None:
    server = Server("plain", fake.url("plain"), "fake", api_key="secret")

    asyncio.run(run_stage(server, ONE, Prompts(), 1, 1))

    assert fake.keys == ["Bearer secret"]
    assert "secret" not in repr(server)


def test_the_only_model_is_found(fake: FakeOpenAI) -> None:
    assert asyncio.run(find_model(fake.url("plain"), ONE, None)) == "fake"


@pytest.mark.parametrize(
    ("name", "message"), [("two", "2 models: a, b; name one"), ("absent", "lists no models")]
)
def test_no_model_is_guessed(fake: FakeOpenAI, name: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        asyncio.run(find_model(fake.url(name), ONE, None))


@pytest.mark.parametrize(("name", "expected"), [("patient", "3"), ("busy", None), ("never", None)])
def test_a_refusal_says_when_to_come_back_if_the_server_does(
    fake: FakeOpenAI, name: str, expected: str | None
) -> None:
    [failure] = measure(fake, name, replace(ONE, timeout_s=0.3)).outcomes

    assert isinstance(failure, Failure)
    assert failure.retry_after == expected


def test_a_server_is_sent_its_own_fields_beside_the_common_ones(fake: FakeOpenAI) -> None:
    servers = [
        Server("plain", fake.url("plain"), "fake", extra={"ignore_eos": True}),
        Server("peer", fake.url("peer"), "fake"),
    ]

    asyncio.run(run(servers, ONE, Prompts()))

    plain, peer = fake.bodies
    assert plain == peer | {"ignore_eos": True}


async def test_a_request_is_sent_again_once_where_the_server_closes_a_kept_connection() -> None:
    async with closing_server(answers=1) as url:
        fast = await ask_once(url)
    async with closing_server(answers=0) as url:
        failed = await ask_once(url)

    assert isinstance(fast, Answer)
    assert fast.was_resent
    assert isinstance(failed, Failure)
    assert failed.kind == "broken stream"


@asynccontextmanager
async def closing_server(answers: int) -> AsyncIterator[str]:
    """Close the first connection without a word, then answer so many requests."""
    left, body = (
        [answers, 1],
        'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n',
    )

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if left[1]:
            left[1] = 0
        elif left[0]:
            left[0] -= 1
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def ask_once(url: str) -> Answer | Failure:
    async with open_client(10, 1) as client:
        return await ask(client, Server("closing", url, "fake"), ONE, "hello")
