"""Every error that is raised on purpose.

::

    GuanacoError
    ├── ConfigurationError        a setting is unknown, missing or contradicts another
    ├── ModelNotFoundError        LLM_MODEL names nothing that could be found
    ├── UnknownModelError         no adapter matches, or a request names another model
    ├── AmbiguousModelError       several unrelated adapters match
    ├── ModelLoadError            found, but it cannot be loaded as asked
    │   └── OutOfMemoryError      it does not fit, said before loading or when a step failed
    ├── OutputError               a folder cannot be written: it exists, the disk is full
    ├── DataError                 training data cannot be read, or there is nothing to learn in it
    ├── TrainingError             training went wrong, or what it saved is not what it learned
    ├── TrainingStopped           somebody ended a training, which can be gone on with
    ├── EngineBusyError           every slot and every queue place is taken
    ├── EngineStartingError       the engine is still being loaded
    ├── EngineStoppedError        the engine is shutting down
    ├── GenerationFailedError     an exception inside a generation
    ├── AccessDeniedError         a key is missing or wrong
    ├── ForeignPageError          a web page from elsewhere asks
    ├── QuotaExceededError        a key has used what it may use
    ├── NoEmbedderError           embeddings are asked for, and no embedding model is loaded
    └── InvalidRequestError       a request that no retry will mend
        └── PromptTooLongError    the prompt leaves no room for an answer
"""

from collections.abc import Iterable


class GuanacoError(Exception):
    """Base of every deliberate error; its text is meant for the person who reads it."""


class ConfigurationError(GuanacoError):
    """A setting is unknown, missing or contradicts another."""


class ModelNotFoundError(GuanacoError):
    """A model name that leads to no weights."""

    def __init__(self, name: str, looked_in: Iterable[str], remedy: str) -> None:
        self.name, self.looked_in, self.remedy = name, tuple(looked_in), remedy
        places = "\n".join(f"  - {place}" for place in self.looked_in)
        super().__init__(f"no model {name!r}. Looked in:\n{places}\n{remedy}")


class UnknownModelError(GuanacoError):
    """A model that no adapter, or no loaded model, answers to."""

    def __init__(self, name: str, known: Iterable[str], remedy: str = "") -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"unknown model {name!r}; known: {listed}.{remedy and ' '}{remedy}")


class AmbiguousModelError(GuanacoError):
    """Unrelated adapters match the same name."""

    def __init__(self, model_path: str, claimants: Iterable[str]) -> None:
        super().__init__(
            f"{model_path!r} could be any of {', '.join(sorted(claimants))}; "
            "say which with GUANACO_ADAPTER"
        )


class ModelLoadError(GuanacoError):
    """The model was found but cannot be loaded as asked."""


class OutOfMemoryError(ModelLoadError):
    """What was asked for does not fit the memory there is."""


class OutputError(GuanacoError):
    """What a command makes cannot be written: it is there already, or the disk is full."""


class DataError(GuanacoError):
    """Training data cannot be read as conversations, or nothing can be learned from it."""


class TrainingError(GuanacoError):
    """Training went wrong, or what it saved is not what it learned."""


class TrainingStopped(GuanacoError):  # noqa: N818 - nothing went wrong
    """Somebody ended a training; its state is saved."""

    def __init__(self, step: int, steps: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step} of {steps}; the state is saved")


class EngineBusyError(GuanacoError):
    """Every slot and every queue place is taken."""

    def __init__(self, running: int, waiting: int) -> None:
        super().__init__(
            f"the server is busy: {running} running and {waiting} waiting; try again soon"
        )


class EngineStartingError(GuanacoError):
    """The engine is still being loaded; it will take requests by itself."""

    def __init__(self, progress: str) -> None:
        super().__init__(f"the model is being loaded ({progress}); try again soon")


class EngineStoppedError(GuanacoError):
    """The engine takes no more requests."""

    def __init__(self, reason: str = "the server is shutting down") -> None:
        super().__init__(reason)


class GenerationFailedError(GuanacoError):
    """An exception ended a generation. The cause is chained and logged, not told."""


class AccessDeniedError(GuanacoError):
    """A key is missing or wrong; the text says which is wanted."""


class ForeignPageError(GuanacoError):
    """A web page that is not this server's sends a request, from the browser of somebody here."""


class QuotaExceededError(GuanacoError):
    """A key has used what it may use of something; ``retry_after_s`` says for how long."""

    def __init__(self, problem: str, retry_after_s: int, limit: str) -> None:
        super().__init__(problem)
        self.retry_after_s, self.limit = retry_after_s, limit


class NoEmbedderError(GuanacoError):
    """Embeddings are asked for, and no embedding model is loaded."""

    def __init__(self) -> None:
        super().__init__(
            "no embedding model is loaded; set EMBEDDING_MODEL, for example all-MiniLM-L6-v2"
        )


class InvalidRequestError(GuanacoError):
    """A value in a request is wrong; ``parameter`` names it."""

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}" if parameter else problem)
        self.parameter = parameter


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            "prompt",
            f"{prompt_tokens} tokens do not fit a context of {context_tokens} tokens with room "
            "for an answer; shorten the conversation",
        )
