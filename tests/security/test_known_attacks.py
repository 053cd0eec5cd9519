"""Attacks that have succeeded on servers like this one, each made on this one.

Every test's docstring begins with the names of what was found elsewhere, and says what is shown
here. This module has attacks by what a request says; those by who asks, on the engine and by files
have modules of their own. The last test holds all of them against the list in
``FOUND_ELSEWHERE``; those that cannot apply here say why.
"""

import ast
import gzip
import re
import time
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from dbgpt_guanaco.settings import ModelSettings, ServerSettings
from security.attacked import CHAT, EVIL, HELLO, WORKER_HELLO, Server
from security.source_rules import RULES, modules, violations


@pytest.fixture
def server() -> Server:
    return Server()


def breakers_of(rule: str) -> set[str]:
    """Return the modules that do what a rule forbids."""
    matches, allowed = RULES[rule]
    return {path for path, tree in modules().items() if list(violations(tree, matches))} - allowed


@pytest.mark.parametrize("n", [9, 10**9, 2**31, 2**63, 2**64, 10**300])
@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), ("/v1/completions", {"prompt": "hi"})])
async def test_n_is_bounded(server: Server, path: str, body: dict[str, Any], n: int) -> None:
    """CVE-2026-34756: n without an upper bound blocked the loop and took all memory."""
    answer = await server.post(path, body | {"n": n})

    assert answer.status_code == 400
    assert server.engine.requests == []


