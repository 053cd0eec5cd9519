"""What DB-GPT reads from ``[[models.llms]]``.

Defining the class registers it with DB-GPT under the default of its ``provider``
(``PolymorphicMeta`` in ``dbgpt/util/configure/manager.py``), which allows that once only.
"""

from dataclasses import dataclass, field

from dbgpt.core.interface.parameter import LLMDeployModelParameters

from dbgpt_guanaco.dbgpt_plugin.defaults import API_BASE, API_KEY, PROVIDER


@dataclass
class GuanacoDeployModelParameters(LLMDeployModelParameters):  # type: ignore[misc]  # as in tokens.py
    """One chat model. ``name``, ``backend`` and ``context_length`` are DB-GPT's own fields.

    ``backend`` is the server's name of the model, if ``name`` is another. Without a
    ``context_length`` the server is asked for it when DB-GPT starts.
    """

    provider: str = PROVIDER
    api_base: str = field(
        default=API_BASE, metadata={"help": "Address of the Guanaco server, with its /v1"}
    )
    api_key: str = field(
        default=API_KEY,
        metadata={"help": "Key of the Guanaco server, if it wants one", "tags": "privacy"},
    )
    http_proxy: str = field(
        default="", metadata={"help": "Address of a proxy to the Guanaco server"}
    )
    concurrency: int = field(
        default=100, metadata={"help": "Requests at a time; the server has a queue of its own"}
    )
