"""Loading and unloading LoRAs over HTTP, with vLLM's routes and bodies; only for the admin."""

import hmac
import logging
import re
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from dbgpt_guanaco.engine.base import Engine
from dbgpt_guanaco.errors import (
    AccessDeniedError,
    ConfigurationError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
)
from dbgpt_guanaco.server.dependencies import EngineDep, SettingsDep
from dbgpt_guanaco.settings import LORA_NAME, ServerSettings

logger = logging.getLogger(__name__)

router = APIRouter(tags=["openai"])


def _is_a_name(value: str) -> str:
    if not re.fullmatch(LORA_NAME, value):
        raise ValueError("letters, digits and . _ - : / only, beginning with a letter or digit")
    return value


class UnloadRequest(BaseModel):
    """``POST /v1/unload_lora_adapter``."""

    model_config = ConfigDict(extra="forbid")

    lora_name: Annotated[str, AfterValidator(_is_a_name)]


class LoadRequest(UnloadRequest):
    """``POST /v1/load_lora_adapter``. The path is below ``GUANACO_LORA_DIR``."""

    lora_path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]


@router.post("/load_lora_adapter")
async def load_lora_adapter(
    request: Request, body: LoadRequest, engine: EngineDep, settings: SettingsDep
) -> PlainTextResponse:
    """Offer a LoRA as a model of its own."""
    check_admin(request, settings)
    try:
        await engine.loras.load(body.lora_name, body.lora_path)
    except OutOfMemoryError:
        raise
    except (ConfigurationError, ModelLoadError) as error:
        raise InvalidRequestError("lora_path", str(error)) from error
    return _done(engine, f"Success: LoRA {body.lora_name!r} is loaded.")


@router.post("/unload_lora_adapter")
async def unload_lora_adapter(
    request: Request, body: UnloadRequest, engine: EngineDep, settings: SettingsDep
) -> PlainTextResponse:
    """Offer a LoRA no more; answers that run go on."""
    check_admin(request, settings)
    engine.loras.unload(body.lora_name)
    return _done(engine, f"Success: LoRA {body.lora_name!r} is unloaded.")


def check_admin(request: Request, settings: ServerSettings) -> None:
    """Refuse whoever has not the admin's key.

    Raises:
        AccessDeniedError: The key is missing or wrong, or there is none.
    """
    if not settings.admin_key:
        raise AccessDeniedError("this needs an admin key; the server has none: GUANACO_ADMIN_KEY")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = settings.admin_key.get_secret_value().encode()
    is_right = hmac.compare_digest(given.strip().encode(), wanted)
    if scheme.lower() != "bearer" or not is_right:
        raise AccessDeniedError("this needs the admin key, as Authorization: Bearer …")


def _done(engine: Engine, text: str) -> PlainTextResponse:
    logger.info("LoRAs: %s", ", ".join(engine.loras.names) or "none")
    return PlainTextResponse(text)
