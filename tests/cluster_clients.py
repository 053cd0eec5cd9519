"""What the clients of DB-GPT's cluster protocol do with a body, written from its description.

A frame becomes a value of the version's own class, so a key that the version does not know is
a TypeError here as it is there. See the key table in the project's protocol notes.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OutputOf037:
    text: str
    error_code: int
    model_context: dict[str, Any] | None = None


@dataclass
class OutputOf041(OutputOf037):
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


@dataclass
class OutputOf042(OutputOf041):
    metrics: dict[str, Any] | None = None


@dataclass
class OutputOf053(OutputOf042):
    incremental: bool = False


class OutputOf070:
    """Takes any key, but exactly one of text and content."""

    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    model_context: dict[str, Any] | None = None

    def __init__(
        self, error_code: int, text: str | None = None, content: Any = None, **others: Any
    ) -> None:
        if (text is None) == (content is None):
            raise ValueError("one of text and content, not both and not none")
        self.error_code, self.text = error_code, text if content is None else str(content)
        for name in ("finish_reason", "usage", "model_context"):
            setattr(self, name, others.get(name))


Output = OutputOf037 | OutputOf070


@dataclass(frozen=True)
class ClusterClient:
    """One version: what it sends beside the messages, how it reads, and how it cuts.

    Attributes:
        cuts: Whether ``echo`` counts as true where a frame does not say; None never cuts.
        sends: Keys of its body that others do not send.
    """

    version: str
    output: type[Any]
    cuts: bool | None = None
    sends: dict[str, Any] = field(default_factory=dict)

    def body(self, model: str) -> dict[str, Any]:
        messages = [
            {"role": "system", "content": "S", "round_index": 0},
            {"role": "human", "content": "hi", "round_index": 1},
        ]
        common = {"model": model, "messages": messages, "temperature": 0.5, "max_new_tokens": 4000}
        return common | {"echo": False} | self.sends

    def read(self, chunks: Iterable[bytes]) -> Iterator[Output]:
        """Put chunks together; what no NUL ends is lost."""
        rest = b""
        for chunk in chunks:
            rest += chunk
            while b"\0" in rest:
                frame, rest = rest.split(b"\0", 1)
                if frame:
                    yield self.output(**json.loads(frame.decode()))

    def shown(self, output: Output) -> str:
        """Return the text without the prompt that this version believes to be in front of it."""
        context = output.model_context or {}
        if self.cuts is not None and context.get("echo", self.cuts):
            prompt = str(self.sends.get("prompt", "")).replace("</s>", " ")
            return str(output.text)[len(prompt) + 11 :]
        return str(output.text)


RENDERED = {"prompt": "S###human:hi</s>###", "stop": "###"}
SPAN = {"span_id": "a:b"}
CONTEXT = {"version": "v2", "context": {"stream": True, "user_name": None, "extra": {}}}
CLIENTS = [
    ClusterClient("0.3.7", OutputOf037, cuts=True, sends=RENDERED),
    ClusterClient("0.4.0", OutputOf037, cuts=True, sends=RENDERED | SPAN),
    ClusterClient("0.4.1", OutputOf041, cuts=True, sends=RENDERED | SPAN),
    ClusterClient("0.4.3", OutputOf042, cuts=True, sends=RENDERED | SPAN),
    ClusterClient("0.4.5", OutputOf042, cuts=True, sends=RENDERED | SPAN),
    ClusterClient("0.4.6", OutputOf042, cuts=False, sends=RENDERED | SPAN),
    ClusterClient("0.5.2", OutputOf042, cuts=False, sends=SPAN | CONTEXT),
    ClusterClient("0.6.3", OutputOf053, cuts=False, sends=SPAN | CONTEXT),
    ClusterClient("0.7.0", OutputOf070, cuts=False, sends=SPAN | CONTEXT),
    ClusterClient("0.8.2", OutputOf070, sends=SPAN | {"context": CONTEXT["context"]}),
]


@dataclass
class ExtraMetadata:
    prompt_roles: list[str]
    prompt_sep: str
    prompt_chat_template: str | None = None


@dataclass
class _Metadata:
    model: str
    context_length: int
    chat_model: bool
    metadata: dict[str, Any]
    ext_metadata: Any

    def __post_init__(self) -> None:
        self.ext_metadata = ExtraMetadata(**self.ext_metadata)


@dataclass
class MetadataOf047(_Metadata):
    is_function_calling_model: bool = False


@dataclass
class MetadataOf070(_Metadata):
    label: str | None = None
    max_output_length: int | None = None
    description: str | None = None
    link: str | None = None
    function_calling: bool = False


@dataclass
class SupportedOf038:
    model: str
    path: str
    worker_type: str
    path_exist: bool
    proxy: bool
    enabled: bool
    params: list[Any]


@dataclass
class SupportedOf070(SupportedOf038):
    provider: str = "hf"
    description: str | None = None


@dataclass
class Worker:
    host: str
    port: int
    models: list[Any]
