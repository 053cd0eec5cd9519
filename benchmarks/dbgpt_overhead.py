"""What DB-GPT adds to a chat, with this server as its controller and its worker.

::

    make e2e-setup
    .venv-dbgpt/bin/python benchmarks/dbgpt_overhead.py --rounds 20 --out folder

Runs in DB-GPT's environment and starts both programs. In each round the same question is asked
twice, in turn first: at this server directly, and on DB-GPT's page, with the same messages, greedy,
so that the model reads and writes the same tokens. Times are taken at the client, in seconds from
the request to the first text, and to the end.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx  # noqa: E402
from e2e.deployment import MODEL, Deployment, deployed  # noqa: E402
from e2e.ways import WAYS  # noqa: E402
from e2e.web_api import WebApi  # noqa: E402

SYSTEM = "You are a helpful AI assistant."  # DB-GPT's own
QUESTION = "What is a database index, and when is it worth having one?"


@dataclass(frozen=True)
class Times:
    """One answer, in seconds."""

    first_text_s: float
    end_s: float


def timed(pieces: Iterator[str]) -> Times:
    """Read an answer, which is asked for only when its first piece is."""
    start = time.perf_counter()
    next(pieces)
    first = time.perf_counter() - start
    for _ in pieces:
        pass
    return Times(first, time.perf_counter() - start)


def ask_directly(deployment: Deployment, question: str, tokens: int) -> Iterator[str]:
    """Ask this server; yield what is new."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
        ],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    url = f"{deployment.guanaco.address}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            text = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if text:
                yield text


def ask_dbgpt(web: WebApi, conversation: str, question: str, tokens: int) -> Iterator[str]:
    """Ask on DB-GPT's page; yield the text so far."""
    with web.asking(
        "chat_normal", question, conversation=conversation, max_tokens=tokens
    ) as answer:
        yield from answer.texts()


def measure(deployment: Deployment, rounds: int, tokens: int) -> dict[str, list[Times]]:
    """Ask each question both ways, in turn first; return the times by way."""
    web = WebApi(deployment.web.address, MODEL)
    times: dict[str, list[Times]] = {"direct": [], "DB-GPT": []}
    for number in range(-1, rounds):
        # DB-GPT keeps answers to equal questions; a number in front makes each its own.
        question = f"({number + 100}) {QUESTION}"
        conversation = web.new_conversation("chat_normal")
        asked = {
            "direct": ask_directly(deployment, question, tokens),
            "DB-GPT": ask_dbgpt(web, conversation, question, tokens),
        }
        for name in sorted(asked, reverse=bool(number % 2)):
            taken = timed(asked[name])
            if number >= 0:  # the round before only warms both up
                times[name].append(taken)
    web.close()
    return times


def table(times: dict[str, list[Times]]) -> str:
    """Return the times as a table in Markdown."""
    lines = ["| | first text, p50 | end, p50 | end, p90 |", "|---|---|---|---|"]
    for name, taken in times.items():
        ends = sorted(t.end_s for t in taken)
        first = statistics.median(t.first_text_s for t in taken)
        p90 = ends[min(len(ends) - 1, int(len(ends) * 0.9))]
        lines.append(f"| {name} | {first:.3f} s | {statistics.median(ends):.3f} s | {p90:.3f} s |")
    first_ms, end_ms = added_ms(times, "first_text_s"), added_ms(times, "end_s")
    lines.append(f"| added by DB-GPT | {first_ms:.0f} ms | {end_ms:.0f} ms | |")
    return "\n".join(lines)


def added_ms(times: dict[str, list[Times]], what: str) -> float:
    """Return the median over rounds of how much later DB-GPT was, in milliseconds."""
    pairs = zip(times["DB-GPT"], times["direct"], strict=True)
    return float(1000 * statistics.median(getattr(a, what) - getattr(b, what) for a, b in pairs))


def main() -> None:
    """Start both programs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--way", choices=[w.name for w in WAYS], default="cluster-our-controller")
    parser.add_argument("--out", type=Path, help="folder for the table and the numbers")
    arguments = parser.parse_args()
    (way,) = (w for w in WAYS if w.name == arguments.way)
    with tempfile.TemporaryDirectory() as folder, deployed(way, Path(folder)) as deployment:
        times = measure(deployment, arguments.rounds, arguments.tokens)
    shown = table(times)
    print(shown)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "way": way.name,
            "rounds": arguments.rounds,
            "tokens": arguments.tokens,
            "model": MODEL,
            "dbgpt-app": version("dbgpt-app"),
            "machine": f"{platform.machine()}, CPU",
        }
        numbers = {name: [asdict(t) for t in taken] for name, taken in times.items()}
        written = json.dumps(facts | {"times": numbers}, indent=1)
        (arguments.out / f"dbgpt-{way.name}.json").write_text(written + "\n")
        (arguments.out / f"dbgpt-{way.name}.md").write_text(
            f"{way.name}, {arguments.tokens} tokens, {arguments.rounds} rounds\n\n{shown}\n"
        )


if __name__ == "__main__":
    main()
