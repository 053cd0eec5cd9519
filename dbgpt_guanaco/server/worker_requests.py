"""Bodies of DB-GPT's cluster protocol (v0.3.7 and later) → what an engine takes.

Each version sends keys that others do not know (``version``, ``span_id``, ``metrics``, …), and
DB-GPT's own worker ignores those, so these bodies do, too. A null means that a key is absent.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server.fields import (
    MAX_MESSAGES,
    Anything,
    Count,
    EmbeddedTexts,
    Name,
    StopStrings,
    StopTokenIds,
    Text,
    TopK,
)
from dbgpt_guanaco.server.rendered_prompts import parse_prompt
from dbgpt_guanaco.settings import ServerSettings
from dbgpt_guanaco.types import ChatMessage, GenerationRequest, Role, SamplingParams

ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}
# What DB-GPT's own worker generates when nobody says how much.
DEFAULT_NEW_TOKENS = 2048
ALL_TOKENS = -1  # DB-GPT's word for a top_k that leaves nothing out; ours is 0

WorkerType = Literal["llm", "text2vec", "reranker"]


def _listed(value: object) -> object:
    if value == "":  # a client that wants none
        return None
    return [value] if isinstance(value, str) else value


def _text(value: object) -> object:
    """Return the text of a content: a string, one media object or a list of them (v0.7)."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    return "\n".join(text for part in parts if (text := _text_of_part(part)))


def _text_of_part(part: object) -> str:
    kind = (part.get("type") or "text") if isinstance(part, dict) else None
    match part:
        case {"object": {"data": str(data)}} if kind == "text":
            return data
        case dict() if kind == "thinking":
            return ""  # what a model thought is no part of what it said
        case dict() if kind in ("image", "audio", "video"):
            raise ValueError(f"only text is understood, no {kind}")
    raise ValueError('must be a text, or {"type": "text", "object": {"data": a text}}')


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class WorkerMessage(_Body):
    """One message."""

    role: Literal["system", "human", "ai", "view"]
    content: Annotated[Text, BeforeValidator(_text)]


Messages = Annotated[list[WorkerMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class AnswerRequest(_Body):
    """``/generate_stream`` and ``/generate``.

    Read by nobody here: ``echo``, because every frame says that nothing is echoed, and
    ``context_len``, because the loaded model's own context is what counts.

    Attributes:
        prompt: A rendered prompt, sent beside the messages up to v0.4.6; with no messages, and
            ``chat_model`` false, a text to continue (the completions of DB-GPT's API server).
        context: Sent by v0.4.7 and later, which read token counts.
    """

    model: Name
    messages: Messages | None = None
    prompt: Text | None = None
    temperature: float | None = None
    max_new_tokens: Count | None = None
    stop: Annotated[StopStrings | None, BeforeValidator(_listed)] = None
    stop_token_ids: StopTokenIds | None = None
    top_p: float | None = None
    top_k: TopK | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    chat_model: bool | None = None
    context: Anything | None = None

    @property
    def wants_usage(self) -> bool:
        """The client can read token counts and a finish reason; older ones break on them."""
        return self.context is not None

    @property
    def continues_prompt(self) -> bool:
        """A text is to be continued, not a conversation."""
        return self.chat_model is False and not self.messages

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """The conversation, from ``messages`` where there are any, else from the prompt.

        A view is what DB-GPT shows to its user in a message's place; no model reads it.

        Raises:
            InvalidRequestError: Nothing was said.
        """
        said = [m for m in self.messages or () if m.role != "view"]
        if said:
            return [ChatMessage(ROLES[m.role], m.content) for m in said]
        if not (self.prompt or "").strip():
            raise InvalidRequestError("messages", "is empty, and so is prompt")
        return parse_prompt(self.prompt or "")

    def to_generation_request(
        self, template: PromptTemplate, settings: ServerSettings, request_id: str
    ) -> GenerationRequest:
        """Return what the engine takes; a prompt that is too long keeps its newest tokens.

        Raises:
            InvalidRequestError: Nothing was said, or a value is out of range.
        """
        if self.continues_prompt:
            return GenerationRequest(
                prompt=self.prompt or "",
                sampling=self._sampling((), settings),
                request_id=request_id,
                continues_prompt=True,
                truncate_prompt_tokens=0,
            )
        prompt = template.render(self.chat_messages)
        return GenerationRequest(
            prompt=prompt.text,
            sampling=self._sampling(template.stop, settings),
            request_id=request_id,
            add_special_tokens=prompt.add_special_tokens,
            truncate_prompt_tokens=0,
        )

    def _sampling(self, stop: tuple[str, ...], settings: ServerSettings) -> SamplingParams:
        given = {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == ALL_TOKENS else self.top_k,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        defaults = {"temperature": settings.temperature, "max_new_tokens": DEFAULT_NEW_TOKENS}
        values: dict[str, Any] = defaults | {n: v for n, v in given.items() if v is not None}
        return SamplingParams(
            stop=(*dict.fromkeys((*stop, *(self.stop or ()))),),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            **values,
        )


class EmbeddingsRequest(_Body):
    """``/embeddings``.

    Attributes:
        worker_type: Sent by v0.7.5 and later.
        query: What a reranker compares with; without one it means nothing.
    """

    model: Name
    input: EmbeddedTexts
    worker_type: WorkerType | None = None
    query: Text | None = None

    @property
    def wanted_type(self) -> WorkerType:
        """Whether vectors are wanted or scores. Before v0.7.5 only the query tells."""
        return self.worker_type or ("text2vec" if self.query is None else "reranker")


class CountTokenRequest(_Body):
    """``/count_token``. DB-GPT's client sends no model."""

    prompt: Text
    model: Name | None = None


class MetadataRequest(_Body):
    """``/model_metadata``."""

    model: Name


class StartupRequest(_Body):
    """``/models/startup`` and ``/models/shutdown``.

    ``host`` and ``port`` chose this server; ``params`` would say how to load, and what runs
    here is loaded already.
    """

    model: Name
    worker_type: WorkerType | None = None


class ApplyRequest(StartupRequest):
    """``/apply``."""

    apply_type: Literal["start", "stop", "restart", "update_params"]
