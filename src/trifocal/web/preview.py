"""The preview of a picture: the very squares that the model is shown."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trifocal.api.errors import ErrorBody, Refusal
from trifocal.api.needs import needs
from trifocal.api.serving import Server, Serving
from trifocal.api.wire import Draft, Json, Picture, Wire
from trifocal.messages import Message
from trifocal.vision import Box, View
from trifocal.web.info import fit_of, fit_words

__all__ = ["PreviewRequest", "router"]

router = APIRouter(tags=["Page"])


class PreviewRequest(Wire):
    """A picture as a ``data:`` URI."""

    image: str
    model: str | None = None


@router.post("/page/api/preview", summary="What the model sees of a picture", responses={501: {"model": ErrorBody}})
@needs(pool="light")
async def preview(request: Request, body: PreviewRequest, server: Serving) -> Response:
    """The squares that the vision tower is given, and which part of the picture each shows."""
    server.check_model(body.model)
    draft = Draft("user", (Picture(body.image, "image"),))
    return Json(await server.work(request, [draft], lambda messages: _shown(server, messages)))


def _shown(server: Server, messages: list[Message]) -> dict[str, Any]:
    (image,) = messages[0].images
    told, checkpoint = server.llava.preview(image), server.llava.checkpoint
    if told is None:
        raise Refusal(501, "not_supported", "this model's vision can't show what it is given")
    return {
        "size": [image.width, image.height],
        "fit": fit_of(checkpoint),
        "fit_words": fit_words(checkpoint),
        "positions": told.rows,
        "tiles": [{"image": _uri(view), "title": view.title, "box": _inside(view.box)} for view in told.views],
        "seen": _inside(_around([view.box for view in told.views])),
    }


def _uri(view: View) -> str:
    buffer = BytesIO()
    view.picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _around(boxes: list[Box]) -> Box:
    """The smallest box around all of these."""
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return left, top, right - left, bottom - top


def _inside(box: Box) -> list[float]:
    """The part of a box that is on the picture."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[0] + box[2], 1.0), min(box[1] + box[3], 1.0)
    return [round(value, 6) for value in (left, top, right - left, bottom - top)]
