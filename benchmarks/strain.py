"""Puts a server under strain in three ways, and notes what its clients see."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import httpx

from benchmarks.answer import AnswerReader
from benchmarks.behaviour_arithmetic import Arrival, Neighbours, Wave
from benchmarks.load import BenchmarkError, Load, Server, ask, open_client
from benchmarks.measures import Answer, Failure, Outcome
from benchmarks.prompts import QUESTIONS, Prompts

STREAMS = 8
LONG_PROMPT_WORDS = 1500
PREFIX_WORDS = 1200
# Pieces of text that every stream has had when the long prompt is sent.
_BEFORE = 32
_FEW_TOKENS = 4
_POLL_S = 0.002
_LONG_BYTES = 5 * 2**20
_HEALTH_PAUSE_S = 0.005


async def arrival(server: Server, load: Load, seed: int, repeat: int) -> Arrival:
    """Let a long prompt come while eight streams run.

    Raises:
        BenchmarkError: A request failed, or a stream did not last until the long prompt's answer.
    """
    readers = [AnswerReader() for _ in range(STREAMS)]
    async with open_client(load.timeout_s, STREAMS + 1) as client:
        zero_s = time.perf_counter()

        async def stream(number: int, reader: AnswerReader) -> tuple[float, ...]:
            prompt = Prompts(prefix_words=16, seed=seed).make(number, f"{repeat}/{number}")
            began_s = time.perf_counter() - zero_s
            answer = _answer(await ask(client, server, load, prompt, reader))
            return tuple(began_s + output_s for output_s in answer.outputs_s)

        streams = [asyncio.create_task(stream(n, reader)) for n, reader in enumerate(readers)]
        await _until_running(streams, readers)
        long = Prompts(prefix_words=LONG_PROMPT_WORDS, seed=seed).make(0, f"long/{repeat}")
        sent_s = time.perf_counter() - zero_s
        newcomer = _answer(await ask(client, server, _with_tokens(load, _FEW_TOKENS), long))
        outputs_s = tuple(await asyncio.gather(*streams))
    answered_s = sent_s + newcomer.ttft_s
    if min(outputs[-1] for outputs in outputs_s) < answered_s:
        raise BenchmarkError("a stream ended before the long prompt was answered; raise its tokens")
    return Arrival(outputs_s, sent_s, answered_s)


async def _until_running(
    streams: Sequence[asyncio.Task[tuple[float, ...]]], readers: Sequence[AnswerReader]
) -> None:
    while min(reader.outputs for reader in readers) < _BEFORE:
        for ended in (stream for stream in streams if stream.done()):
            ended.result()
            raise BenchmarkError("a stream ended before all had begun; raise its tokens")
        await asyncio.sleep(_POLL_S)


async def neighbours_of_refusals(
    server: Server, load: Load, seed: int, questions: int
) -> Neighbours:
    """Ask for ``/health`` while eight streams run and prompts of 5 MB come one after another.

    Raises:
        BenchmarkError: A stream failed, or none lasted as long as the questions.
    """
    readers = [AnswerReader() for _ in range(STREAMS)]
    prompts = Prompts(prefix_words=16, seed=seed)
    refusals = list[int]()
    long = json.dumps({"messages": [{"role": "user", "content": "a" * _LONG_BYTES}]}).encode()
    async with open_client(load.timeout_s, STREAMS + 1) as client:
        streams = [
            asyncio.create_task(_stream(client, server, load, prompts.make(n, f"health/{n}"), r))
            for n, r in enumerate(readers)
        ]
        await _until_running(streams, readers)
        # In a thread of its own, so that what this loop does meanwhile is not measured.
        asked = asyncio.create_task(asyncio.to_thread(_health_times, server.url, questions))
        while not asked.done():
            headers = {"Content-Type": "application/json"}
            address = f"{server.url}/v1/chat/completions"
            response = await client.post(address, content=long, headers=headers)
            refusals.append(response.status_code)
            await asyncio.sleep(0.05)
        lasted = not any(stream.done() for stream in streams)
        await asyncio.gather(*streams)
    if not lasted:
        raise BenchmarkError("a stream ended before the last question; raise its tokens")
    return Neighbours(asked.result(), tuple(refusals))


async def _stream(
    client: httpx.AsyncClient, server: Server, load: Load, prompt: str, reader: AnswerReader
) -> tuple[float, ...]:
    return _answer(await ask(client, server, load, prompt, reader)).outputs_s


def _health_times(url: str, questions: int) -> tuple[float, ...]:
    times = []
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        client.get("/health")  # opens the connection
        for _ in range(questions):
            began_s = time.perf_counter()
            client.get("/health").raise_for_status()
            times.append(time.perf_counter() - began_s)
            time.sleep(_HEALTH_PAUSE_S)
    return tuple(times)


async def repeated_prefix(
    server: Server, load: Load, seed: int, repeat: int
) -> tuple[Answer, Answer]:
    """Ask two questions behind one prefix that is new; return both answers.

    Raises:
        BenchmarkError: A request failed.
    """
    prompts = Prompts(
        prefix_words=PREFIX_WORDS, is_prefix_shared=True, seed=seed + repeat, questions=QUESTIONS
    )
    few = _with_tokens(load, _FEW_TOKENS)
    async with open_client(load.timeout_s, 1) as client:
        # Opens the connection, which would count as part of the first TTFT.
        _answer(await ask(client, server, few, QUESTIONS[repeat % len(QUESTIONS)]))
        cold = _answer(await ask(client, server, few, prompts.make(0, "cold")))
        warm = _answer(await ask(client, server, few, prompts.make(1, "warm")))
    return cold, warm


async def crowd(
    server: Server,
    load: Load,
    clients: int,
    waves: int,
    seed: int,
    memory: Callable[[], int],
) -> list[Wave]:
    """Let many clients ask at once, again and again. None comes back after a refusal.

    Args:
        server: Who is asked.
        load: What for.
        clients: Of one wave.
        waves: How many.
        seed: Decides the prompts.
        memory: Returns the server's resident memory in bytes.
    """
    prompts, seen = Prompts(prefix_words=16, seed=seed), []
    async with open_client(load.timeout_s, clients) as client:
        for wave in range(waves):
            asked = [prompts.make(n, f"{wave}/{n}") for n in range(clients)]
            outcomes = await asyncio.gather(*(ask(client, server, load, one) for one in asked))
            seen.append(Wave(tuple(outcomes), memory()))
    return seen


def _with_tokens(load: Load, max_tokens: int) -> Load:
    return dataclasses.replace(load, max_tokens=max_tokens)


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, Failure):
        raise BenchmarkError(f"a request failed: {outcome.kind}, {outcome.detail}")
    return outcome
