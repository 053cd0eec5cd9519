"""Time that passes for an engine's watchdog and for nobody else, so that no test waits for it."""

from typing import Any

STUCK = "a step of the engine has been running for more than"


def let_time_pass(engine: Any, seconds: float) -> None:
    """Put an engine's watchdog forward, and let it look."""
    watchdog = engine._watchdog
    clock = watchdog._clock
    watchdog._clock = lambda: clock() + seconds
    watchdog.look()
