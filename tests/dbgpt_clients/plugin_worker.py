"""What DB-GPT does with an entry of ``[[models.llms]]`` whose provider is this plugin."""

from collections.abc import AsyncIterator
from typing import Any

from dbgpt.core import ModelMessage, ModelOutput
from dbgpt.model.cluster.worker.default_worker import DefaultModelWorker

from dbgpt_guanaco.dbgpt_plugin import hook


def load_worker(**fields: Any) -> DefaultModelWorker:
    """Return DB-GPT's worker of a model with these fields in the TOML."""
    hook({})
    from dbgpt_guanaco.dbgpt_plugin.parameters import GuanacoDeployModelParameters

    parameters = GuanacoDeployModelParameters(**fields)
    worker = DefaultModelWorker()
    worker.load_worker(parameters.name, parameters)
    worker.start()
    return worker


def params(text: str, **more: Any) -> dict[str, Any]:
    """Return a request as a worker gets it."""
    messages = [
        ModelMessage(role="system", content="S"),
        ModelMessage(role="human", content=text),
    ]
    return {"model": "any", "messages": messages, "echo": False, **more}


async def all_outputs(stream: AsyncIterator[ModelOutput]) -> list[ModelOutput]:
    return [output async for output in stream]


async def last_output(worker: DefaultModelWorker, text: str, **more: Any) -> ModelOutput:
    return (await all_outputs(worker.async_generate_stream(params(text, **more))))[-1]
