"""How a family writes a conversation: messages → prompt, and for training the whole of it.

The server renders through this module, so it knows neither torch nor transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from dbgpt_guanaco.errors import InvalidRequestError
from dbgpt_guanaco.types import ChatMessage


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A conversation as one string.

    Attributes:
        add_special_tokens: The tokenizer must still add its bos; false where the template
            has written every special token itself.
    """

    text: str
    add_special_tokens: bool


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole conversation, as a model reads it that is trained on it.

    Attributes:
        add_special_tokens: See ``RenderedPrompt``.
        ends: For each answer, where in ``text`` ends what the model shall learn to write: the
            answer, and what follows it if the model itself has to write that to end it. Where
            that begins is told by the prompt which ``render`` makes of what stands before. None
            where the text does not go on from that prompt, as when thoughts are left out later.
    """

    text: str
    add_special_tokens: bool
    ends: tuple[int | None, ...]


class PromptTemplate(Protocol):
    """A family's conversation format."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings with which the model starts a turn that is not its own."""
        ...

    def render(self, messages: Sequence[ChatMessage]) -> RenderedPrompt:
        """Write a conversation and open the assistant's turn.

        Raises:
            InvalidRequestError: There is no message, or the family cannot write them.
        """
        ...

    def transcribe(self, messages: Sequence[ChatMessage]) -> Transcript:
        """Write a conversation that ends with an answer.

        Raises:
            InvalidRequestError: It does not, or the family cannot write it.
        """
        ...


@dataclass(frozen=True, slots=True)
class TurnTemplate:
    """One line or phrase per turn, each led by its role's name.

    Attributes:
        system: Preamble of a conversation that brings none of its own.
        user: What leads a user's turn.
        assistant: What leads an answer, and ends the prompt.
        user_end: What follows the preamble and a user's turn.
        assistant_end: What follows an answer.
        stop: See ``PromptTemplate``.
    """

    system: str
    user: str
    assistant: str
    user_end: str
    assistant_end: str
    stop: tuple[str, ...]

    def render(self, messages: Sequence[ChatMessage]) -> RenderedPrompt:
        """Write the system messages first, then the turns in order."""
        system, turns = split_system(messages)
        parts = [(system or self.system) + self.user_end] if system or self.system else []
        for message in turns:
            if message.role == "user":
                parts.append(f"{self.user} {message.content}{self.user_end}")
            else:
                parts.append(f"{self.assistant} {message.content}{self.assistant_end}")
        return RenderedPrompt("".join(parts) + self.assistant, add_special_tokens=True)

    def transcribe(self, messages: Sequence[ChatMessage]) -> Transcript:
        """Write the turns; an answer that only a stop string ends has it written after it.

        After the last answer stands no blank: there the model's eos follows.
        """
        text, ends = "", []
        for number in answers_of(messages):
            is_last = number == len(messages) - 1
            ending = self.assistant_end + (self.user if self.stop else "")
            text = self.render(messages[:number]).text + f" {messages[number].content}"
            text += self.assistant_end.rstrip() if is_last else ending
            ends.append(len(text))
        return Transcript(text, True, tuple(ends))


@dataclass(frozen=True, slots=True)
class Llama2Template:
    """Llama-2 chat: ``[INST] <<SYS>> … <</SYS>> question [/INST] answer </s><s>[INST] …``.

    Source: the reference generation code of Meta's llama repository.
    """

    stop: tuple[str, ...] = ("[INST]",)

    def render(self, messages: Sequence[ChatMessage]) -> RenderedPrompt:
        """Pair questions with answers; neighbours of one role become one message."""
        system, turns = split_system(messages)
        turns = merge_neighbours(turns)
        if not turns[0].role == turns[-1].role == "user":
            raise InvalidRequestError(
                "messages", "the first and the last message must be the user's"
            )
        preamble = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        text = ""
        for message in turns:
            if message.role == "user":
                text += f"{'<s>' if text else ''}[INST] {preamble}{message.content.strip()} [/INST]"
                preamble = ""
            else:
                text += f" {message.content.strip()} </s>"
        return RenderedPrompt(text, add_special_tokens=True)

    def transcribe(self, messages: Sequence[ChatMessage]) -> Transcript:
        """Write the pairs; eos stands after each answer."""
        text, ends = "", []
        for number in answers_of(messages):
            answer = messages[number].content.strip()
            text = f"{self.render(messages[:number]).text} {answer} </s>"
            ends.append(len(text))
        return Transcript(text, True, tuple(ends))


class OwnTemplate:
    """The chat template that a model's tokenizer ships.

    Some templates refuse a system message or two neighbours of one role, and DB-GPT sends
    both; such a conversation is written with neighbours joined, then with the system message
    put before the first question.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, apply_chat_template: Callable[..., Any]) -> None:
        self._apply = apply_chat_template

    def render(self, messages: Sequence[ChatMessage]) -> RenderedPrompt:
        """Render in transformers' sandbox."""
        return RenderedPrompt(self._written(messages, opens_answer=True), add_special_tokens=False)

    def transcribe(self, messages: Sequence[ChatMessage]) -> Transcript:
        """Render without an open answer, and look whether each answer goes on from its prompt."""
        answers = answers_of(messages)
        text = self._written(messages, opens_answer=False)
        ends = []
        for number in answers:
            so_far = self._written(messages[: number + 1], opens_answer=False)
            prompt = self._written(messages[:number], opens_answer=True)
            goes_on = text.startswith(so_far) and so_far.startswith(prompt)
            ends.append(len(so_far) if goes_on else None)
        return Transcript(text, False, tuple(ends))

    def _written(self, messages: Sequence[ChatMessage], *, opens_answer: bool) -> str:
        system, turns = split_system(messages)
        joined = merge_neighbours(turns)
        attempts = [list(messages)]
        if system:
            attempts.append([ChatMessage("system", system), *joined])
            attempts.append(merge_neighbours([ChatMessage("user", system), *joined]))
        else:
            attempts.append(joined)
        problem = ""
        for attempt in attempts:
            written = [{"role": m.role, "content": m.content} for m in attempt]
            try:
                text = self._apply(written, tokenize=False, add_generation_prompt=opens_answer)
            except Exception as error:
                problem = problem or str(error)
            else:
                return str(text)
        raise InvalidRequestError("messages", f"the model's chat template refused them: {problem}")


def split_system(messages: Sequence[ChatMessage]) -> tuple[str, list[ChatMessage]]:
    """Return all system messages as one text, and the turns.

    Raises:
        InvalidRequestError: There is no turn.
    """
    turns = [m for m in messages if m.role != "system"]
    if not turns:
        raise InvalidRequestError("messages", "must hold at least one message of the user")
    return "\n\n".join(m.content for m in messages if m.role == "system" and m.content), turns


def answers_of(messages: Sequence[ChatMessage]) -> list[int]:
    """Return where answers stand in a conversation that ends with one.

    Raises:
        InvalidRequestError: It does not end with an answer.
    """
    found = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not found or found[-1] != len(messages) - 1:
        raise InvalidRequestError("messages", "the last message must be an answer")
    return found


def merge_neighbours(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Join messages of one role that follow each other."""
    return [
        ChatMessage(role, "\n\n".join(m.content for m in group))
        for role, group in groupby(turns, key=lambda m: m.role)
    ]
