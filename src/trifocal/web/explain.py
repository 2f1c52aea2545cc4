"""Where it looked, for the page: each word of an answer over each picture."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.caller import caller_of
from trifocal.api.errors import ErrorBody, Refusal
from trifocal.api.needs import needs
from trifocal.api.openai import keep_of, template_of
from trifocal.api.openai_messages import ChatMessage, drafts_of
from trifocal.api.serving import Serving
from trifocal.api.wire import Json, Wire
from trifocal.model.explaining import ExplainedPicture, ExplainedWord, Explanation

__all__ = ["ExplainRequest", "router"]

router = APIRouter(tags=["Page"])


class ExplainRequest(Wire):
    """A conversation that ends with the assistant's answer, and the options with which it was asked for."""

    messages: list[ChatMessage] = Field(min_length=2, max_length=1024)
    images: str | int | None = None
    max_tokens: int | None = Field(None, ge=1)
    template: str | None = None
    model: str | None = None


@router.post(
    "/page/api/explain", summary="Where it looked for each word of an answer", responses={501: {"model": ErrorBody}}
)
@needs(pool="answers")
async def explain(request: Request, body: ExplainRequest, server: Serving) -> Response:
    """The attention of each word of the last message over the patches of each picture that stays."""
    server.check_model(body.model)
    llava = server.llava
    if llava.explains_not:
        raise Refusal(501, "not_supported", llava.explains_not)
    images, template = keep_of(body.images, "images"), template_of(body.template, "template")
    asked = partial(
        llava.explain,
        images=images,
        template=template,
        max_tokens=body.max_tokens,
        scope=server.scope(caller_of(request)),
    )
    told = await server.work(request, drafts_of(body.messages), asked)
    return Json(_told(told))


def _told(explanation: Explanation) -> dict[str, Any]:
    return {
        "words": [_word(word) for word in explanation.words],
        "images": [_picture(picture) for picture in explanation.pictures],
    }


def _word(word: ExplainedWord) -> dict[str, Any]:
    looks = [{"index": look.image, "share": round(look.share, 4), "grid": look.grid} for look in word.heatmaps]
    return {"text": word.text, "start": word.start, "end": word.end, "images": looks}


def _picture(picture: ExplainedPicture) -> dict[str, Any]:
    return {
        "index": picture.image,
        "rows": picture.rows,
        "columns": picture.columns,
        "box": picture.box,
        "words": [{"word": word, "weight": weight} for word, weight in picture.words],
    }
