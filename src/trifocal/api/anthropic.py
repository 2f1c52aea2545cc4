"""Anthropic's dialect: messages, with pictures and event streams."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.errors import explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.openai import additions_of
from trifocal.api.serving import Answers, Job, Server, Serving, Step
from trifocal.api.wire import Draft, Json, Picture, Wire, check_text, dump, user_text
from trifocal.messages import Role

__all__ = ["MessagesRequest", "router"]

router = APIRouter(tags=["Anthropic"])


class CacheControl(Wire):
    """Taken and without effect: features of pictures and prompts are always cached here."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(Wire):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class Base64Source(Wire):
    """A picture's bytes."""

    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Wire):
    """Where a picture is, on a host that the server allows."""

    type: Literal["url"]
    url: str


class ImageBlock(Wire):
    """A picture."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    cache_control: CacheControl | None = None


class Turn(Wire):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class MessagesRequest(Wire):
    """A conversation to go on with."""

    model: str
    max_tokens: int = Field(ge=1)
    messages: list[Turn] = Field(min_length=1, max_length=1024)
    system: str | list[TextBlock] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stop_sequences: list[str] | None = Field(None, max_length=16)
    stream: bool | None = None
    metadata: dict[str, str | None] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def job(self, server: Server) -> Job:
        """The conversation as turns.

        Raises:
            Refusal: tools or thinking, which no served template has.
        """
        for name in ("tools", "tool_choice"):
            if getattr(self, name):
                raise refuse("unsupported_parameter", f"{name}: no served template has tool calls", name)
        if self.thinking and self.thinking.get("type") != "disabled":
            raise refuse("unsupported_parameter", "thinking: no served template has it", "thinking")
        system = self.system if isinstance(self.system, str) else "\n\n".join(part.text for part in self.system or [])
        check_text(system, "system")
        drafts = [Draft("system", (system,))] if system else []
        drafts += [_draft(turn, f"messages[{at}]") for at, turn in enumerate(self.messages)]
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        chosen = {name: value for name, value in given.items() if value is not None}
        return Job(drafts, server.sampling(max_tokens=self.max_tokens, stop=self.stop_sequences, **chosen))


@router.post("/v1/messages", summary="Answer a conversation", responses=STREAMED)
async def messages(request: Request, body: MessagesRequest, server: Serving) -> Response:
    """The next turn of a conversation; streamed as server-sent events when asked."""
    server.check_model(body.model)
    head = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": server.name,
        "stop_sequence": None,
    }
    if body.stream:
        answers = await server.answer(request, body.job(server))
        return EventStream(_events(answers, head), server.settings.write_seconds)
    ((text, step),) = await server.collect(request, body.job(server))
    content = [{"type": "text", "text": text}]
    end = {"stop_reason": _reason(step), "usage": _usage(step), "trifocal": additions_of(step)}
    return Json({**head, "content": content, **end})


async def _events(answers: Answers, head: dict[str, Any]) -> AsyncGenerator[str, None]:
    empty = {**head, "content": [], "stop_reason": None, "usage": {"input_tokens": 0, "output_tokens": 0}}
    yield _event("message_start", message=empty)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    try:
        async for step in answers.all():
            if step.text:
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": step.text})
            if step.end:
                yield _event("content_block_stop", index=0)
                delta = {"stop_reason": _reason(step), "stop_sequence": None}
                yield _event("message_delta", delta=delta, usage=_usage(step), trifocal=additions_of(step))
    except Exception as error:
        yield _event("error", **explain(error).body)
        return
    yield _event("message_stop")


def _event(kind: str, **content: Any) -> str:
    return event(dump({"type": kind, **content}), kind)


def _reason(step: Step) -> str:
    return "max_tokens" if step.end and step.end.finish == "length" else "end_turn"


def _usage(step: Step) -> dict[str, int]:
    assert step.end is not None
    return {
        "input_tokens": step.end.prompt_tokens,
        "output_tokens": step.end.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def _draft(turn: Turn, where: str) -> Draft:
    role: Role = turn.role
    blocks = [TextBlock(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    parts: list[Any] = []
    for at, block in enumerate(blocks):
        name = f"{where}.content[{at}]"
        if isinstance(block, ImageBlock):
            if role != "user":
                raise refuse("invalid_value", "only user messages hold pictures", name)
            parts.append(_picture(block, name))
        elif role == "user":
            parts.append(user_text(block.text, name))
        else:
            check_text(block.text, name)
            parts.append(block.text)
    return Draft(role, tuple(parts))


def _picture(block: ImageBlock, name: str) -> Picture:
    if isinstance(block.source, UrlSource):
        return Picture(block.source.url, name)
    return Picture(from_base64(block.source.data, name), name)


def from_base64(text: str, name: str) -> bytes:
    """The bytes of plain base64.

    Raises:
        Refusal: it is none.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise refuse("invalid_image", f"{name}: the base64 is broken", name) from error
