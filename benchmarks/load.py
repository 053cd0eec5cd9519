"""Drives servers in a closed loop: every stream sends its next request after the last answer."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.answer import AnswerReader, FailedRequestError, shorten
from benchmarks.measures import Answer, Failure, Outcome, Stage
from benchmarks.prompts import Prompts
from benchmarks.sse import EventReader

_CONNECT_TIMEOUT_S = 10.0


class BenchmarkError(Exception):
    """The run cannot start; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server to measure.

    Attributes:
        name: As it stands in the report.
        url: Scheme, host and port, without the endpoint.
        model: Name of the model in requests.
        api_key: Sent as bearer token to this server only; never shown, never written.
        extra: Fields of the body that only this server is sent.
    """

    name: str
    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request to this server."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True, slots=True)
class Load:
    """What every server has to bear.

    Attributes:
        streams: Numbers of concurrent clients, one stage each.
        requests_per_stream: Measured requests each client sends, one after the other.
        warmup: Requests each client sends before the clock of a stage starts.
        rounds: How often each stage is repeated.
        max_tokens: Limit on output tokens of each answer.
        temperature: 0 is greedy.
        endpoint: Path that ends in ``/chat/completions`` or ``/completions``.
        timeout_s: Longest time for one request, in seconds.
    """

    streams: tuple[int, ...] = (1, 4, 8)
    requests_per_stream: int = 3
    warmup: int = 1
    rounds: int = 1
    max_tokens: int = 64
    temperature: float = 0.0
    endpoint: str = "/v1/chat/completions"
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.endpoint.startswith("/") or not self.endpoint.endswith("/completions"):
            raise BenchmarkError(
                f"--endpoint must be a path that ends in /chat/completions or /completions, "
                f"got {self.endpoint!r}"
            )
        if not 0 <= self.temperature < math.inf:
            raise BenchmarkError(f"--temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.timeout_s < math.inf:
            raise BenchmarkError(f"--timeout-s must be more than 0, got {self.timeout_s}")

    @property
    def is_chat(self) -> bool:
        """Whether prompts are sent as messages."""
        return self.endpoint.endswith("/chat/completions")

    @property
    def models_endpoint(self) -> str:
        """Path that lists the models, next to ``endpoint``."""
        ending = "/chat/completions" if self.is_chat else "/completions"
        return self.endpoint.removesuffix(ending) + "/models"

    def body(self, model: str, prompt: str) -> dict[str, object]:
        """Return the JSON body of one request."""
        asked: dict[str, object] = (
            {"messages": [{"role": "user", "content": prompt}]}
            if self.is_chat
            else {"prompt": prompt}
        )
        return asked | {
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def run(
    servers: Sequence[Server],
    load: Load,
    prompts: Prompts,
    on_stage: Callable[[Stage], None] = lambda _: None,
) -> list[Stage]:
    """Measure every server, stages interleaved so that noise of the machine hits all alike.

    Order: numbers of streams, in each of them rounds, in each of them servers.
    """
    stages: list[Stage] = []
    for streams in load.streams:
        for round_number in range(1, load.rounds + 1):
            for server in servers:
                stages.append(await run_stage(server, load, prompts, streams, round_number))
                on_stage(stages[-1])
    return stages


async def run_stage(
    server: Server, load: Load, prompts: Prompts, streams: int, round_number: int
) -> Stage:
    """Warm one server up, then measure it. The warm-up opens the connections that are measured."""

    async def stream(number: int, phase: str, requests: int) -> list[Outcome]:
        outcomes = []
        for request in range(requests):
            key = f"{phase}/{streams}/{round_number}/{number}/{request}"
            prompt = prompts.make(number * requests + request, key)
            outcomes.append(await ask(client, server, load, prompt))
        return outcomes

    async def all_streams(phase: str, requests: int) -> list[Outcome]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stream(n, phase, requests)) for n in range(streams)]
        return [outcome for task in tasks for outcome in task.result()]

    async with open_client(load.timeout_s, streams) as client:
        warmup = await all_streams("warmup", load.warmup)
        started = time.perf_counter()
        outcomes = await all_streams("measured", load.requests_per_stream)
        duration_s = time.perf_counter() - started
    failures = tuple(outcome for outcome in warmup if isinstance(outcome, Failure))
    return Stage(server.name, streams, round_number, duration_s, tuple(outcomes), failures)


def open_client(timeout_s: float, connections: int) -> httpx.AsyncClient:
    """Return a client with one kept connection per stream; the caller closes it."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        # A proxy named in the environment would be measured along with the server.
        trust_env=False,
    )


async def ask(
    client: httpx.AsyncClient,
    server: Server,
    load: Load,
    prompt: str,
    reader: AnswerReader | None = None,
) -> Outcome:
    """Send one request and read its answer; whatever goes wrong on the way is an outcome.

    Who wants to watch the answer come gives a new ``reader``.
    """
    sent, retry_after = time.perf_counter(), None
    answer = reader or AnswerReader()
    try:
        async with asyncio.timeout(load.timeout_s):
            return await _stream_answer(client, server, load, prompt, sent, answer)
    except FailedRequestError as error:
        kind, detail, retry_after = error.kind, error.detail, error.retry_after
    except (TimeoutError, httpx.TimeoutException):
        kind, detail = "timeout", f"no complete answer within {load.timeout_s:g} s"
    except httpx.ConnectError as error:
        kind, detail = "connection", repr(error)
    except httpx.RequestError as error:
        kind, detail = "broken stream", repr(error)
    return Failure(kind, shorten(detail), time.perf_counter() - sent, retry_after)


async def _stream_answer(
    client: httpx.AsyncClient,
    server: Server,
    load: Load,
    prompt: str,
    sent: float,
    answer: AnswerReader,
) -> Answer:
    events = EventReader()
    request = client.build_request(
        "POST",
        server.url + load.endpoint,
        json=load.body(server.model, prompt) | dict(server.extra),
        headers=server.headers,
    )
    response, was_resent = await _send(client, request)
    async with contextlib.aclosing(response):
        if response.status_code != httpx.codes.OK:
            text = (await response.aread()).decode("utf-8", errors="replace")
            kind = f"http {response.status_code}"
            raise FailedRequestError(kind, text or "no body", response.headers.get("Retry-After"))
        async for piece in response.aiter_bytes():
            # Read once for all events of a piece: they arrived together.
            at_s = time.perf_counter() - sent
            for event in events.feed(piece):
                answer.take(event, at_s)
    return dataclasses.replace(answer.close(), was_resent=was_resent)


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> tuple[httpx.Response, bool]:
    """Return the response that begins, and whether the request had to be sent twice.

    llama.cpp closes connections that it promised to keep. Who uses one just then has to open
    another, as every HTTP client does; the clock goes on.
    """
    try:
        return await client.send(request, stream=True), False
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        return await client.send(request, stream=True), True


async def find_model(url: str, load: Load, api_key: str | None) -> str:
    """Return the one model a server offers.

    Raises:
        BenchmarkError: The server cannot be reached or does not offer exactly one.
    """
    address = url + load.models_endpoint
    headers = Server("", url, "", api_key).headers
    async with open_client(min(load.timeout_s, _CONNECT_TIMEOUT_S), connections=1) as client:
        try:
            response = (await client.get(address, headers=headers)).raise_for_status()
            names = [str(model["id"]) for model in response.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{address} lists no models ({error!r}); name one") from None
    if len(names) != 1:
        raise BenchmarkError(f"{address} lists {len(names)} models: {', '.join(names)}; name one")
    return names[0]
