"""Which model: name or path → family → weights."""

from dbgpt_guanaco.adapters.guanaco import GuanacoAdapter
from dbgpt_guanaco.adapters.llama import Llama2ChatAdapter
from dbgpt_guanaco.adapters.registry import AdapterRegistry
from dbgpt_guanaco.adapters.vicuna import VicunaAdapter


def default_registry() -> AdapterRegistry:
    """Return the built-in families and those of installed packages.

    Raises:
        ConfigurationError: An installed package offers something that is no adapter.
    """
    registry = AdapterRegistry([GuanacoAdapter(), VicunaAdapter(), Llama2ChatAdapter()])
    registry.load_entry_points()
    return registry
