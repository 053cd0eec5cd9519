"""DB-GPT's requests for text → the server's ``/chat/completions``, and its answer back."""

from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from dbgpt.core import MessageConverter, ModelMetadata, ModelOutput, ModelRequest
from dbgpt.core.interface.message import ModelMessage
from dbgpt.model.proxy.base import ProxyLLMClient

from dbgpt_guanaco.dbgpt_plugin.connection import Server, ServerError
from dbgpt_guanaco.dbgpt_plugin.parameters import GuanacoDeployModelParameters
from dbgpt_guanaco.dbgpt_plugin.tokens import GuanacoTokenizer

EMPTY_ANSWER = "(the model gave an empty answer)"
# DB-GPT's name → the server's. ``echo`` and ``context_len`` have no meaning for a chat here: an
# answer never repeats its prompt, and the server knows its own context.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_new_tokens": "max_tokens",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
}


@dataclass
class Answer:
    """What has arrived so far."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event in.

        Raises:
            ServerError: It tells of an error.
        """
        if error := event.get("error"):
            raise ServerError(error.get("message") if isinstance(error, dict) else error)
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            self.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def as_output(self) -> Any:  # noqa: ANN401
        """Return all of it: DB-GPT takes whole texts, never deltas."""
        is_empty = self.finish_reason is not None and not self.text.strip()
        # Of an answer without text, DB-GPT's page shows only an error of its own.
        text = EMPTY_ANSWER if is_empty else self.text
        return ModelOutput.build(text, usage=self.usage, finish_reason=self.finish_reason)

    def as_failure(self, error: ServerError) -> Any:  # noqa: ANN401
        """Return the error after the text: DB-GPT's page cuts off what it has shown already."""
        told = f"{self.text}\n\n**Error:** {error}" if self.text else f"**Error:** {error}"
        return ModelOutput.build(told, error_code=1, usage=self.usage)


class GuanacoLLMClient(ProxyLLMClient):  # type: ignore[misc]  # DB-GPT's types are not seen here
    """One model of one server. It may be used from any event loop."""

    def __init__(self, server: Server, model: str, context_length: int | None = None) -> None:
        super().__init__([model], proxy_tokenizer=GuanacoTokenizer(server))
        self.server = server
        self.context_length: int | None = context_length

    @classmethod
    def param_class(cls) -> type[GuanacoDeployModelParameters]:
        """Return what the TOML is read into."""
        return GuanacoDeployModelParameters

    @classmethod
    def new_client(
        cls,
        model_params: GuanacoDeployModelParameters,
        default_executor: Executor | None = None,  # noqa: ARG003 - nothing blocks
    ) -> "GuanacoLLMClient":
        """Return a client for what the TOML says."""
        server = Server(
            cls._resolve_env_vars(model_params.api_base) or "",
            cls._resolve_env_vars(model_params.api_key) or "",
            cls._resolve_env_vars(model_params.http_proxy) or "",
        )
        model: str = model_params.real_provider_model_name
        return cls(server, model, model_params.context_length)

    async def generate_stream(
        self, request: ModelRequest, message_converter: MessageConverter | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield the text so far, and at last why it ended and what it cost; errors as text."""
        messages = request.get_messages()
        if message_converter:
            messages = message_converter.convert(messages, ModelMetadata(model=request.model))
        body = chat_body(request.model or self.default_model, messages, vars(request))
        async with aclosing(self.outputs("/chat/completions", body)) as outputs:
            async for output in outputs:
                yield output

    async def generate(
        self, request: ModelRequest, message_converter: MessageConverter | None = None
    ) -> Any:  # noqa: ANN401
        """Return the whole answer. It is streamed as well, so that a long one is not a silence."""
        async with aclosing(self.generate_stream(request, message_converter)) as outputs:
            return [output async for output in outputs][-1]

    async def outputs(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield DB-GPT's outputs for a request's answer; the last has its end or its error."""
        answer = Answer()
        try:
            async with aclosing(self.server.stream(path, body)) as arrivals:
                async for events in arrivals:
                    shown = answer.text
                    for event in events:
                        answer.add(event)
                    if answer.text != shown or answer.finish_reason:
                        yield answer.as_output()
            if answer.finish_reason is None:
                raise ServerError(self.server.broken_off)  # noqa: TRY301
        except ServerError as error:
            yield answer.as_failure(error)

    async def models(self) -> list[Any]:
        """Describe the model, with its true context length if the server tells it."""
        if self.context_length is None:
            listed = (await self.server.aget("/models")).get("data", [])
            self.context_length = context_tokens(listed, self.default_model)
        return [ModelMetadata(model=self.default_model, context_length=self.context_length)]


def chat_body(
    model: str, messages: list[ModelMessage], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of ``/chat/completions``."""
    written = ModelMessage.to_common_messages(messages)
    return {"model": model, "messages": written, "stream": True} | sampling_fields(sampling)


def completion_body(model: str, prompt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of ``/completions``."""
    return {"model": model, "prompt": prompt, "stream": True} | sampling_fields(sampling)


def sampling_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that were given; a temperature of 0 is one that was given."""
    fields = {theirs: given.get(ours) for ours, theirs in SAMPLING.items()}
    if (fields["top_k"] or 0) < 0:
        del fields["top_k"]  # DB-GPT's API says -1 for all tokens
    return {name: value for name, value in fields.items() if value not in (None, "", [])}


def context_tokens(listed: list[dict[str, Any]], model: str) -> int:
    """Return a model's context length from the server's list.

    Raises:
        ServerError: The model is not in it.
    """
    chat = [each for each in listed if each.get("kind") != "embedding"]
    lengths = {each["id"]: int(each["max_model_len"]) for each in chat if "max_model_len" in each}
    if model not in lengths:
        known = ", ".join(lengths) or "none"
        raise ServerError(
            f"unknown model {model!r}; known: {known}. In DB-GPT's TOML, backend (or name) must be "
            "one that is known."
        )
    return lengths[model]
