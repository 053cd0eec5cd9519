"""Engines and tokenizers that behave, without a model."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter
from dbgpt_guanaco.errors import (
    ConfigurationError,
    GuanacoError,
    InvalidRequestError,
    UnknownModelError,
)
from dbgpt_guanaco.types import (
    EmbeddingCard,
    Embeddings,
    EngineLoad,
    FinishReason,
    GenerationRequest,
    ModelCard,
    TextDelta,
    TokenLogprob,
    Usage,
)

PROMPT_TOKENS = 7


class ScriptedGeneration:
    """Yields a script's texts, one token each; raises an error that stands in it."""

    prompt_text, prompt_tokens = "the prompt: ", PROMPT_TOKENS

    def __init__(
        self, script: Sequence[str | GuanacoError], *, endless: bool, logprobs: bool
    ) -> None:
        self._script, self._endless, self._logprobs = script, endless, logprobs
        self.cancelled = asyncio.Event()
        self.was_read = False

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[TextDelta]:
        self.was_read = True
        count = 0
        for item in self._script:
            if isinstance(item, GuanacoError):
                raise item
            count += 1
            yield self._delta(item, count, None)
            await asyncio.sleep(0)
        if self._endless:
            await self.cancelled.wait()
        yield self._delta("", count, "cancelled" if self._endless else "stop")

    def _delta(self, text: str, count: int, reason: FinishReason | None) -> TextDelta:
        told: tuple[TokenLogprob, ...] = ()
        if self._logprobs and text:
            other = TokenLogprob(9, "other", b"other", -2.0)
            told = (TokenLogprob(count, text, text.encode(), -0.5, len(text), (other,)),)
        return TextDelta(text, Usage(PROMPT_TOKENS, count), reason, told)

    def cancel(self) -> None:
        self.cancelled.set()


@dataclass(frozen=True)
class ScriptedLora:
    folder: str
    template: PromptTemplate = VicunaAdapter.template
    created: int = 7


class ScriptedLoras:
    """LoRAs without weights; a path that is not in ``known`` is refused."""

    def __init__(self, *names: str, known: tuple[str, ...] = ()) -> None:
        self._models = {name: ScriptedLora(f"{name}-folder") for name in names}
        self._known = known

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    def get(self, name: str) -> ScriptedLora:
        if name not in self._models:
            raise UnknownModelError(name, self.names)
        return self._models[name]

    async def load(self, name: str, path: str) -> None:
        if name in self._models:
            raise ConfigurationError(f"there is a model {name!r} already")
        if path not in self._known:
            raise InvalidRequestError("lora_path", "there is no LoRA of that name")
        self._models[name] = ScriptedLora(path)

    def unload(self, name: str) -> None:
        self.get(name)
        del self._models[name]


class ScriptedEngine:
    """Answers every request with the same script."""

    template: PromptTemplate = GuanacoAdapter.template

    def __init__(
        self,
        *script: str | GuanacoError,
        refuse: GuanacoError | None = None,
        refuse_after: int = 0,
        endless: bool = False,
        name: str = "scripted",
        aliases: tuple[str, ...] = (),
        loras: ScriptedLoras | None = None,
    ) -> None:
        self.loras = loras or ScriptedLoras()
        self._script, self._refuse, self._endless = script, refuse, endless
        self._refuse_after = refuse_after
        self.card = ModelCard(name, aliases, "guanaco", "nf4", "bfloat16", "cpu", 2048, 1000)
        self.requests: list[GenerationRequest] = []
        self.generations: list[ScriptedGeneration] = []
        self.is_alive, self.is_lost, self.is_closed = True, False, False
        self.problem: str | None = None

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(running=1, waiting=2, slots=5, queue_size=64)

    async def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        if self._refuse and len(self.requests) >= self._refuse_after:
            raise self._refuse
        self.requests.append(request)
        logprobs = request.sampling.logprobs
        generation = ScriptedGeneration(self._script, endless=self._endless, logprobs=logprobs)
        self.generations.append(generation)
        return generation

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1] * add_special_tokens + [len(word) for word in text.split()]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        if 999 in token_ids:
            raise InvalidRequestError("prompt", "token id 999 is not below 500")
        return " ".join("x" * i for i in token_ids)

    async def embed(self, text: str) -> list[float]:
        return [float(len(text)), 0.5]

    def close(self) -> None:
        self.is_closed = True


class ScriptedEmbedder:
    """Turns a text into its length and the place it had; remembers what it was asked."""

    def __init__(
        self, *, name: str = "all-minilm-l6-v2", refuse: GuanacoError | None = None
    ) -> None:
        self.card = EmbeddingCard(name, 3, 256, is_normalized=True, device="cpu")
        self._refuse = refuse
        self.texts: list[str] = []
        self.is_closed = False

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        if self._refuse:
            raise self._refuse
        self.texts += texts
        vectors = tuple((float(len(t)), float(i), 0.5) for i, t in enumerate(texts))
        return Embeddings(vectors, sum(len(t.split()) for t in texts))

    def close(self) -> None:
        self.is_closed = True
