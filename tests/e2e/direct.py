"""This server asked without DB-GPT between."""

import httpx

from e2e.deployment import MODEL
from e2e.processes import Program


def direct_answer(guanaco: Program, messages: list[tuple[str, str]], max_tokens: int) -> str:
    """Return the model's likeliest answer to messages, given as (role, content)."""
    body = {
        "model": MODEL,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    url = f"{guanaco.address}/v1/chat/completions"
    answer = httpx.post(url, json=body, timeout=120, trust_env=False).raise_for_status().json()
    return str(answer["choices"][0]["message"]["content"])
