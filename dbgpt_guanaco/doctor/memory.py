"""Does the model fit the memory that is free now?"""

from dbgpt_guanaco.adapters.loading import plan_loading
from dbgpt_guanaco.adapters.memory import GIB
from dbgpt_guanaco.doctor.findings import Finding, NotCheckedError, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.errors import ModelLoadError

# Some tokens of cache are needed for a conversation and an answer, whatever the model could hold.
FEW_CONTEXTS = 2


def memory(setup: Setup) -> Finding:
    """Add up what the model takes, as the server does before it loads; an error tells numbers."""
    settings = setup.settings
    try:
        plan = plan_loading(setup.source, setup.config, settings.model)
    except ModelLoadError:
        raise NotCheckedError("the model's files must be mended first") from None
    plan.check()
    fits = plan.memory.kv_tokens(plan.available_bytes)
    told = (
        f"{plan.memory.weight_bytes / GIB:.2f} GiB of weights as {plan.quantization} and "
        f"{plan.memory.overhead_bytes / GIB:.2f} GiB of working room fit the "
        f"{plan.available_bytes / GIB:.2f} GiB that are free on {plan.device}, and {fits:,} tokens "
        f"of cache beside them"
    )
    if fits < FEW_CONTEXTS * plan.context_tokens:
        return warning(
            f"{told}: only one conversation of {plan.context_tokens:,} tokens at a time, though "
            f"LIMIT_MODEL_CONCURRENCY={settings.engine.slots}",
            f"MAX_POSITION_EMBEDDINGS={max(256, fits // 4)}   # or a smaller model",
        )
    return ok(told)
