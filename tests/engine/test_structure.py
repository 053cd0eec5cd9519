"""Every answer has the form that was asked for, whatever the model would rather say."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_loaded

from dbgpt_guanaco.adapters.loading import LoadedModel
from dbgpt_guanaco.engine import structure as structures
from dbgpt_guanaco.engine.batching import BatchingEngine
from dbgpt_guanaco.engine.streaming import StreamingEngine
from dbgpt_guanaco.errors import EngineBusyError, InvalidRequestError
from dbgpt_guanaco.settings import EngineSettings
from dbgpt_guanaco.types import GenerationRequest, SamplingParams, Structure, TextDelta

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "Hund", "猫"]},
        "old": {"type": "boolean"},
    },
    "required": ["name", "kind", "old"],
    "additionalProperties": False,
}


def is_animal(text: str) -> bool:
    found = json.loads(text)
    kinds = [set(found) == {"name", "kind", "old"}, len(found["name"]) <= 6]
    return all(kinds) and found["kind"] in ("cat", "Hund", "猫") and found["old"] in (True, False)


CASES: list[tuple[Structure, Callable[[str], object]]] = [
    (
        Structure("choice", '["yes", "no", "perhaps", "\\u732b"]'),
        re.compile("yes|no|perhaps|猫").fullmatch,
    ),
    (Structure("regex", "[0-9]{3}-[a-f]{2}"), re.compile("[0-9]{3}-[a-f]{2}").fullmatch),
    (
        Structure("grammar", 'start: "a" ("b" | "cc"){2,5} "d"'),
        re.compile("a(b|cc){2,5}d").fullmatch,
    ),
    (Structure("json_schema", json.dumps(SCHEMA)), is_animal),
]
# Computes for minutes if it is let.
HOSTILE = Structure(
    "json_schema",
    json.dumps({"allOf": [{"type": "integer", "multipleOf": p} for p in (97, 101, 103, 107)]}),
)
LINKS = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {}}


@pytest.fixture(scope="module")
def loaded(llama_tokenizer: Any) -> LoadedModel:
    return tiny_loaded(llama_tokenizer)


@pytest.fixture(params=[StreamingEngine, BatchingEngine])
def engine(request: pytest.FixtureRequest, loaded: LoadedModel) -> Iterator[Any]:
    made = request.param(loaded, EngineSettings(slots=8, queue_size=32))
    made.wait_until_warm()
    yield made
    made.close()


def ask(structure: Structure | None, **sampling: Any) -> GenerationRequest:
    values = {"temperature": 1.0, "seed": 3, "max_new_tokens": 240} | sampling
    return GenerationRequest((1, 50, 60, 70), SamplingParams(**values, structure=structure))


async def answer(engine: Any, request: GenerationRequest) -> list[TextDelta]:
    async def read() -> list[TextDelta]:
        return [delta async for delta in await engine.submit(request)]

    return await asyncio.wait_for(read(), timeout=60)


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_p": 0.9}])
@pytest.mark.parametrize(("structure", "has_form"), CASES)
async def test_answers_have_their_form(
    engine: Any, structure: Structure, has_form: Callable[[str], object], sampling: dict[str, Any]
) -> None:
    deltas = await answer(engine, ask(structure, **sampling))

    assert has_form(text_of(deltas)), text_of(deltas)
    assert deltas[-1].finish_reason == "stop"


async def test_an_object_begins_as_one_and_ends_at_the_limit(engine: Any) -> None:
    deltas = await answer(engine, ask(Structure("json_object"), max_new_tokens=20))

    assert text_of(deltas).lstrip().startswith("{")
    assert deltas[-1].finish_reason in ("stop", "length")


async def test_neighbours_change_nothing_and_are_not_changed(engine: Any) -> None:
    wanted = [None, *(structure for structure, _ in CASES), None]
    alone = [text_of(await answer(engine, ask(s, seed=n))) for n, s in enumerate(wanted)]

    together = await asyncio.gather(*(answer(engine, ask(s, seed=n)) for n, s in enumerate(wanted)))

    assert [text_of(deltas) for deltas in together] == alone


async def test_both_engines_give_the_same_greedy_answer(loaded: LoadedModel) -> None:
    texts = []
    for kind in (StreamingEngine, BatchingEngine):
        engine = kind(loaded, EngineSettings(slots=4, queue_size=8))
        engine.wait_until_warm()
        texts.append([text_of(await answer(engine, ask(s, temperature=0.0))) for s, _ in CASES])
        engine.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "structure",
    [
        Structure("regex", "(", "here"),
        Structure("regex", "(?=a)b", "here"),
        Structure("choice", "[]", "here"),
        Structure("choice", '["a", ""]', "here"),
        Structure("choice", json.dumps([str(i) for i in range(1001)]), "here"),
        Structure("grammar", "start: nothing", "here"),
        Structure("json_schema", "[]", "here"),
        Structure("json_schema", "{", "here"),
        Structure("json_schema", '{"type": "object", "minProperties": "x"}', "here"),
        Structure("json_schema", '{"uniqueItems": true, "type": "array"}', "here"),
        Structure("json_schema", '{"x-guidance": {"lenient": true}}', "here"),
        Structure("json_schema", "[" * 60_000, "here"),
        Structure("regex", "a" * 70_000, "here"),
        # Overflows a stack, which ends a process.
        Structure("json_schema", json.dumps({"$defs": LINKS, "$ref": "#/$defs/d0"}), "here"),
    ],
)
async def test_what_cannot_be_followed_is_refused_and_named(
    engine: Any, structure: Structure
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.submit(ask(structure))

    assert caught.value.parameter == "here"
    assert len(str(caught.value)) < 1000


async def test_a_hostile_form_delays_nobody(engine: Any) -> None:
    await answer(engine, ask(CASES[0][0]))
    hostile = asyncio.create_task(engine.submit(ask(HOSTILE)))
    await asyncio.sleep(0.05)

    others = [await answer(engine, ask(s)) for s in (None, CASES[0][0])]

    assert not hostile.done()
    assert all(others)
    with pytest.raises(InvalidRequestError):
        await asyncio.wait_for(hostile, 30)


async def test_only_so_many_new_forms_wait(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "MAX_WAITING", 1)
    hostile = asyncio.create_task(engine.submit(ask(HOSTILE)))
    await asyncio.sleep(0.05)

    with pytest.raises(EngineBusyError):
        await engine.submit(ask(CASES[1][0]))
    with pytest.raises(InvalidRequestError):
        await asyncio.wait_for(hostile, 30)
    assert text_of(await answer(engine, ask(CASES[1][0])))


class Stuck:
    """Allows everything, and after three tokens nothing any more."""

    is_over = False
    count = 0

    def fill(self, bitmask: torch.Tensor) -> None:
        if self.count == 3:
            raise InvalidRequestError("guided_regex", "leads nowhere")
        bitmask.fill_(-1)

    def accept(self, token_id: int) -> None:
        self.count += 1


async def test_a_form_that_leads_nowhere_ends_its_own_answer_only(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = text_of(await answer(engine, ask(None, max_new_tokens=20)))

    async def follow(sampling: SamplingParams) -> Stuck | None:
        return Stuck() if sampling.structure else None

    monkeypatch.setattr(engine._structures, "follow", follow)
    stuck = asyncio.create_task(answer(engine, ask(Structure("regex", "x"))))
    free = await answer(engine, ask(None, max_new_tokens=20))

    with pytest.raises(InvalidRequestError, match="leads nowhere"):
        await stuck
    assert text_of(free) == alone
    assert engine.load.running == 0


async def test_a_form_is_complete_before_a_stop_token_may_come(
    engine: Any, loaded: LoadedModel
) -> None:
    stop = next(iter(loaded.stop_token_ids))
    request = ask(Structure("regex", "[a-c]{4}"), logit_bias={stop: 100.0})

    assert re.fullmatch("[a-c]{4}", text_of(await answer(engine, request)))
