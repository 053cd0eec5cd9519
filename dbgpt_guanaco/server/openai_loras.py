"""Loading and unloading LoRAs over HTTP, with vLLM's routes and bodies; only for the admin."""

import logging
import re
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, ConfigDict, Field
from starlette.responses import PlainTextResponse

from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.errors import (
    ConfigurationError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
)
from dbgpt_guanaco.server.bodies import JsonRoute
from dbgpt_guanaco.server.dependencies import EngineDep, OnlyAdmin
from dbgpt_guanaco.server.fields import FewFields, Name
from dbgpt_guanaco.settings import LORA_NAME

logger = logging.getLogger(__name__)

router = APIRouter(tags=["openai"], route_class=JsonRoute)


def _is_a_name(value: str) -> str:
    if not re.fullmatch(LORA_NAME, value):
        raise ValueError("letters, digits and . _ - : / only, beginning with a letter or digit")
    return value


class UnloadRequest(FewFields):
    """``POST /v1/unload_lora_adapter``."""

    model_config = ConfigDict(extra="forbid")

    lora_name: Annotated[Name, AfterValidator(_is_a_name)]


class LoadRequest(UnloadRequest):
    """``POST /v1/load_lora_adapter``. The path is below ``GUANACO_LORA_DIR``."""

    lora_path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]


@router.post("/load_lora_adapter", dependencies=[OnlyAdmin])
async def load_lora_adapter(body: LoadRequest, engine: EngineDep) -> PlainTextResponse:
    """Offer a LoRA as a model of its own."""
    try:
        await engine.loras.load(body.lora_name, body.lora_path)
    except OutOfMemoryError:
        raise
    except (ConfigurationError, ModelLoadError) as error:
        raise InvalidRequestError("lora_path", str(error)) from error
    return _done(engine, f"Success: LoRA {body.lora_name!r} is loaded.")


@router.post("/unload_lora_adapter", dependencies=[OnlyAdmin])
async def unload_lora_adapter(body: UnloadRequest, engine: EngineDep) -> PlainTextResponse:
    """Offer a LoRA no more; answers that run go on."""
    engine.loras.unload(body.lora_name)
    return _done(engine, f"Success: LoRA {body.lora_name!r} is unloaded.")


def _done(engine: Engine, text: str) -> PlainTextResponse:
    logger.info("LoRAs: %s", ", ".join(engine.loras.names) or "none")
    return PlainTextResponse(text)
