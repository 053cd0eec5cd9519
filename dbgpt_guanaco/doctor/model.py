"""Are the models on this machine? If not, can they be fetched, and is there room for them?"""

import re
from importlib.util import find_spec

import httpx
from huggingface_hub import constants

from dbgpt_guanaco.adapters import demo, embedding
from dbgpt_guanaco.adapters.known import KNOWN_MODELS
from dbgpt_guanaco.adapters.resolve import (
    FETCH,
    checked,
    command,
    find_folder,
    resolve,
)
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import ModelNotFoundError
from dbgpt_guanaco.settings import DEMO_MODEL

HUB_S = 5.0


def model(setup: Setup) -> Finding:
    """Find the model that LLM_MODEL names, without fetching it."""
    settings = setup.settings.model
    try:
        source = resolve(settings, may_fetch=False)
    except ModelNotFoundError as error:
        if settings.name == DEMO_MODEL and find_spec(demo.PACKAGE):
            return warning(
                f"{DEMO_MODEL} is made from its package at the first start, in about 20 seconds; "
                "what is in it cannot be looked at before",
                f"{command('dbgpt-guanaco')} serve",
            )
        return _absent(error, may_be_fetched=_is_fetchable(settings.name))
    lora = f", with the LoRA {source.lora_path}" if source.lora_path else ""
    return ok(f"{source.name}: {source.model_path}{lora}")


def embedding_model(setup: Setup) -> Finding:
    """Find the embedding model, without fetching it."""
    settings, models_dir = setup.settings.embedding, setup.settings.model.models_dir
    wanted = settings.embedding_model
    if (wanted or "").lower() == embedding.OFF:
        return ok("EMBEDDING_MODEL=none: none is served")
    if wanted is None and not embedding.is_default_there(models_dir):
        return warning("none is served; DB-GPT's knowledge bases need one", embedding.INSTALL)
    name = wanted or embedding.DEFAULT
    if name == embedding.DEFAULT and find_spec(embedding.PACKAGE):
        return ok(f"{name}, from its package")
    try:
        folder = find_folder(name, models_dir, embedding.KNOWN_EMBEDDINGS, {}, may_fetch=False)
    except ModelNotFoundError as error:
        return _absent(error, may_be_fetched="/" in embedding.KNOWN_EMBEDDINGS.get(name, name))
    return ok(f"{name}: {checked(folder)}")


def _is_fetchable(name: str) -> bool:
    known = KNOWN_MODELS.get(name)
    return known is not None or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name))


def _absent(error: ModelNotFoundError, *, may_be_fetched: bool) -> Finding:
    """Say of a model that is not here whether the server would find it elsewhere."""
    told = f"{error.name} is not on this machine. Looked in: {'; '.join(error.looked_in)}"
    fetch = error.remedy.removeprefix(FETCH).strip()
    if not may_be_fetched:
        return failure(told, error.remedy)
    if constants.HF_HUB_OFFLINE:
        return failure(f"{told}. HF_HUB_OFFLINE is set, so nothing is fetched", fetch)
    if problem := _hub_problem():
        return failure(
            f"{told}. The hub cannot be reached: {problem}",
            f"export HF_ENDPOINT=https://your-mirror\n{fetch}",
        )
    return warning(f"{told}. The server would fetch it from the hub at its start", fetch)


def _hub_problem() -> str:
    """Say why the hub cannot be asked; nothing where it answers."""
    try:
        # By way of a proxy, if there is one: it is another machine.
        httpx.head(constants.ENDPOINT, timeout=HUB_S)
    except httpx.HTTPError as error:
        return f"{constants.ENDPOINT}: {error or type(error).__name__}"
    return ""
