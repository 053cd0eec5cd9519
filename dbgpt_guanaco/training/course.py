"""What will be trained on what, and how: everything that is known before a weight is read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dbgpt_guanaco.adapters import default_registry
from dbgpt_guanaco.adapters.family import Family, find_family
from dbgpt_guanaco.adapters.fingerprint import fingerprint
from dbgpt_guanaco.adapters.machine import available_bytes, find_device
from dbgpt_guanaco.adapters.quantization import compute_dtype
from dbgpt_guanaco.adapters.resolve import ModelSource
from dbgpt_guanaco.adapters.shapes import ModelShape, read_config, shape_of
from dbgpt_guanaco.adapters.training_memory import TrainingPlan, TrainingRun, plan_training
from dbgpt_guanaco.checkpoints.companions import library_versions
from dbgpt_guanaco.checkpoints.names import find_model
from dbgpt_guanaco.checkpoints.source import open_source
from dbgpt_guanaco.errors import ConfigurationError, UnknownModelError
from dbgpt_guanaco.settings import ModelSettings
from dbgpt_guanaco.training.conversations import read_data
from dbgpt_guanaco.training.examples import Example, ExampleMaker
from dbgpt_guanaco.training.hyperparameters import Hyperparameters, defaults
from dbgpt_guanaco.training.schedule import Schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """The 16-bit model that is trained on.

    Attributes:
        name: As the LoRA's configuration names it, so that the server finds it from anywhere.
        fingerprint: See ``fingerprint``.
        parameters: How many numbers it has.
    """

    name: str
    fingerprint: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Course:
    """A training that can begin.

    Attributes:
        source: Where the base is.
        settings: For loading it: in NF4, on the device.
        data: What of the data became examples, as JSON.
        how: The hyperparameters, none of them left open.
        memory: What it will take at its peak.
    """

    base: Base
    source: ModelSource
    settings: ModelSettings
    family: Family
    data: Mapping[str, Any]
    examples: Sequence[Example]
    how: Hyperparameters
    memory: TrainingPlan

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return Schedule(self.examples, self.how).steps

    @property
    def job(self) -> dict[str, Any]:
        """All that decides the result, as JSON; a run goes on only where this is the same."""
        dtype = compute_dtype(self.settings.compute_dtype, find_device(self.settings))
        return {
            "command": "finetune",
            "base": asdict(self.base),
            "family": self.family.name,
            "quantization": self.settings.quantization,
            "double_quantization": True,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "device": self.settings.device,
            "data": dict(self.data),
            "hyperparameters": asdict(self.how) | {"epochs": self.how.rounds},
            "versions": library_versions(),
        }


def plan_course(
    base: str,
    data: Path,
    out: Path,
    settings: ModelSettings,
    options: Mapping[str, Any],
    *,
    family: str | None = None,
    skips_bad: bool = False,
) -> Course:
    """Look at base and data; of the weights only the headers are read.

    Args:
        base: A folder, a known name or a hub name of a 16-bit model.
        data: JSONL of conversations.
        out: What the LoRA will be called; its name may tell the family, as in serving.
        settings: The device and the dtype of the arithmetic come from here.
        options: Hyperparameters that differ from the paper's.
        family: How prompts are to be written; None finds it as the server does.
        skips_bad: Leave lines out that are no conversations.

    Raises:
        GuanacoError: The base cannot be trained, or the data not learned from.
    """
    model = open_source(find_model(base, settings))
    config = read_config(model.folder, trusts_code=settings.trust_remote_code)
    shape = shape_of(config, trusts_code=settings.trust_remote_code)
    loading = _for_training(base, settings, family)
    how = _hyperparameters(shape, options, on_cuda=loading.device == "cuda")
    source = ModelSource(Path(base).name, model.folder, None, (out.name, base))
    spoken = _find_family(source, config, loading)
    read = read_data(data, skips_bad=skips_bad)
    maker = ExampleMaker(spoken, how.max_tokens, shape.vocabulary)
    examples = maker.make_all(read.conversations)
    name = _base_name(base, model.folder, settings.models_dir)
    return Course(
        base=Base(name, fingerprint(model.files), shape.parameters),
        source=source,
        settings=loading,
        family=spoken,
        data={
            "name": read.name,
            "sha256": read.sha256,
            "bad_lines": read.bad_lines,
            **asdict(maker.counts),
        },
        examples=examples,
        how=how,
        memory=_memory(shape, examples, how, loading),
    )


def _memory(
    shape: ModelShape,
    examples: Sequence[Example],
    how: Hyperparameters,
    settings: ModelSettings,
) -> TrainingPlan:
    """Predict what the training takes, and refuse what does not fit.

    Raises:
        OutOfMemoryError: It does not fit.
    """
    longest = max(len(example.input_ids) for example in examples)
    run = TrainingRun(how.rank, how.micro_batch, longest, how.optimizer, how.recomputes)
    device = find_device(settings)
    plan = plan_training(shape, run, settings.quantization, on_cuda=device.type == "cuda")
    plan.check(available_bytes(device, settings), str(device))
    return plan


def _for_training(base: str, settings: ModelSettings, family: str | None) -> ModelSettings:
    return settings.model_copy(
        update={
            "name": base,
            "adapter": family or settings.adapter,
            "quantization_override": "nf4",
            "device": find_device(settings).type,
            "context_tokens": 16,  # nothing is generated: no cache has to fit
        }
    )


def _hyperparameters(
    shape: ModelShape, options: Mapping[str, Any], *, on_cuda: bool
) -> Hyperparameters:
    """Return the paper's values, changed as asked, and none of them left open."""
    given = {name: value for name, value in options.items() if value is not None}
    how = Hyperparameters(**{**defaults(shape.parameters, on_cuda=on_cuda), **given})
    if how.optimizer == "paged_adamw_32bit" and not on_cuda:
        raise ConfigurationError("--optimizer paged_adamw_32bit needs a GPU; drop it")
    return replace(how, max_tokens=min(how.max_tokens, shape.context_tokens))


def _find_family(source: ModelSource, config: Any, settings: ModelSettings) -> Family:  # noqa: ANN401
    registry = default_registry()
    known = ", ".join(registry.names)
    if settings.adapter and settings.adapter not in registry.names:
        raise ConfigurationError(f"--family {settings.adapter} is no family; known: {known}")
    try:
        return find_family(source, config, settings, registry)
    except UnknownModelError:
        raise ConfigurationError(
            f"{source.name} is of no known family, and its tokenizer ships no chat template; say "
            f"with --family how prompts are to be written: {known}"
        ) from None


def _base_name(base: str, folder: Path, models_dir: Path) -> str:
    """Return a name under which the server finds the base from any folder."""
    if not Path(base).expanduser().is_dir():
        return base
    full, models = folder.resolve(), models_dir.expanduser().resolve()
    return str(full.relative_to(models)) if full.is_relative_to(models) else str(full)
