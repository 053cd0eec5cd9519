from pathlib import Path

import pytest

from benchmarks.arguments import (
    Target,
    check_output,
    check_url,
    parse_streams,
    parse_targets,
    read_questions,
)
from benchmarks.load import BenchmarkError, Load

CHAT = "/v1/chat/completions"
OURS = Target("ours", "http://a:1/", None, "secret")


def test_peers_have_a_name_a_url_a_model_and_a_key() -> None:
    peers = ["vllm=http://b:2/,org/model", "other=https://c"]

    targets = parse_targets(OURS, peers, ["vllm=k=y"], CHAT)

    assert targets == [
        Target("ours", "http://a:1", None, "secret"),
        Target("vllm", "http://b:2", "org/model", "k=y"),
        Target("other", "https://c", None, None),
    ]


@pytest.mark.parametrize(
    ("peers", "keys", "message"),
    [
        (["http://b"], [], "must look like NAME=URL"),
        (["ours=http://b"], [], "'ours' is taken"),
        (["b=http://b", "b=http://c"], [], "'b' is taken"),
        (["b=localhost:80"], [], "must start with http"),
        (["b=http://b"], ["c=key"], "no --peer is called c"),
        (["b=http://b"], ["b=1", "b=2"], "two keys"),
        ([], ["key"], "must look like NAME=KEY"),
    ],
)
def test_wrong_peers_are_refused(peers: list[str], keys: list[str], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        parse_targets(OURS, peers, keys, CHAT)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://u:p@a", "http://a?b"]
)
def test_urls_that_cannot_work_are_refused(url: str) -> None:
    with pytest.raises(BenchmarkError):
        check_url(url, CHAT)


def test_streams_are_read_in_order() -> None:
    assert parse_streams("8, 1,4") == (8, 1, 4)


@pytest.mark.parametrize("word", ["", "0", "1,", "1,1", "-1", "a", "1.5"])
def test_wrong_streams_are_refused(word: str) -> None:
    with pytest.raises(BenchmarkError, match="--streams"):
        parse_streams(word)


def test_questions_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("one?\n\n  zwei ü?  \n", encoding="utf-8")

    assert read_questions(path) == ("one?", "zwei ü?")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_files_without_questions_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(content)

    with pytest.raises(BenchmarkError, match="--prompts"):
        read_questions(path)


def test_an_output_needs_its_folder(tmp_path: Path) -> None:
    check_output("--json", tmp_path / "out.json")
    with pytest.raises(BenchmarkError, match="make it first"):
        check_output("--json", tmp_path / "missing" / "out.json")


def test_an_output_needs_its_package(tmp_path: Path) -> None:
    check_output("--picture", tmp_path / "out.png", package="json")
    with pytest.raises(BenchmarkError, match="pip install no_such_package"):
        check_output("--picture", tmp_path / "out.png", package="no_such_package")


@pytest.mark.parametrize(
    ("endpoint", "models"),
    [
        (CHAT, "/v1/models"),
        ("/v1/completions", "/v1/models"),
        ("/api/v2/completions", "/api/v2/models"),
    ],
)
def test_models_are_listed_next_to_the_endpoint(endpoint: str, models: str) -> None:
    assert Load(endpoint=endpoint).models_endpoint == models


@pytest.mark.parametrize("load", [{"endpoint": "/v1/embeddings"}, {"endpoint": "v1/completions"}])
def test_wrong_endpoints_are_refused(load: dict[str, str]) -> None:
    with pytest.raises(BenchmarkError, match="--endpoint"):
        Load(endpoint=load["endpoint"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    with pytest.raises(BenchmarkError, match="--temperature"):
        Load(temperature=number)
    with pytest.raises(BenchmarkError, match="--timeout-s"):
        Load(timeout_s=number)
