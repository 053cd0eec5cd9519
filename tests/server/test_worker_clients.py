"""What each version of DB-GPT's cluster clients makes of a stream."""

from typing import Any

import httpx
import pytest
from cluster_clients import CLIENTS, ClusterClient, Output, OutputOf037
from fakes import ScriptedEngine
from hypothesis import given
from hypothesis import strategies as st

from dbgpt_guanaco.errors import GenerationFailedError, GuanacoError
from dbgpt_guanaco.server import frames
from dbgpt_guanaco.server.worker_answers import EMPTY_ANSWER

STREAM, WHOLE = "/api/worker/generate_stream", "/api/worker/generate"
MODEL = "vicuna-13b"  # older clients cut most off for this one
SAID = "法国的首都是巴黎, Hello World\nline2"

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.version)


def client_of(connect: Any, *script: str | GuanacoError) -> httpx.AsyncClient:
    made: httpx.AsyncClient = connect(ScriptedEngine(*script, name=MODEL), legacy_frame_s=0)
    return made


async def outputs(http: httpx.AsyncClient, client: ClusterClient) -> list[Output]:
    """Return what a version reads from a stream, and then from a whole answer."""
    stream = await http.post(STREAM, json=client.body(MODEL))
    whole = await http.post(WHOLE, json=client.body(MODEL))
    assert stream.status_code == whole.status_code == 200
    return [*client.read([stream.content]), client.output(**whole.json())]


@every_client
async def test_every_version_shows_the_answer(connect: Any, client: ClusterClient) -> None:
    got = await outputs(client_of(connect, *SAID), client)

    shown = [client.shown(output) for output in got]
    assert shown[-2:] == [SAID, SAID]
    assert all(SAID.startswith(text) for text in shown)
    assert all(output.error_code == 0 for output in got)


@every_client
async def test_usage_is_for_those_who_send_a_context(connect: Any, client: ClusterClient) -> None:
    *before, last, whole = await outputs(client_of(connect, "a", "b"), client)

    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    expected = ("stop", usage) if "context" in client.sends else (None, None)
    for output in (last, whole):
        got = getattr(output, "finish_reason", None), getattr(output, "usage", None)
        assert got == expected
    assert all(getattr(output, "usage", None) is None for output in before)


@every_client
async def test_every_version_shows_an_error(connect: Any, client: ClusterClient) -> None:
    got = await outputs(client_of(connect, GenerationFailedError("it failed")), client)

    assert [output.error_code for output in got] == [1, 1]
    told = "**LLMServer Generate Error, Please CheckErrorInfo.**: it failed"
    assert [client.shown(output) for output in got] == [told, told]


@every_client
async def test_every_version_hears_of_an_empty_answer(connect: Any, client: ClusterClient) -> None:
    *_, last, whole = await outputs(client_of(connect, " ", "\n"), client)

    for output in (last, whole):
        assert (client.shown(output), output.error_code) == (EMPTY_ANSWER, 0)


async def test_an_old_client_would_fail_on_a_newer_ones_frames(connect: Any) -> None:
    """So the table above has teeth."""
    new, old = CLIENTS[-1], CLIENTS[0]
    response = await client_of(connect, "a").post(STREAM, json=new.body(MODEL))

    with pytest.raises(TypeError, match="finish_reason"):
        list(old.read([response.content]))
    assert old.shown(OutputOf037("a" * 40, 0)) != "a" * 40


# Each kind of byte: a sign of life, ASCII, an escape, the end of a frame.
BYTES = b"\0" + b"\0".join(
    frames.nul_frame({"text": SAID[:n], "error_code": 0}) for n in (0, 1, 9, len(SAID))
)


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[-1]], ids=lambda c: c.version)
def test_a_stream_may_be_split_at_any_byte(client: ClusterClient) -> None:
    expected = [output.text for output in client.read([BYTES])]

    for place in range(len(BYTES) + 1):
        got = [output.text for output in client.read([BYTES[:place], BYTES[place:]])]
        assert got == expected
    assert expected[-1] == SAID


@given(st.data())
def test_a_stream_may_be_split_into_any_chunks(data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(BYTES)), max_size=30)))
    chunks = [BYTES[a:b] for a, b in zip([0, *places], [*places, len(BYTES)], strict=True)]

    *_, last = CLIENTS[0].read(chunks)

    assert last.text == SAID
