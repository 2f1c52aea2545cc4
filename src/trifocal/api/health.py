"""What is told about the server itself: alive, ready, counters and limits."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from trifocal.api.errors import server_busy
from trifocal.api.needs import needs
from trifocal.api.serving import Serving
from trifocal.api.wire import Json

__all__ = ["router"]

router = APIRouter(tags=["Server"])


@router.get("/livez", name="livez", summary="Whether the process answers")
@needs(key=False)
async def livez() -> Response:
    """Always 200 while the process answers at all."""
    return Json({"status": "ok"})


@router.get("/readyz", name="readyz", summary="Whether requests are taken")
@needs(key=False)
async def readyz(server: Serving) -> Response:
    """200 while requests are taken and the engine can answer them, 503 otherwise: its code and message say why."""
    if server.draining:
        raise server_busy("shutting_down", "the server is shutting down")
    state = server.state()
    if state.phase != "ready":
        raise server_busy(f"engine_{state.phase}", state.reason or f"the language engine is {state.phase}")
    return Json({"status": "ok", **({"reason": state.reason} if state.reason else {})})


@router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
async def metrics(server: Serving) -> Response:
    """Requests, queue, slots, pictures, tokens and seconds per step."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/limits", summary="How much is taken")
async def limits(server: Serving) -> Response:
    """Every limit that a request can meet. Bytes, seconds, counts and pixels."""
    settings, llava = server.settings, server.llava
    sides = server.image_limits
    return Json(
        {
            "context": llava.context,
            "body_bytes": settings.body_bytes,
            "headers": {"bytes": settings.header_bytes, "count": settings.header_count},
            "images": {
                "count": settings.images,
                "bytes": sides.bytes,
                "pixels": sides.pixels,
                "side": sides.side,
                "aspect": sides.aspect,
                "decoded_bytes": settings.decoded_bytes,
                "formats": ["JPEG", "PNG", "WebP", "GIF"],
                "url_hosts": sorted(settings.url_hosts),
            },
            "text_bytes": settings.text_bytes,
            "json": {"depth": settings.json_depth, "values": settings.json_values},
            "answers": settings.answers,
            "stop": {"count": settings.stops, "characters": settings.stop_characters},
            "slots": server.admission.slots,
            "positions": server.admission.capacity,
            "queue": settings.queue,
            "per_key": settings.per_key if settings.keys else None,
            "seconds": {
                "request": settings.deadline,
                "queue": settings.queue_wait,
                "headers": settings.header_seconds,
                "body": settings.body_seconds,
            },
        }
    )