@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs", "tool_parser"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/tokenize"])
async def test_no_template_is_taken_from_a_request(server: Server, path: str, field: str) -> None:
    """GHSA-69j4-grxj-j64p, PYSEC-2026-2013, PYSEC-2026-4349, CVE-2026-115911: a template of the
    client's own was rendered, and could compute for ever."""
    loop = "{% for _ in range(10**12) %}{% endfor %}"
    body = HELLO if path == CHAT else {"prompt": "hi"}

    answer = await server.post(path, body | {field: loop})

    assert answer.status_code == 400
    assert f"{field}: is not a field of this request" in answer.json()["error"]["message"]
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", {"prompt": "hi"}), ("/api/worker/generate", WORKER_HELLO)],
)
async def test_dialects_that_ignore_other_keys_ignore_templates(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    """GHSA-69j4-grxj-j64p: in DB-GPT's dialects, which allow any key, a template has no effect."""
    await server.post(path, body)
    await server.post(path, body | {"chat_template": "evil", "prompt_template": "evil"})

    plain, other = server.engine.requests
    assert plain.prompt == other.prompt


TOOL = {"type": "function", "function": {"name": "(a+)+$"}}


@pytest.mark.parametrize("tools", [[TOOL], "(a+)+$"])
async def test_no_tool_pattern_is_compiled(server: Server, tools: Any) -> None:
    """GHSA-vrq3-r879-7m65: a tool's pattern was searched for with a regex that never ended."""
    answer = await server.post(CHAT, HELLO | {"tools": tools})

    assert answer.status_code == 400
    assert server.engine.requests == []


def test_nothing_is_pickled() -> None:
    """CVE-2024-9053, CVE-2025-29783, CVE-2025-32444, CVE-2025-47277, CVE-2025-66455,
    CVE-2026-115912: pickles came over sockets that were bound to all interfaces."""
    assert not breakers_of("pickle")
    assert ServerSettings().host == "127.0.0.1"


def test_nothing_trusts_remote_code_by_itself() -> None:
    """CVE-2026-46517, CVE-2026-46432, LLAMA-FACTORY-2026-06: trust_remote_code was True in the
    source, whatever the user said."""
    assert not breakers_of("trust_remote_code")
    assert not breakers_of("an unsaid trust_remote_code")
    assert ModelSettings().trust_remote_code is False


ELSEWHERE = [
    "//evil.example",
    "//evil.example/v1/models/",
    "/\\evil.example/",
    "/v1/models/",
    "/%2f%2fevil.example",
    "/page//evil.example",
    "//evil.example/%2e%2e",
]


@pytest.mark.parametrize("path", ELSEWHERE)
async def test_nobody_is_sent_elsewhere(server: Server, path: str) -> None:
    """CVE-2024-10908: a link to this server led to another one."""
    url = httpx.URL("http://127.0.0.1").copy_with(raw_path=path.encode())

    answer = await server.send("GET", url)

    where = answer.headers.get("location", "/")
    assert httpx.URL("http://127.0.0.1").join(where).host == "127.0.0.1"


async def test_no_file_is_taken(server: Server) -> None:
    """CVE-2024-10907, CVE-2024-10912, CVE-2024-10831, CVE-2024-10833, CVE-2024-10834,
    CVE-2024-10902, CVE-2025-54121, CVE-2023-30798: uploads filled memory and disk, or were written
    to a path of the client's choice."""
    head = 'Content-Disposition: form-data; name="f"; filename="../../a"'
    content = f"--x\r\n{head}\r\n\r\n".encode() * 1000
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    paths = [path for method, path in server.routes() if method == "POST"]
    assert len(paths) > 10

    for path in paths:
        answer = await server.send("POST", path, content=content, headers=headers)
        assert answer.status_code < 500, path  # a cluster's refusal is a frame with 200
    assert not breakers_of("files sent or taken over HTTP")
    assert server.engine.requests == []


@pytest.mark.parametrize("url", [f"{EVIL}/a.png", "file:///etc/passwd", "http://169.254.169.254/"])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
async def test_nothing_is_fetched_for_a_client(server: Server, kind: str, url: str) -> None:
    """CVE-2026-0599, CVE-2024-11603: the server fetched a URL that a request named."""
    parts = [{"type": kind, kind: {"url": url}}]

    answer = await server.post(CHAT, {"messages": [{"role": "user", "content": parts}]})

    assert answer.status_code == 400
    assert server.engine.requests == []


SIZES: dict[str, tuple[dict[str, Any], list[str]]] = {
    CHAT: (
        HELLO | {"logprobs": True},
        ["n", "max_tokens", "max_completion_tokens", "top_k", "top_logprobs", "n_discard",
         "truncate_prompt_tokens"],
    ),
    "/v1/completions": ({"prompt": "hi"}, ["n", "max_tokens", "logprobs", "best_of", "top_k"]),
    "/generate": ({"prompt": "hi"}, ["max_new_tokens", "top_k"]),
    "/api/worker/generate": (WORKER_HELLO, ["max_new_tokens"]),
    "/v1/embeddings": ({"input": "hi"}, ["dimensions"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, (_, fields) in SIZES.items() for field in fields]
)
@pytest.mark.parametrize("value", [-1, -(2**31), -(2**63), -(10**30)])
async def test_no_size_is_negative(server: Server, path: str, field: str, value: int) -> None:
    """CVE-2026-21869, CVE-2024-23605: a negative number of a request wrote before a buffer."""
    body, _ = SIZES[path]

    await server.post(path, body | {field: value})

    assert server.engine.requests == []


PATHS = [
    "../secret",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5csecret",
    "C:%5csecret",
    "a%00b",
    "app.js%00.html",
    "app.js/../../../app.py",
]


@pytest.mark.parametrize("base", ["/page/", "/v1/models/", "/api/v1/models/"])
@pytest.mark.parametrize("name", PATHS)
async def test_a_name_in_a_url_is_no_path(server: Server, base: str, name: str) -> None:
    """CVE-2024-37032, CVE-2026-103663, CVE-2026-35050: a name in a request became a path."""
    assert await server.status_of(base + name) == 404


BOMB = gzip.compress(b" " * 50_000_000)


async def test_a_compressed_body_is_not_unpacked(server: Server) -> None:
    """CVE-2024-12055: a few kilobytes were unpacked into all the memory there was."""
    start = time.monotonic()

    answer = await server.send("POST", CHAT, content=BOMB, headers={"Content-Encoding": "gzip"})

    assert answer.status_code == 415
    assert server.engine.requests == []
    assert time.monotonic() - start < 5


WORDS = [
    "__import__('pathlib').Path({proof!r}).touch()",
    '{{"__class__": "os.system", "args": ["touch {proof}"]}}',
    "!!python/object/apply:os.system ['touch {proof}']",
    "<script>fetch('//evil.example')</script>",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("form", [{}, {"response_format": {"type": "json_object"}}])
async def test_what_a_model_says_is_text(words: str, form: dict[str, Any], tmp_path: Path) -> None:
    """CVE-2026-61539: what a model had written was evaluated as Python."""
    proof = tmp_path / "proof"
    said = words.format(proof=str(proof))

    answer = await Server(said).post(CHAT, HELLO | form)

    assert answer.json()["choices"][0]["message"]["content"] == said
    assert not proof.exists()


def test_nothing_is_evaluated() -> None:
    """CVE-2026-61539: there is no line that could."""
    assert not breakers_of("eval and exec")


async def test_a_range_is_not_cut_out(server: Server) -> None:
    """CVE-2025-62727: a long Range header took time that grew with its square."""
    ranges = ",".join(f"{i}-{i}" for i in range(0, 20_000, 2))
    start = time.monotonic()

    answer = await server.send("GET", "/page/app.js", headers={"Range": f"bytes={ranges}"})

    assert answer.status_code == 200
    assert time.monotonic() - start < 5


def test_the_web_framework_is_one_without_known_holes() -> None:
    """CVE-2025-62727, CVE-2025-54121, CVE-2023-30798: mended in starlette 0.49.1."""
    wanted = [Requirement(text) for text in requires("dbgpt-guanaco") or ()]
    (bound,) = (r.specifier for r in wanted if r.name == "starlette")

    assert not bound.contains("0.49.0")
    assert Version(version("starlette")) >= Version("0.49.1")


# What was found in servers like this one, by product. A name without a number is a report that
# has none.
FOUND_ELSEWHERE = """
vLLM: CVE-2026-34756 GHSA-69j4-grxj-j64p PYSEC-2026-2013 PYSEC-2026-4349 CVE-2026-115911
  PYSEC-2025-54 CVE-2025-48943 GHSA-vrq3-r879-7m65 PYSEC-2026-2303 CVE-2024-9053 CVE-2025-29783
  CVE-2025-32444 CVE-2025-47277 CVE-2026-115912 GHSA-nemotron-auto-map CVE-2025-46570
  CVE-2026-41523 VLLM-KEY-ONLY-V1
transformers: CVE-2026-5241
LMDeploy: CVE-2025-66455 CVE-2026-46517 CVE-2026-46432
FastChat: CVE-2024-10044 CVE-2026-85695 CVE-2024-10908 CVE-2024-10907 CVE-2024-10912
  CVE-2024-11603 CVE-2025-3677
TGI: CVE-2026-0599
llama.cpp: CVE-2026-21869 CVE-2026-43629 CVE-2024-23605 CVE-2025-53630 CVE-2026-27940
  CVE-2026-33298 LLAMA-CPP-RPC LLAMA-CPP-CORS
Ollama: CVE-2024-37032 CVE-2026-103663 CVE-2024-45436 CVE-2024-12055 GO-2025-4251
Xinference: CVE-2026-61539
text-generation-webui: CVE-2025-12488 CVE-2026-35050
LLaMA-Factory: LLAMA-FACTORY-2026-06
DB-GPT: CVE-2024-10831 CVE-2024-10833 CVE-2024-10834 CVE-2024-10902 CVE-2026-73034
  CVE-2026-80104 CVE-2026-51862 CVE-2026-51863
starlette: CVE-2025-62727 CVE-2025-54121 CVE-2023-30798
"""
CANNOT_APPLY = {
    "CVE-2026-43629": "restored a slot from a file: no state of a request is ever saved or read",
    "LLAMA-CPP-RPC": "a protocol between machines that share a model: there is none here",
}
NAME = re.compile(r"\b(?:CVE|GHSA|PYSEC|GO|VLLM|LLAMA)-[A-Za-z0-9-]+")


def shown() -> set[str]:
    """Return what the docstrings of tests in this folder name."""
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_known_attacks*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.update(NAME.findall(ast.get_docstring(node) or ""))
    return found


def test_every_attack_is_shown_or_said_to_be_impossible() -> None:
    listed = NAME.findall(FOUND_ELSEWHERE)

    assert len(listed) == len(set(listed))
    assert set(listed) == shown() | set(CANNOT_APPLY)
    assert not shown() & set(CANNOT_APPLY)
