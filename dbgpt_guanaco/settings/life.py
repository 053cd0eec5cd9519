"""How this server ends, and when it takes its own engine for stuck."""

from dbgpt_guanaco.settings.fields import Group, setting


class LifeSettings(Group):
    """How this server ends, and when it takes its own engine for stuck."""

    drain_s: float = setting(
        "GUANACO_DRAIN_S",
        30.0,
        "seconds that running answers have once the server is told to stop",
        ge=0,
        le=3600,
    )
    step_timeout_s: float = setting(
        "GUANACO_STEP_TIMEOUT",
        120.0,
        "seconds after which a step of the engine is taken for stuck",
        gt=0,
        le=3600,
    )
