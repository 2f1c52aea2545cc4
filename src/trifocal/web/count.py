"""The meter of the context: what each message takes, what is left out, what would be next."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.needs import needs
from trifocal.api.openai import keep_of, template_of
from trifocal.api.openai_messages import ChatMessage, drafts_of
from trifocal.api.serving import Serving
from trifocal.api.wire import Json, Wire
from trifocal.model.budget import Budget

__all__ = ["CountRequest", "router"]

router = APIRouter(tags=["Page"])


class CountRequest(Wire):
    """A conversation as in chat completions, which pictures stay, and how long the answer may be."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    images: str | int | None = None
    max_tokens: int | None = Field(None, ge=1)
    template: str | None = None
    model: str | None = None


@router.post("/page/api/count", summary="What a conversation takes of the context")
@needs(pool="light")
async def count(request: Request, body: CountRequest, server: Serving) -> Response:
    """Positions of text and pictures, message by message. No picture is looked at."""
    server.check_model(body.model)
    images, template = keep_of(body.images, "images"), template_of(body.template, "template")
    budget = await server.work(
        request,
        drafts_of(body.messages),
        lambda messages: server.llava.budget(messages, body.max_tokens, images=images, template=template),
    )
    return Json(_told(budget))


def _told(budget: Budget) -> dict[str, Any]:
    return {
        "context": budget.context,
        "answer": budget.answer,
        "text": budget.text,
        "pictures": budget.pictures,
        "total": budget.total,
        "messages": [
            {
                "text": turn.text,
                "pictures": list(turn.pictures),
                "left_out": turn.left_out,
                "pictures_left_out": list(turn.pictures_left_out),
            }
            for turn in budget.turns
        ],
        "left_out": list(budget.left_out),
        "next": budget.next,
        "fits": budget.fits,
    }
