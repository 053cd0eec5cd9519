"""Bodies of the OpenAI dialect → what an engine takes.

A field that is not honoured here is refused by name, or pinned to the one value that is.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server.fields import (
    MAX_FIELDS,
    MAX_MESSAGES,
    Count,
    FewFields,
    LogitBias,
    Name,
    Note,
    Seed,
    StopStrings,
    StopTokenIds,
    Text,
    TokenIds,
    TopK,
    TopLogprobs,
)
from dbgpt_guanaco.server.openai_structure import Body, StructureFields
from dbgpt_guanaco.types import ChatMessage, GenerationRequest, Role, SamplingParams

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    # DB-GPT before v0.3.0 sends its own names.
    "human": "user",
    "ai": "assistant",
}
MAX_CHOICES = 128  # the ceiling of the setting GUANACO_MAX_N
# OpenAI's default for completions; chats have none.
COMPLETION_TOKENS = 16
MAX_PARTS = 1000  # of one message


class TextPart(Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


Parts = Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]


def _only_text(value: object) -> object:
    kinds = [p.get("type") for p in value if isinstance(p, dict)] if isinstance(value, list) else []
    other = next((kind for kind in kinds if kind != "text"), None)
    if other is not None:
        raise ValueError("only text is understood, no images and no audio")
    return value


class Message(FewFields):
    """One message. Fields that clients copy from an answer may stand in it if they are empty."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "human", "ai"]
    content: Annotated[Text | Parts | None, BeforeValidator(_only_text)] = None
    name: None = None

    @model_validator(mode="after")
    def _has_nothing_unread(self) -> "Message":
        unread = sorted(k for k, v in (self.model_extra or {}).items() if v)
        if unread:
            raise ValueError(f"{', '.join(unread)}: not understood in a message")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


def _no_tools(value: object) -> object:
    if value:
        raise ValueError("tools are not supported")
    return value


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def chat_messages(messages: Sequence[Message]) -> list[ChatMessage]:
    """Return a conversation in our own roles."""
    return [ChatMessage(ROLES[m.role], m.text) for m in messages]


class StreamOptions(Body):
    """What a stream carries beside text."""

    include_usage: bool = False


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Sampling(StructureFields):
    """Fields that chats and completions share; null means absent."""

    model: Name | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[StopStrings, BeforeValidator(_listed), Field(max_length=16)] | None = None
    max_tokens: Count | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    # The caller's own notes and permissions; they have no effect on an answer.
    user: Note | None = None
    metadata: Annotated[dict[Note, Note], Field(max_length=MAX_FIELDS)] | None = None
    store: Literal[False] | None = None
    # Beyond OpenAI, named as in vLLM.
    top_k: TopK | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: StopTokenIds | None = None
    truncate_prompt_tokens: Count | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "_Sampling":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is only for streams")
        return self

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    def sampling(
        self,
        *,
        default_temperature: float,
        max_new_tokens: int | None,
        stop: tuple[str, ...],
        top_logprobs: int | None,
        choice: int,
    ) -> SamplingParams:
        """Return the parameters of one of the wanted answers.

        Raises:
            InvalidRequestError: A value is out of range.
        """
        given = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        values: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        temperature = default_temperature if self.temperature is None else self.temperature
        return SamplingParams(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            stop=(*dict.fromkeys((*stop, *(self.stop or ()))),),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logit_bias=self._bias(),
            # Equal seeds would give n equal answers.
            seed=None if self.seed is None else self.seed + choice,
            logprobs=top_logprobs is not None,
            top_logprobs=top_logprobs or 0,
            structure=self.structure,
            **values,
        )

    def _bias(self) -> dict[int, float]:
        try:
            return {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}
        except ValueError:
            raise InvalidRequestError("logit_bias", "keys must be token ids") from None


class ChatCompletionRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Any], BeforeValidator(_no_tools), Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None  # there are no tools to call

    def to_generation_requests(
        self, template: PromptTemplate, default_temperature: float, request_id: str
    ) -> list[GenerationRequest]:
        """Return one request for each wanted answer.

        Raises:
            InvalidRequestError: A value is out of range, or the template refuses the messages.
        """
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs", "needs logprobs")
        prompt = template.render(chat_messages(self.messages))
        return [
            GenerationRequest(
                prompt=prompt.text,
                sampling=self.sampling(
                    default_temperature=default_temperature,
                    max_new_tokens=self.max_completion_tokens or self.max_tokens,
                    stop=template.stop,
                    top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                    choice=choice,
                ),
                request_id=request_id,
                add_special_tokens=prompt.add_special_tokens,
                truncate_prompt_tokens=self.truncate_prompt_tokens,
            )
            for choice in range(self.choices)
        ]


class CompletionRequest(_Sampling):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(max_length=MAX_CHOICES, fail_fast=True)]
        | Annotated[list[TokenIds], Field(max_length=MAX_CHOICES, fail_fast=True)]
    )
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs: prompts have no log-probabilities here")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt on its own."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [tuple(i for i in self.prompt if isinstance(i, int))]
        several = [p for p in self.prompt if not isinstance(p, int)]
        return [p if isinstance(p, str) else tuple(p) for p in several]

    def to_generation_requests(
        self, default_temperature: float, request_id: str
    ) -> list[GenerationRequest]:
        """Return one request for each wanted answer, those of one prompt side by side.

        Raises:
            InvalidRequestError: There is no prompt, or a value is out of range.
        """
        if not self.prompts:
            raise InvalidRequestError("prompt", "is empty")
        return [
            GenerationRequest(
                prompt=prompt,
                sampling=self.sampling(
                    default_temperature=default_temperature,
                    max_new_tokens=self.max_tokens or COMPLETION_TOKENS,
                    stop=(),
                    top_logprobs=self.logprobs,
                    choice=choice,
                ),
                request_id=request_id,
                continues_prompt=True,
                truncate_prompt_tokens=self.truncate_prompt_tokens,
            )
            for prompt in self.prompts
            for choice in range(self.choices)
        ]


class TokenizeRequest(Body):
    """``POST /v1/tokenize``: a text or a conversation."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens is for a prompt; a template decides for messages")
        return self


class DetokenizeRequest(Body):
    """``POST /v1/detokenize``."""

    model: Name | None = None
    tokens: TokenIds
