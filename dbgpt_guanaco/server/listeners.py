"""Settings → who is told of each request when it has ended."""

from dbgpt_guanaco.errors import ConfigurationError
from dbgpt_guanaco.server.exchange import Listener
from dbgpt_guanaco.settings import ObservationSettings


def create_listeners(settings: ObservationSettings) -> list[Listener]:
    """Return a tracer where one is set; else nobody, and no library for it is loaded.

    Raises:
        ConfigurationError: The libraries that it needs are not installed.
    """
    if not settings.otlp_endpoint:
        return []
    try:
        from dbgpt_guanaco.server.tracing import Tracing
    except ImportError as error:
        raise ConfigurationError(
            f"GUANACO_OTLP_ENDPOINT is set, but {error.name} is not installed; "
            "pip install 'dbgpt-guanaco[tracing]', or unset it"
        ) from None
    return [Tracing.to(settings.otlp_endpoint)]
