"""``/metrics``: all that is counted, as Prometheus reads it. What it means: ``docs/metrics.md``."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from dbgpt_guanaco.server.dependencies import MetricsDep

router = APIRouter(tags=["health"])


@router.get("/metrics")
async def metrics(
    metrics: MetricsDep, accept: Annotated[str, Header(max_length=4096)] = ""
) -> Response:
    """Return every metric, written in a thread of its own so that no stream waits for it."""
    encode, media_type = choose_encoder(accept)
    body = await asyncio.to_thread(encode, metrics.registry)
    return Response(body, headers={"Content-Type": media_type})
