"""Which models clients may name: the loaded one, its aliases, and the LoRAs on it."""

from dataclasses import dataclass, replace

from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.errors import UnknownModelError
from dbgpt_guanaco.types import GenerationRequest


@dataclass(frozen=True, slots=True)
class Served:
    """What a client's name for a model stands for.

    Attributes:
        name: As the client wrote it, or the loaded model's.
        template: How conversations are written for it.
        lora: Name of the LoRA to be laid on the loaded model, if it is one.
    """

    name: str
    template: PromptTemplate
    lora: str | None = None

    def of(self, request: GenerationRequest, salt: str = "") -> GenerationRequest:
        """Return a request to this model; only those of one salt share a cache."""
        return replace(request, lora=self.lora, cache_salt=salt)


def names(engine: Engine) -> tuple[str, ...]:
    """Return every name that clients may use, the public one first."""
    return (*engine.card.names, *engine.loras.names)


def find(engine: Engine, name: str | None, remedy: str = "") -> Served:
    """Return what a name stands for; a client that names no model gets the loaded one.

    Raises:
        UnknownModelError: Nothing here has that name.
    """
    if name is None or name in engine.card.names:
        return Served(name or engine.card.name, engine.template)
    if name not in engine.loras.names:
        raise UnknownModelError(name, names(engine), remedy)
    return Served(name, engine.loras.get(name).template, name)
