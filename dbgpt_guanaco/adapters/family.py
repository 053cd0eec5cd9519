"""How a model is talked to: its family's template, its tokenizer, and what ends an answer."""

import logging
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import AutoTokenizer, GenerationConfig

from dbgpt_guanaco.adapters.base import BaseLLMAdapter
from dbgpt_guanaco.adapters.cards import recorded_family
from dbgpt_guanaco.adapters.foreign_code import check_code
from dbgpt_guanaco.adapters.registry import AdapterRegistry
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.adapters.template import OwnTemplate, PromptTemplate
from dbgpt_guanaco.errors import ConfigurationError, ModelLoadError, UnknownModelError
from dbgpt_guanaco.settings import ModelSettings

logger = logging.getLogger(__name__)

# Of a model that no family matches.
OWN_TEMPLATE = "own template"


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a model before a weight is read; serving and training share it.

    Attributes:
        name: Of the adapter, or ``own template``.
        tokenizer: Of transformers, a fast one.
        template: How conversations are written.
        bos_token_id: Id that every prompt begins with, where the family states it.
        stop_token_ids: Ids that end an answer.
        eos_token_id: The one of them that is written after an answer.
    """

    name: str
    tokenizer: Any
    template: PromptTemplate
    bos_token_id: int | None
    stop_token_ids: frozenset[int]
    eos_token_id: int | None


def find_family(
    source: ModelSource,
    config: Any,  # noqa: ANN401
    settings: ModelSettings,
    registry: AdapterRegistry,
) -> Family:
    """Find how a model is talked to.

    Args:
        source: Where it is.
        config: Of transformers, for its folder.
        settings: May name the family.
        registry: All families.

    Raises:
        ConfigurationError: The settings name a family that there is not.
        ModelLoadError: The tokenizer is damaged or missing.
        UnknownModelError: No family matches and the tokenizer ships no template.
    """
    adapter = _find_adapter(source, settings, registry)
    tokenizer = _load_tokenizer(source, adapter, trusts_code=settings.trust_remote_code)
    own_eos = tokenizer.eos_token_id
    return Family(
        name=adapter.name if adapter else OWN_TEMPLATE,
        tokenizer=tokenizer,
        template=_template(source, adapter, tokenizer, registry),
        bos_token_id=adapter.bos_token_id if adapter else None,
        stop_token_ids=_stop_token_ids(source, config, tokenizer, adapter),
        eos_token_id=adapter.stop_token_ids[0] if adapter and adapter.stop_token_ids else own_eos,
    )


def _find_adapter(
    source: ModelSource, settings: ModelSettings, registry: AdapterRegistry
) -> BaseLLMAdapter | None:
    if settings.adapter:
        logger.info("family %s: named by GUANACO_ADAPTER", settings.adapter)
        try:
            return registry.get(settings.adapter)
        except UnknownModelError:
            raise ConfigurationError(
                f"GUANACO_ADAPTER={settings.adapter} is no family; known: "
                f"{', '.join(registry.names)}"
            ) from None
    recorded = recorded_family(source.lora_path, source.model_path)
    if recorded:
        logger.info("family %s: as its card says", recorded)
        return adapter_of(recorded, registry)
    for name in source.family_names:
        try:
            adapter = registry.find(name)
        except UnknownModelError:
            continue
        logger.info("family %s: found in the name %s", adapter.name, name)
        return adapter
    return None


def adapter_of(family: str, registry: AdapterRegistry) -> BaseLLMAdapter | None:
    """Return the adapter of a family that a card names; none for a model's own template.

    Raises:
        ConfigurationError: There is no such family here.
    """
    if family == OWN_TEMPLATE:
        return None
    try:
        return registry.get(family)
    except UnknownModelError:
        raise ConfigurationError(
            f"the model was made for the family {family}, which is not installed; known: "
            f"{', '.join(registry.names)}. Install it, or name another with GUANACO_ADAPTER"
        ) from None


def _load_tokenizer(
    source: ModelSource, adapter: BaseLLMAdapter | None, *, trusts_code: bool
) -> Any:  # noqa: ANN401
    kind: Any = AutoTokenizer
    options: dict[str, Any] = {"trust_remote_code": trusts_code}
    if adapter and adapter.tokenizer_class:
        kind = getattr(transformers, adapter.tokenizer_class)
        options = dict(adapter.special_tokens)
    folders = [source.lora_path, source.model_path] if source.lora_path else [source.model_path]
    for folder in folders:
        if any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model")):
            check_code(folder, is_trusted=trusts_code)
            try:
                return kind.from_pretrained(folder, local_files_only=True, **options)
            except Exception as error:  # tokenizers raises bare exceptions at a damaged file
                raise ModelLoadError(f"the tokenizer in {folder} is damaged: {error}") from error
    raise ModelLoadError(f"{source.model_path} holds no tokenizer.json and no tokenizer.model")


def _template(
    source: ModelSource,
    adapter: BaseLLMAdapter | None,
    tokenizer: Any,  # noqa: ANN401
    registry: AdapterRegistry,
) -> PromptTemplate:
    if adapter:
        return adapter.template
    if tokenizer.chat_template:
        logger.info("no family matches %s: its own chat template is used", source.name)
        return OwnTemplate(tokenizer.apply_chat_template)
    raise UnknownModelError(
        source.name,
        known=registry.names,
        remedy="Its tokenizer ships no chat template; name a family with GUANACO_ADAPTER.",
    )


def _stop_token_ids(
    source: ModelSource,
    config: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    adapter: BaseLLMAdapter | None,
) -> frozenset[int]:
    if adapter and adapter.stop_token_ids:
        stated: list[Any] = [*adapter.stop_token_ids]
    else:
        stated = [tokenizer.eos_token_id]
    for owner in (config, _generation_config(source, config)):
        eos = getattr(owner, "eos_token_id", None)
        stated += eos if isinstance(eos, list) else [eos]
    return frozenset(int(i) for i in stated if i is not None)


def _generation_config(source: ModelSource, config: Any) -> Any:  # noqa: ANN401
    """Return what transformers gives the model when it loads the weights."""
    if not (source.model_path / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(source.model_path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(
            f"{source.model_path}/generation_config.json cannot be used: {error}"
        ) from error
