"""What a server would hand to the application, for tests without a network."""

from typing import Any


def post_of(path: str) -> dict[str, Any]:
    """The scope of a POST with JSON."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
