import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Script, serving
from typer.testing import CliRunner, Result

from benchmarks.serve import app

ROOT = Path(__file__).parents[2]
SMALL = ("--streams", "1,2", "--requests-per-stream", "1", "--timeout-s", "10")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOpenAI]:
    scripts = {
        "good": Script(completion_tokens=6),
        "half": Script(completion_tokens=3),
        "uncounted": Script(usage="none"),
        "busy": Script(status=429),
    }
    with serving(**scripts) as fake:
        yield fake


def serve(*words: str) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "100", "NO_COLOR": "1"})


def load_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_one_server(fake: FakeOpenAI) -> None:
    result = serve("--url", fake.url("good"), *SMALL, "--max-tokens", "6")

    assert result.exit_code == 0, result.output
    assert "TTFT" in result.stdout
    assert "note:" not in result.stdout
    assert "/ peer" not in result.stdout


def test_a_run_with_a_peer_writes_json_and_picture(fake: FakeOpenAI, tmp_path: Path) -> None:
    document_path, picture_path = tmp_path / "out.json", tmp_path / "out.png"

    result = serve(
        *("--url", fake.url("good"), "--peer", f"half={fake.url('half')},fake"),
        *("--api-key", "secret", "--peer-key", "half=hidden", "--rounds", "2", "--raw"),
        *("--json", str(document_path), "--picture", str(picture_path), *SMALL),
    )

    assert result.exit_code == 0, result.output
    assert "ours / peer" in result.stdout
    assert picture_path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = document_path.read_text(encoding="utf-8")
    assert "secret" not in text
    assert "hidden" not in text
    document = load_json(document_path)
    assert [(r["server"], r["streams"]) for r in document["results"]] == [
        ("ours", 1), ("half", 1), ("ours", 2), ("half", 2),
    ]  # fmt: skip
    assert document["parameters"]["streams"] == [1, 2]
    assert document["client"]["python"]
    assert len(document["stages"]) == 8
    assert document["stages"][0]["requests"][0]["output_tokens"] == 6


def test_ratios_in_json_are_those_of_the_results(fake: FakeOpenAI, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    words = ("--peer", f"half={fake.url('half')}", "--json", str(path), *SMALL)

    serve("--url", fake.url("good"), *words)

    document = load_json(path)
    ours, peer = (result["summary"] for result in document["results"][:2])
    assert ours["output_tokens"] == 2 * peer["output_tokens"]
    ratios = document["ratios"][0]["ratios"]
    expected = ours["output_tokens_per_s"] / peer["output_tokens_per_s"]
    assert ratios["output_tokens_per_s"] == pytest.approx(expected)
    assert ratios["ttft_p50"] == pytest.approx(ours["ttft_s"]["p50"] / peer["ttft_s"]["p50"])
    assert "requests" not in document["stages"][0]


def test_errors_alone_are_reported_and_exit_with_1(fake: FakeOpenAI, tmp_path: Path) -> None:
    document_path, picture_path = tmp_path / "out.json", tmp_path / "out.png"
    outputs = ("--json", str(document_path), "--picture", str(picture_path))

    result = serve("--url", fake.url("busy"), "--model", "m", *SMALL, *outputs)

    assert result.exit_code == 1
    assert "1 × http 429" in result.stdout
    assert "e.g." in result.stdout
    assert load_json(document_path)["results"][1]["summary"]["errors"] == {"http 429": 2}
    assert picture_path.stat().st_size > 0


def test_short_and_uncounted_answers_are_noted(fake: FakeOpenAI) -> None:
    words = ("--url", fake.url("uncounted"), *SMALL)

    noted, accepted = serve(*words), serve(*words, "--ignore-eos-check")

    assert "3 of 3 answers came without usage" in noted.stdout
    assert "3 of 3 answers ended before 64 tokens" in noted.stdout
    assert "without usage" in accepted.stdout
    assert "ended before" not in accepted.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--raw"], "--raw has no effect without --json"),
        (["--shared-prefix"], "no effect without --prompt-tokens"),
        (["--seed", "1"], "no effect without --prompt-tokens"),
        (["--streams", "0"], "--streams"),
        (["--json", "no/such/folder/out.json"], "make it first"),
    ],
)
def test_words_without_effect_are_refused_before_the_run(words: list[str], message: str) -> None:
    result = serve("--url", "http://127.0.0.1:9", *words)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_it_runs_as_a_script_and_as_a_module() -> None:
    for words in (["benchmarks/serve.py"], ["-m", "benchmarks.serve"]):
        run = subprocess.run(
            [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "Example: python benchmarks/serve.py --url" in " ".join(run.stdout.split())
