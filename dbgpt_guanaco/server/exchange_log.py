"""The line that is logged when a request ends: who asked for what, how much it was, how long."""

import logging
from collections.abc import Iterable
from typing import Any

from dbgpt_guanaco.server.exchange import Exchange, shown_path
from dbgpt_guanaco.server.progress import Progress

logger = logging.getLogger(__name__)

# What is asked for all the time while all is well: by DB-GPT before each chat, by workers, by
# Prometheus.
ROUTINE = ("/metrics", "/api/health", "/api/controller/")
# Asked for all the time also while nothing is well; what is not well says so itself.
PROBES = ("/health", "/ready")


def log_exchange(exchange: Exchange) -> None:
    """Log that a request ended, with numbers and never with text."""
    status = exchange.status or 0
    level = logging.WARNING if status >= 500 else logging.INFO
    logger.log(
        logging.DEBUG if is_routine(exchange.path, status) else level,
        "%s %s answered %d",
        exchange.method,
        shown_path(exchange.path),
        status,
        extra={"fields": fields(exchange)},
    )


def is_routine(path: str, status: int) -> bool:
    """Say whether a response is nothing to tell of; a failed one is, with one exception."""
    if path in PROBES:
        return True
    if path.startswith("/api/controller/") and status == 403:
        return True  # the controller says it, once for each caller
    return path.startswith(ROUTINE) and status == 200


def fields(exchange: Exchange) -> dict[str, Any]:
    """Return the numbers of an exchange, without those that it has not."""
    found = {
        "request_id": exchange.request_id,
        "client": exchange.client,
        "dialect": exchange.dialect,
        "status": exchange.status,
        "key_name": exchange.key_name,
        "error": exchange.problem,
        "total_s": round(exchange.total_s, 4),
        **_asked(exchange.asked),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _asked(asked: list[Progress]) -> dict[str, Any]:
    """Return counts over all answers of a request, and the times of those that were first."""
    if not asked:
        return {}
    queued = [p.queue_s for p in asked if p.queue_s is not None]
    waited = [p.first_token_s for p in asked if p.first_token_s is not None]
    return {
        "model": asked[0].model,
        "answer_id": asked[0].asked_id,
        "answers": len(asked) if len(asked) > 1 else None,
        "prompt_tokens": sum(p.usage.prompt_tokens for p in asked),
        "cached_tokens": sum(p.usage.cached_tokens for p in asked),
        "completion_tokens": sum(p.usage.completion_tokens for p in asked),
        "queue_s": round(min(queued), 4) if queued else None,
        "first_token_s": round(min(waited), 4) if waited else None,
        "finish_reason": _joined(p.outcome for p in asked),
        "problem": _joined(p.problem for p in asked),
    }


def _joined(words: Iterable[str | None]) -> str:
    return ",".join(dict.fromkeys(word for word in words if word))
