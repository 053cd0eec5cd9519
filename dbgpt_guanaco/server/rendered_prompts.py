"""The prompt grammar of DB-GPT up to v0.4.6, read back into messages.

Those clients render a conversation themselves, with ``###`` between turns, for a model that
they only believe to be there.
"""

import re

from dbgpt_guanaco.types import ChatMessage, Role

SEPARATOR = "###"
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
}
_TURN = re.compile(r"\s*(system|user|human|assistant|ai)\s*:(.*)", re.IGNORECASE | re.DOTALL)


def parse_prompt(prompt: str) -> list[ChatMessage]:
    """Read a rendered prompt back into messages.

    ``system###USER: …###Assistant: …###…###Assistant:`` (v0.1) and
    ``define###human:…###ai:…###human:…###`` (v0.2 and later). A text before the first role is a
    system message; one after it belongs to the message before (a heading in Markdown has the
    same ``###``). A prompt without roles is one question.
    """
    if not any(_TURN.match(part) for part in prompt.split(SEPARATOR)):
        return [ChatMessage("user", prompt.strip())]
    turns: list[tuple[Role, str]] = []
    for part in prompt.split(SEPARATOR):
        if match := _TURN.match(part):
            turns.append((ROLES[match[1].lower()], match[2]))
        elif turns and part.strip():
            role, content = turns[-1]
            turns[-1] = (role, f"{content}{SEPARATOR}{part}")
        elif part.strip():
            turns.append(("system", part))
    messages = [ChatMessage(role, content.strip()) for role, content in turns if content.strip()]
    if any(m.role == "user" for m in messages):
        return messages
    return [ChatMessage("user", prompt.strip())]
