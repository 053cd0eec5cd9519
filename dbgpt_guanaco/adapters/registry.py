"""The registry: model path → adapter, without a guess."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import PurePath

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.errors import AmbiguousModelError, ConfigurationError, UnknownModelError

ENTRY_POINT_GROUP = "dbgpt_guanaco.adapters"


class AdapterRegistry:
    """The adapters in use, and the rule that picks one.

    The last path component that any adapter matches decides, so a folder higher up
    (``/home/vicuna/guanaco-7b``) cannot. Of several matches a subclass beats its base
    class; anything else is an error, never a guess. Registration order has no effect.
    """

    def __init__(self, adapters: Iterable[BaseLLMAdapter] = ()) -> None:
        self._adapters: dict[str, BaseLLMAdapter] = {}
        for adapter in adapters:
            self.register(adapter)

    def register(self, adapter: BaseLLMAdapter) -> None:
        """Add an adapter.

        Raises:
            ValueError: The name is taken.
        """
        if adapter.name in self._adapters:
            raise ValueError(f"adapter {adapter.name!r} is already registered")
        self._adapters[adapter.name] = adapter

    def load_entry_points(self) -> None:
        """Add the adapters that installed packages offer under ``dbgpt_guanaco.adapters``.

        Each entry point names a ``BaseLLMAdapter`` subclass that takes no argument.

        Raises:
            ConfigurationError: One is no adapter, or its name is taken.
        """
        for point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                kind = point.load()
            except Exception as error:  # somebody else's module may fail in any way
                raise ConfigurationError(
                    f"entry point {point.name!r} ({point.value}) cannot be imported: {error}"
                ) from error
            if not (isinstance(kind, type) and issubclass(kind, BaseLLMAdapter)):
                raise ConfigurationError(
                    f"entry point {point.name!r} ({point.value}) is not a BaseLLMAdapter subclass"
                )
            try:
                self.register(kind())
            except ValueError as error:
                raise ConfigurationError(f"entry point {point.value}: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all adapters, sorted."""
        return tuple(sorted(self._adapters))

    def get(self, name: str) -> BaseLLMAdapter:
        """Return the adapter called ``name``.

        Raises:
            UnknownModelError: There is none.
        """
        try:
            return self._adapters[name]
        except KeyError:
            raise UnknownModelError(name, known=self._adapters) from None

    def find(self, model_path: str) -> BaseLLMAdapter:
        """Return the one adapter for a local folder or hub name.

        Raises:
            UnknownModelError: No adapter matches any component of the path.
            AmbiguousModelError: Unrelated adapters match the same component.
        """
        for component in reversed(PurePath(model_path).parts):
            matches = [a for a in self._adapters.values() if a.match(component)]
            best = [a for a in matches if not any(_extends(b, a) for b in matches)]
            if len(best) > 1:
                raise AmbiguousModelError(model_path, claimants=[a.name for a in best])
            if best:
                return best[0]
        raise UnknownModelError(
            model_path, known=self._adapters, remedy="Name one with GUANACO_ADAPTER."
        )


def _extends(one: BaseLLMAdapter, other: BaseLLMAdapter) -> bool:
    return type(one) is not type(other) and isinstance(one, type(other))
