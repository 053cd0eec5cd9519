"""What DB-GPT's clients of 2023 do with a body, written from the protocol's description.

Each client sends the body of its version and cuts characters off the front of what comes
back, by the name in its own LLM_MODEL. See the padding matrix in the project's protocol notes.
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LegacyClient:
    """One version: which fields it sends, and how it cuts.

    Attributes:
        extra: Characters cut beside the prompt.
        guanaco: What it cuts for a guanaco: ``whole`` nothing, ``prompt`` the prompt too,
            ``eleven`` eleven characters.
    """

    version: str
    extra: int
    guanaco: str
    has_messages: bool = False
    has_echo: bool = False
    reads_length: bool = False
    reads_echo: bool = False

    def body(self, name: str) -> dict[str, Any]:
        is_v01 = self.version == "v0.1"
        prompt = "S###USER: hi###Assistant:" if is_v01 else "S###human:hi</s>###"
        body: dict[str, Any] = {
            "model": name, "prompt": prompt, "temperature": 0.7, "max_new_tokens": 1024,
            "stop": "###",
        }  # fmt: skip
        if self.has_messages:
            body["messages"] = [{"role": "human", "content": "hi"}]
        if self.has_echo:
            body["echo"] = False
        return body

    def shown(self, content: bytes, name: str) -> str:
        """Return the text of the last frame, cut as this version cuts it."""
        *_, last = [json.loads(piece.decode()) for piece in content.split(b"\0") if piece]
        text, context = str(last["text"]), last.get("model_context") or {}
        if self.reads_echo and not context.get("echo", True):
            return text
        skip = len(self.body(name)["prompt"].replace("</s>", " ")) + self.extra
        if self.reads_length and context.get("prompt_echo_len_char", -1) != -1:
            skip = context["prompt_echo_len_char"]
        if "vicuna" in name or (self.has_messages and "llama-2" in name):
            return text[skip:]
        if "guanaco" in name:
            cut = {"whole": 0, "prompt": skip, "eleven": 11}[self.guanaco]
            return text[cut:].replace("<s>", "")
        return text


CLIENTS = [
    LegacyClient("v0.1", extra=1, guanaco="whole"),
    LegacyClient("v0.2.0", extra=11, guanaco="prompt"),
    LegacyClient("v0.2.1", extra=11, guanaco="eleven"),
    LegacyClient("v0.3.0", extra=11, guanaco="eleven"),
    LegacyClient("v0.3.2", extra=11, guanaco="eleven", has_messages=True, reads_length=True),
    LegacyClient(
        "v0.3.3", extra=11, guanaco="eleven", has_messages=True, has_echo=True,
        reads_length=True, reads_echo=True,
    ),
    LegacyClient(
        "v0.3.6", extra=11, guanaco="eleven", has_messages=True, has_echo=True,
        reads_length=True, reads_echo=True,
    ),
]  # fmt: skip


def parse_generate(version: str, body: str) -> str:
    """Read the body of ``/generate`` as a version does; raise as it would raise."""
    if version in ("v0.1", "v0.2.0", "v0.2.2"):
        if version == "v0.2.0":
            body = body.lower()
        value = json.loads(json.loads(body)["response"].replace("\x00", ""))
    else:
        value = json.loads(body)
        value = json.loads(value) if isinstance(value, str) else value
    if value["error_code"] != 0:
        raise ValueError("Model server error!code=" + value["error_code"])
    segments = str(value["text"]).split("###")
    marked = [s for s in segments if "ASSISTANT:" in s]
    return (marked or segments)[-1].replace("ASSISTANT:", "").strip()
