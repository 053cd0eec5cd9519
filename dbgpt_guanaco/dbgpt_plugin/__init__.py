"""DB-GPT 0.7 and later → this server: ``provider = "guanaco"`` in DB-GPT's TOML.

::

    [[hooks]]
    path = "dbgpt_guanaco.dbgpt_plugin.hook"

    [[models.llms]]
    name = "guanaco-33b-merged"
    provider = "guanaco"
    api_base = "http://127.0.0.1:8000/v1"

    [[models.embeddings]]
    name = "all-MiniLM-L6-v2"
    provider = "guanaco"

It runs inside DB-GPT, not inside this server: it needs what ``dbgpt-app`` installs and nothing
of this package but its version. DB-GPT finds no plugins by itself; it imports the hooks of a
configuration before it reads the rest (``dbgpt/util/configure/manager.py``).
"""

from typing import Any

from dbgpt_guanaco.dbgpt_plugin.defaults import PROVIDER


def hook(config: dict[str, Any]) -> dict[str, Any]:
    """Make ``provider = "guanaco"`` known to DB-GPT; return the configuration unchanged.

    Harmless when it is called again, also from a second copy of this module: DB-GPT's own
    registry says whether anything is left to do. DB-GPT registers a class of parameters where it
    is defined and refuses a second one, so the modules that define them are imported only then.
    """
    from dbgpt.core.interface.parameter import (
        EmbeddingDeployModelParameters,
        LLMDeployModelParameters,
    )

    if LLMDeployModelParameters.get_subclass(PROVIDER) is None:
        from dbgpt_guanaco.dbgpt_plugin import adapter

        adapter.register()
    if EmbeddingDeployModelParameters.get_subclass(PROVIDER) is None:
        from dbgpt_guanaco.dbgpt_plugin import embeddings

        embeddings.register()
    return config


def end_abandoned_answers(config: dict[str, Any]) -> dict[str, Any]:
    """Let DB-GPT's own OpenAI and cluster clients end an answer when its reader has left.

    A hook for those who do not use ``provider = "guanaco"``, whose client does so anyway. The
    configuration is returned unchanged; calling it again is harmless.
    """
    from dbgpt_guanaco.dbgpt_plugin import own_clients

    own_clients.watch_all()
    return config
