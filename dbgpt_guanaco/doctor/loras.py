"""Do the LoRAs fit the model? Told without reading all weights."""

from pathlib import Path

from dbgpt_guanaco.adapters.cards import check_base
from dbgpt_guanaco.adapters.lora import check_fit
from dbgpt_guanaco.adapters.resolve import find_lora
from dbgpt_guanaco.checkpoints.layout import meta_model
from dbgpt_guanaco.doctor.findings import Finding, failure, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import GuanacoError

MEND = "mend the folder, or take it out of GUANACO_LORA and GUANACO_LORAS"


def loras(setup: Setup) -> Finding:
    """Lay every LoRA that the settings name on the model's modules, without weights."""
    settings = setup.settings
    named = list(settings.engine.loras)
    if not named and not setup.source.lora_path:
        return ok("none are named")
    base_folder = setup.source.model_path
    base = meta_model(base_folder)
    told, problems, doubts = [], [], []
    folders: list[tuple[str, Path | None]] = [(name, None) for name, _ in named]
    if setup.source.lora_path:
        folders.append((setup.source.lora_path.name, setup.source.lora_path))
    for name, folder in folders:
        try:
            where = folder or find_lora(dict(named)[name], settings.model, may_fetch=False)
            other = check_base(where, base_folder)
            told.append(f"{name}: {check_fit(where, base)} pairs fit")
            if other:
                doubts.append(f"{name}: it was made for {other!r}, so its folder says")
        except GuanacoError as error:
            problems.append(f"{name}: {error}")
    if problems:
        return failure("\n".join(problems), MEND)
    if doubts:
        return warning(
            "\n".join([*doubts, "the shapes fit; whether the weights are the same cannot be told"]),
            f"make sure that {base_folder} is that model: answers would be nonsense on another",
        )
    return ok("; ".join(told))
