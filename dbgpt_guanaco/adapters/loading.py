"""Folders → a model ready to generate. What was asked for is loaded, or an error says why not."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig

from dbgpt_guanaco.adapters.cards import refuse_lost_lora, refuse_other_base
from dbgpt_guanaco.adapters.cpu_linear import flatten_inputs
from dbgpt_guanaco.adapters.family import find_family
from dbgpt_guanaco.adapters.folder import weight_files
from dbgpt_guanaco.adapters.headers import tensor_headers
from dbgpt_guanaco.adapters.linear4bit import route_calls
from dbgpt_guanaco.adapters.lora import Lora, read_lora
from dbgpt_guanaco.adapters.machine import (
    available_bytes,
    device_name,
    find_device,
    gpu_bytes,
)
from dbgpt_guanaco.adapters.memory import MemoryPlan, lora_bytes_of, plan_memory
from dbgpt_guanaco.adapters.progress_bars import counting_tensors
from dbgpt_guanaco.adapters.quantization import (
    compute_dtype,
    quantization_config,
    stored_quantization,
)
from dbgpt_guanaco.adapters.registry import AdapterRegistry
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.adapters.shapes import ModelShape, read_config, shape_of
from dbgpt_guanaco.adapters.template import PromptTemplate
from dbgpt_guanaco.errors import (
    ConfigurationError,
    ModelLoadError,
    OutOfMemoryError,
)
from dbgpt_guanaco.settings import ModelSettings, Quantization
from dbgpt_guanaco.start import Tell, tell_nobody
from dbgpt_guanaco.types import ModelCard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with all that an engine must know of it.

    Attributes:
        card: What clients and the log are told.
        model: A transformers causal LM, in eval mode.
        tokenizer: Its tokenizer.
        template: How conversations are written for it.
        bos_token_id: Id that every prompt begins with, where the family states it.
        stop_token_ids: Ids that end an answer.
        kv_tokens: Tokens whose keys and values fit beside the weights.
        lora: What is laid on it for every request that names no other LoRA.
        model_path: Folder that it was loaded from.
    """

    card: ModelCard
    model: Any
    tokenizer: Any
    template: PromptTemplate
    bos_token_id: int | None
    stop_token_ids: frozenset[int]
    kv_tokens: int
    lora: Lora | None = None
    model_path: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a model is to be loaded, known before a weight is read.

    Attributes:
        context_tokens: Prompt and answer together.
        memory: What it will take.
        available_bytes: What is free on the device.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization
    context_tokens: int
    memory: MemoryPlan
    available_bytes: int

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            OutOfMemoryError: With every number, and what would fit.
        """
        self.memory.check(self.context_tokens, self.available_bytes, str(self.device))


def load_model(
    source: ModelSource,
    settings: ModelSettings,
    registry: AdapterRegistry,
    tell: Tell = tell_nobody,
) -> LoadedModel:
    """Load a model as the settings ask.

    Args:
        source: Its folders.
        settings: How it is to be loaded.
        registry: The families.
        tell: Hears how many tensors have been loaded.

    Raises:
        ConfigurationError: The settings contradict the machine or the checkpoint.
        ModelLoadError: The files cannot be served; ``OutOfMemoryError`` if they do not fit.
        UnknownModelError: No family matches and the tokenizer ships no template.
    """
    config = read_config(source.model_path, trusts_code=settings.trust_remote_code)
    if source.lora_path:
        refuse_other_base(source.lora_path, source.model_path)
    family = find_family(source, config, settings, registry)
    plan = plan_loading(source, config, settings)
    plan.check()

    logger.info(
        "loading %s as %s, %s arithmetic, on %s",
        source.name, plan.quantization, plan.dtype, plan.device,
    )  # fmt: skip
    with counting_tensors(tell):
        model = _load_weights(source.model_path, config, plan, settings)
    lora = read_lora(source.lora_path, model, plan.dtype) if source.lora_path else None
    if plan.device.type == "cpu":
        flatten_inputs(model)
    route_calls(model)
    model.eval()
    model.requires_grad_(False)
    # The checkpoint's sampling defaults must not leak into requests that say otherwise.
    model.generation_config = GenerationConfig()
    card = ModelCard(
        name=source.name,
        aliases=settings.aliases,
        family=family.name,
        quantization=plan.quantization,
        compute_dtype=str(plan.dtype).removeprefix("torch."),
        device=device_name(plan.device),
        context_tokens=plan.context_tokens,
        weight_bytes=int(model.get_memory_footprint()) + (lora.num_bytes if lora else 0),
        lora=source.lora_path.name if source.lora_path else None,
    )
    return LoadedModel(
        card=card,
        model=model,
        tokenizer=family.tokenizer,
        template=family.template,
        bos_token_id=family.bos_token_id,
        stop_token_ids=family.stop_token_ids,
        kv_tokens=max(plan.context_tokens, plan.memory.kv_tokens(plan.available_bytes)),
        lora=lora,
        model_path=source.model_path,
    )


def plan_loading(source: ModelSource, config: Any, settings: ModelSettings) -> LoadPlan:  # noqa: ANN401
    """Decide how a model is to be loaded. Of its weights the headers are read.

    Args:
        source: Where it is.
        config: Of transformers, for its folder.
        settings: What was asked for.

    Raises:
        ConfigurationError: The settings contradict the machine or the checkpoint.
        ModelLoadError: The files cannot be served.
    """
    device = find_device(settings)
    dtype = compute_dtype(settings.compute_dtype, device)
    quantization = _quantization(config, settings, source, dtype)
    refuse_lost_lora(source.model_path, quantization)
    shape = shape_of(config, trusts_code=settings.trust_remote_code)
    tensor_headers(weight_files(source.model_path))  # a file that was cut short is found here
    return LoadPlan(
        device,
        dtype,
        quantization,
        _context_tokens(shape, settings),
        plan_memory(
            shape,
            quantization,
            on_cuda=device.type == "cuda",
            lora_bytes=lora_bytes_of(source.lora_path),
        ),
        available_bytes(device, settings),
    )


def _quantization(
    config: Any,  # noqa: ANN401
    settings: ModelSettings,
    source: ModelSource,
    dtype: torch.dtype,
) -> Quantization:
    """Return what will be in memory; a checkpoint that is quantized stays as it is."""
    kind = stored_quantization(config, source.model_path)
    if kind is None:
        return settings.quantization
    if settings.is_quantization_given and settings.quantization != kind:
        raise ConfigurationError(
            f"{source.model_path} is stored as {kind}, but {settings.quantization} was asked for; "
            "drop that setting or name the 16-bit model"
        )
    # The checkpoint may carry bitsandbytes' default, float32, for which no fast kernel exists.
    config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    logger.info("%s is already quantized: %s is loaded as it is", source.name, kind)
    return kind


def _context_tokens(shape: ModelShape, settings: ModelSettings) -> int:
    own = shape.context_tokens
    if settings.context_tokens and settings.context_tokens > own:
        logger.info(
            "MAX_POSITION_EMBEDDINGS=%d is more than the model's own context of %d tokens, "
            "which is used",
            settings.context_tokens,
            own,
        )
    return min(own, settings.context_tokens or own)


def _load_weights(
    folder: Path,
    config: Any,  # noqa: ANN401
    plan: LoadPlan,
    settings: ModelSettings,
) -> Any:  # noqa: ANN401
    gpus = torch.cuda.device_count() if plan.device.type == "cuda" else 0
    placement: dict[str, Any] = {"device_map": {"": 0 if gpus else "cpu"}}
    if gpus > 1:
        max_memory = {i: gpu_bytes(i, settings) for i in range(gpus)}
        placement = {"device_map": "auto", "max_memory": max_memory}
    is_stored_quantized = getattr(config, "quantization_config", None) is not None
    wanted = None if is_stored_quantized else quantization_config(plan.quantization, plan.dtype)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            config=config,
            quantization_config=wanted,
            dtype=plan.dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=settings.trust_remote_code,
            **placement,
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{folder}: the GPU ran out of memory while loading") from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error
    # transformers fills what is missing with random numbers, and says so only in its log.
    absent = sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])})
    if absent:
        raise ModelLoadError(
            f"{folder} lacks {len(absent)} of the tensors that its config.json promises: "
            f"{', '.join(absent[:3])}{' …' if len(absent) > 3 else ''}"
        )
    spilled = {str(d) for d in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if gpus and spilled:
        raise ModelLoadError(f"parts of the model fell to {', '.join(spilled)}: too little memory")
    return model
