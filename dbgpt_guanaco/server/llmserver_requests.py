"""Bodies of DB-GPT's 2023 llmserver, and the prompt grammar they carry.

Those clients render a conversation themselves, with ``###`` between turns, for a model that
they only believe to be there. It is read back into messages and written as the loaded family
writes it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.server.fields import (
    MAX_MESSAGES,
    Count,
    Name,
    Seed,
    StopStrings,
    Text,
    TopK,
)
from dbgpt_guanaco.server.rendered_prompts import ROLES, parse_prompt
from dbgpt_guanaco.settings import LegacyEcho, ServerSettings
from dbgpt_guanaco.types import ChatMessage, GenerationRequest, SamplingParams

# What that server generated when nobody said how much.
DEFAULT_NEW_TOKENS = 2048
# Eleven characters, which v0.2.1 to v0.3.2 cut off for a model called guanaco.
PADDING = "Assistant: "


def _listed(value: object) -> object:
    if value == "":  # a client of that time that wants none
        return None
    return [value] if isinstance(value, str) else value


class LegacyMessage(BaseModel):
    """One message of v0.3.2 and later."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "human", "ai", "user", "assistant", "view"]
    content: Text


Messages = Annotated[list[LegacyMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class LegacyRequest(BaseModel):
    """``/generate_stream`` and ``/generate``. That server read no schema: other keys are ignored.

    Attributes:
        model: The client's own LLM_MODEL; it tells what the client will cut off, and chooses a
            LoRA, but never another model.
        echo: Sent by v0.3.3 and later.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: Name = ""
    prompt: Text = ""
    messages: Messages | None = None
    temperature: float | None = None
    max_new_tokens: Count | None = None
    stop: Annotated[StopStrings | None, BeforeValidator(_listed)] = None
    echo: bool | None = None
    top_p: float | None = None
    top_k: TopK | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Seed | None = None

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """The conversation, from ``messages`` where there are any, else from the prompt."""
        if self.messages:
            return [
                ChatMessage(ROLES[m.role], m.content) for m in self.messages if m.role != "view"
            ]
        return parse_prompt(self.prompt)

    def to_generation_request(
        self, template: PromptTemplate, settings: ServerSettings, request_id: str
    ) -> GenerationRequest:
        """Return what the engine takes; a long prompt keeps its newest tokens, as it did there.

        Raises:
            InvalidRequestError: There is no prompt, or a value is out of range.
        """
        if not self.prompt.strip() and not self.messages:
            raise InvalidRequestError("prompt", "is empty")
        given = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        values: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        sampling = SamplingParams(
            temperature=settings.temperature if self.temperature is None else self.temperature,
            max_new_tokens=(
                DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
            ),
            stop=(*dict.fromkeys((*template.stop, *(self.stop or ()))),),
            seed=self.seed,
            **values,
        )
        prompt = template.render(self.chat_messages)
        return GenerationRequest(
            prompt=prompt.text,
            sampling=sampling,
            request_id=request_id,
            add_special_tokens=prompt.add_special_tokens,
            truncate_prompt_tokens=0,
        )


class EmbeddingRequest(BaseModel):
    """``/embedding``."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[Text, Field(min_length=1)]


def echo_padding(body: LegacyRequest, mode: LegacyEcho) -> str:
    """Return what must stand before the text, because the client will cut it off.

    Clients up to v0.3.2 cut the prompt, or eleven characters, off the front, by the name in
    their own LLM_MODEL. v0.2.0 cannot be told from v0.2.1 on the wire, hence the setting.
    """
    prompt = body.prompt.replace("</s>", " ")
    if mode != "auto":
        return {"none": "", "pad11": PADDING, "prompt": prompt + PADDING}[mode]
    name = body.model.lower()
    is_v01 = body.prompt.rstrip().endswith("Assistant:")
    if body.echo is not None:  # v0.3.3 and later read model_context instead
        return ""
    if "guanaco" in name:
        return "" if is_v01 else PADDING
    if "vicuna" in name and body.messages is None:
        return prompt + (" " if is_v01 else PADDING)
    return ""
