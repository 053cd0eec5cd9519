"""A grammar of request bodies: valid ones of every dialect, and all the ways to break them.

A body is built in two steps, as mistakes are made in two places: by a program that means
something else (a value of another type, a field too many) and on the way (bytes lost, doubled, of
another encoding).
"""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

CHAT = [{"role": "user", "content": "Hi"}]
COMMON = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 40, "n": 1, "stop": ["###"], "max_tokens": 4,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"5": 1.0}, "seed": 7,
    "user": "somebody", "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1,
    "stop_token_ids": [9], "truncate_prompt_tokens": 5, "stream": True,
    "stream_options": {"include_usage": True}, "metadata": {"a": "b"},
}  # fmt: skip
STRUCTURES: list[dict[str, Any]] = [
    {},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}}}}},
    {"guided_regex": "[a-c]{1,4}"},
    {"guided_choice": ["yes", "no"]},
    {"guided_json": {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": {}}}},
    {"guided_grammar": 'start: "a" start | "b"'},
    {"structured_outputs": {"choice": ["1", "2"]}},
]  # fmt: skip
LEGACY = {"model": "guanaco", "prompt": "###Human: Hi###Assistant:", "temperature": 0.7,
          "max_new_tokens": 4, "stop": "###", "echo": False, "seed": 3}  # fmt: skip
WORKER = {"model": "tiny", "messages": [{"role": "human", "content": "Hi"}], "prompt": "Hi",
          "temperature": 0.7, "max_new_tokens": 4, "stop": "###", "stop_token_ids": [2],
          "top_p": 0.9, "top_k": -1, "context": {"stream": True}, "chat_model": True,
          "span_id": "a:b", "version": "v2", "context_len": 4096}  # fmt: skip
INSTANCE = {"model_name": "vicuna@llm", "host": "127.0.0.1", "port": 9, "weight": 1.0,
            "check_healthy": True, "healthy": True, "enabled": True,
            "prompt_template": None, "last_heartbeat": None}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": COMMON | {"messages": CHAT, "logprobs": True, "top_logprobs": 2},
    "/v1/completions": COMMON | {"prompt": ["Hi", "Ho"], "logprobs": 2},
    "/v1/embeddings": {"input": ["a", "b"], "model": "all-minilm-l6-v2",
                       "encoding_format": "base64"},
    "/v1/tokenize": {"prompt": "Hi", "add_special_tokens": True},
    "/v1/detokenize": {"tokens": [5, 6]},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "y"},
    "/v1/unload_lora_adapter": {"lora_name": "x"},
    "/generate_stream": LEGACY,
    "/generate": LEGACY,
    "/embedding": {"prompt": "Hi"},
    "/api/worker/generate_stream": WORKER,
    "/api/worker/generate": WORKER,
    "/api/worker/embeddings": {"model": "all-minilm-l6-v2", "input": ["a"],
                               "worker_type": "text2vec"},
    "/api/worker/count_token": {"prompt": "Hi", "model": "tiny"},
    "/api/worker/model_metadata": {"model": "tiny"},
    "/api/worker/models/startup": {"model": "tiny", "worker_type": "llm", "params": {}},
    "/api/worker/models/shutdown": {"model": "tiny", "worker_type": "llm", "params": {}},
    "/api/worker/apply": {"model": "tiny", "apply_type": "start"},
    "/api/controller/models": INSTANCE,
    "/api/controller/heartbeat": INSTANCE,
}  # fmt: skip
WITH_STRUCTURE = ("/v1/chat/completions", "/v1/completions")

NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([2**31, -(2**31), 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400]),
    st.floats(),
)
# Half surrogates can stand in JSON, and in no UTF-8.
TEXTS = st.one_of(
    st.sampled_from(["", "\0", "\ud800", "a\udfffb", "###", "</s>", "<|im_end|>", "../../x", "None",
                     "你好", "\u202e", "A" * 5000, "{" * 300, "%s%n", "http://127.0.0.1:9/x"]),
    st.text(st.characters(), max_size=20),
)  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXTS, part, max_size=4),
    max_leaves=8,
)

Place = tuple[Any, Any]


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A body for a path: a few fields missing, a few wrong, then perhaps broken bytes."""
    body = copy.deepcopy(BODIES[path])
    if path in WITH_STRUCTURE:
        body |= copy.deepcopy(draw(st.sampled_from(STRUCTURES)))
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
        body.pop(name, None)
    value: Any = body
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        value = _mistaken(draw, value)
    text = json.dumps(value).encode()
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        text = draw(st.sampled_from(BREAKS))(draw, text)
    return text


def _places(value: Any) -> list[Place]:
    """Every container in a value, with a key that it has."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _mistaken(draw: st.DrawFn, value: Any) -> Any:
    """Replace, wrap, repeat or add something, anywhere."""
    places = _places(value)
    if not places or not draw(st.integers(0, 9)):
        return draw(JUNK)
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "wrap", "many", "add"])):
        case "replace":
            holder[key] = draw(JUNK)
        case "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}]))
        case "many":
            holder[key] = [holder[key]] * draw(st.sampled_from([2, 17, 300, 5000]))
        case "add" if isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(JUNK)
        case "add":
            holder.append(draw(JUNK))
    return value


def _cut(draw: st.DrawFn, text: bytes) -> bytes:
    return text[: draw(st.integers(0, len(text)))]


def _replaced(draw: st.DrawFn, text: bytes) -> bytes:
    at = draw(st.integers(0, len(text)))
    piece = draw(st.binary(max_size=4) | st.sampled_from(PIECES))
    return text[:at] + piece + text[at + draw(st.integers(0, 3)) :]


def _doubled(draw: st.DrawFn, text: bytes) -> bytes:
    """Repeat a part: of an object that gives a field twice."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, len(text)))
    return text[:end] + b"," + text[start:]


def _encoded(draw: st.DrawFn, text: bytes) -> bytes:
    name = draw(st.sampled_from(["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-7"]))
    return text.decode("utf-8", "replace").encode(name)


def _nested(draw: st.DrawFn, text: bytes) -> bytes:
    depth = draw(st.sampled_from([50, 1_000, 200_000]))
    opened = b"[" * depth
    return draw(st.sampled_from([opened + text + b"]" * depth, b'{"a":' * depth, opened]))


PIECES = (b"1e400", b"-1e400", b"NaN", b"Infinity", b"-0", b"\\ud800", b"\xff\xfe",
          b"\xed\xa0\x80", b"9" * 5000,
          b"\0", b"\\u0000", b"null", b"}{", b"]", b'"', b"\\")  # fmt: skip
Break = Callable[[st.DrawFn, bytes], bytes]
BREAKS: tuple[Break, ...] = (_cut, _replaced, _doubled, _encoded, _nested)
