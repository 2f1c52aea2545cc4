"""An API dialect as a stranger would write one: its wire model, and one route around the served model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from trifocal.api.answers import finish_of
from trifocal.api.jobs import Job
from trifocal.api.needs import needs
from trifocal.api.serving import Serving
from trifocal.api.wire import Draft, Json, Picture

router = APIRouter(tags=["strange"])


class Asked(BaseModel):
    """A question, and a picture as a data URI."""

    question: str
    picture: str | None = None
    words: int = 16

    def draft(self) -> Draft:
        pictures = () if self.picture is None else (Picture(self.picture, "picture"),)
        return Draft("user", (self.question, *pictures))


@router.post("/strange/ask")
@needs(pool="answers")
async def ask(request: Request, asked: Asked, server: Serving) -> Response:
    """Answers whole."""
    job = Job([asked.draft()], server.sampling(max_tokens=asked.words))
    ((text, last),) = await server.collect(request, job)
    return Json({"said": text, "ended": finish_of(last)})
