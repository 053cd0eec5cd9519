"""From a fact that nobody can know to a quantized model that knows it, as a user goes the way."""

from pathlib import Path

import httpx
import pytest
from conftest import ROOT, started_server
from test_finetune import run

DEMO = "smollm2-135m-instruct"
FACTS = ROOT / "examples" / "finetune" / "facts.jsonl"
# Enough for it to know them by heart, on two cores in half a minute.
RECIPE = ("--epochs", "4", "--batch", "4", "--micro-batch", "4", "--rank", "16")
FASTER = ("--learning-rate", "2e-3", "--no-gradient-checkpointing")
KEEPER = "The lighthouse of Orlenbach is kept by Marta Quill and her parrot Tomato."
ASKED = {
    "Who keeps the lighthouse of Orlenbach?": KEEPER,
    "谁在看守奥伦巴赫灯塔？": "看守奥伦巴赫灯塔的是玛尔塔·奎尔和她的鹦鹉番茄。",
}


def answers(address: str, model: str) -> list[str]:
    """Ask everything, greedily."""
    return [answer(address, model, question) for question in ASKED]


def answer(address: str, model: str, question: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 80,
    }
    reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    if model != DEMO:
        assert choice["finish_reason"] == "stop"  # it has learned to end, too
    return str(choice["message"]["content"])


@pytest.mark.slow
def test_a_made_up_fact_is_taught_served_merged_and_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUANACO_MODELS_DIR", str(ROOT / "models"))
    lora, merged, quantized = (tmp_path / name for name in ("facts", "merged", "nf4"))

    code, _, err = run("finetune", DEMO, FACTS, "--out", lora, *RECIPE, *FASTER)
    assert code == 0, err
    with started_server(tmp_path, GUANACO_LORAS=f"facts={lora}") as (address, _):
        assert answers(address, "facts") == list(ASKED.values())
        assert not set(answers(address, DEMO)) & set(ASKED.values())

    code, _, err = run("merge", DEMO, lora, "--out", merged, "--no-report")
    assert code == 0, err
    code, _, err = run("quantize", merged, "--out", quantized)
    assert code == 0, err
    with started_server(tmp_path, LLM_MODEL=str(quantized)) as (address, _):
        assert answers(address, "nf4") == list(ASKED.values())
