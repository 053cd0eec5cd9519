"""How the server tells what it does: logs and traces."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from dbgpt_guanaco.settings.fields import Group, setting

LogFormat = Literal["text", "json"]


class ObservationSettings(Group):
    """How the server tells what it does: logs and traces."""

    log_format: LogFormat = setting(
        "GUANACO_LOG_FORMAT", "text", "text for people, json for programs: one object a line"
    )
    otlp_endpoint: str | None = setting(
        "GUANACO_OTLP_ENDPOINT", None, "address of an OpenTelemetry collector to send traces to"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        url = urlsplit(value or "http://none")
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
            raise ValueError("is not an address such as http://127.0.0.1:4318")
        return value
