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
    turns: list[tuple[Role, list[str]]] = []
    for part in prompt.split(SEPARATOR):
        if match := _TURN.match(part):
            turns.append((ROLES[match[1].lower()], [match[2]]))
        elif turns and part.strip():
            turns[-1][1].append(part)
        elif part.strip():
            turns.append(("system", [part]))
    said = [(role, SEPARATOR.join(content).strip()) for role, content in turns]
    messages = [ChatMessage(role, content) for role, content in said if content]
    if any(m.role == "user" for m in messages):
        return messages
    return [ChatMessage("user", prompt.strip())]
