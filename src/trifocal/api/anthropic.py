"""Anthropic's dialect: messages, with pictures, tools and event streams, and counting."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.answers import additions_of
from trifocal.api.anthropic_messages import TextBlock, Turn, drafts_of, notes_of
from trifocal.api.errors import explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.jobs import Answers, Job, Step
from trifocal.api.needs import needs
from trifocal.api.parameters import UNTOLD, Share, Temperature, TopK, Whole
from trifocal.api.serving import Server, Serving
from trifocal.api.tools import Offer, choice_of, offer_of
from trifocal.api.wire import (
    Draft,
    Json,
    Wire,
    check_text,
    dump,
)
from trifocal.messages import Call

__all__ = ["MessagesRequest", "router"]

router = APIRouter(tags=["Anthropic"])


class OutputConfig(Wire):
    """How much to think, which has no effect here, and the schema of the answer."""

    untold = UNTOLD | {"effort"}

    format: dict[str, Any] | None = None
    effort: Any = None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer is held to.

        Raises:
            Refusal: a format of another kind.
        """
        given = self.format or {"type": "text"}
        if given.get("type") == "text":
            return None
        if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
            raise refuse("invalid_value", "it is a json_schema with a schema", "output_config.format")
        return dump(given["schema"])


class Conversation(Wire):
    """What is answered or counted."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=1024)
    system: str | list[TextBlock] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None

    @property
    def drafts(self) -> list[Draft]:
        """The conversation as turns.

        Raises:
            Refusal: what no model here can take in.
        """
        system = self.system if isinstance(self.system, str) else "\n\n".join(part.text for part in self.system or [])
        check_text(system, "system")
        drafts = [Draft("system", (system,))] if system else []
        names: dict[str, str] = {}
        for at, turn in enumerate(self.messages):
            drafts += drafts_of(turn, f"messages[{at}]", names)
        return drafts

    @property
    def offer(self) -> Offer:
        """The functions that may be called."""
        single = bool(self.tool_choice and self.tool_choice.get("disable_parallel_tool_use"))
        return offer_of(self.tools, choice_of(self.tool_choice) if self.tools else "auto", single=single)

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer is held to."""
        config = OutputConfig(format=self.output_format) if self.output_format else self.output_config
        return config.schema_text if config else None


class MessagesRequest(Conversation):
    """A conversation to go on with."""

    max_tokens: Whole = Field(ge=1)
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stop_sequences: list[str] | None = Field(None, max_length=8191)
    stream: bool | None = None

    def job(self, server: Server) -> Job:
        """What is asked for."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        offer = self.offer
        held = "tool_choice" if offer.forced else "output_config.format"
        schema, stop = offer.schema or self.schema_text, self.stop_sequences
        sampling = server.sampling(max_tokens=self.max_tokens, stop=stop, schema=schema, **given)
        return Job(self.drafts, sampling, offer=offer, notes=self.told, held=held)

    @property
    def told(self) -> tuple[str, ...]:
        """What of the request has no effect here."""
        turns = notes_of(self.messages)
        effort = bool(self.output_config and self.output_config.effort)
        return (*self.notes, *turns, *(["output_config.effort has no effect here"] if effort else []))


class CountRequest(Conversation):
    """A conversation whose positions are counted."""

    lenient = True


@router.post("/v1/messages", summary="Answer a conversation", responses=STREAMED)
@needs(pool="answers")
async def messages(request: Request, body: MessagesRequest, server: Serving) -> Response:
    """The next turn of a conversation; streamed as server-sent events when asked."""
    server.check_model(body.model)
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": server.name}
    if body.stream:
        answers = await server.answer(request, body.job(server))
        return EventStream(_events(answers, head), server.settings.write_seconds)
    ((text, step),) = await server.collect(request, body.job(server))
    content = [{"type": "text", "text": text}] if text or not step.calls else []
    content += [_called(call) | {"input": call.values} for call in step.calls]
    return Json({**head, "content": content, **_reason(step), "usage": _usage(step), "trifocal": additions_of(step)})


@router.post("/v1/messages/count_tokens", summary="Count a conversation")
@needs(pool="light")
async def count_tokens(request: Request, body: CountRequest, server: Serving) -> Response:
    """How many positions a conversation takes, its pictures included: `{"input_tokens": ...}`."""
    server.check_model(body.model)
    tools = body.offer.tools
    count = await server.work(request, body.drafts, lambda talk: server.llava.count(talk, tools=tools))
    return Json({"input_tokens": count})


async def _events(answers: Answers, head: dict[str, Any]) -> AsyncGenerator[str, None]:
    usage = {**_no_usage(), "input_tokens": answers.first.prompt_tokens, "output_tokens": 0}
    empty = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield _event("message_start", message=empty)
    blocks = 0
    try:
        async for step in answers.all():
            begins = blocks == 0 and (step.text or (step.end and not step.calls))
            if begins:
                yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
                blocks = 1
            if step.text:
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": step.text})
            if step.end:
                if blocks:
                    yield _event("content_block_stop", index=0)
                for at, call in enumerate(step.calls, start=blocks):
                    yield "".join(_call_events(at, call))
                yield _event("message_delta", delta=_reason(step), usage=_usage(step), trifocal=additions_of(step))
    except Exception as error:
        yield _event(**explain(error).body("/v1/messages"))
        return
    yield _event("message_stop")


def _call_events(at: int, call: Call) -> Iterator[str]:
    yield _event("content_block_start", index=at, content_block=_called(call))
    delta = {"type": "input_json_delta", "partial_json": call.arguments}
    yield _event("content_block_delta", index=at, delta=delta)
    yield _event("content_block_stop", index=at)


def _event(type: str, **content: Any) -> str:
    return event(dump({"type": type, **content}), type)


def _called(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _reason(step: Step) -> dict[str, str | None]:
    """Why the answer ended, and at which of the caller's stop strings."""
    assert step.end is not None
    if step.end.finish == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if step.calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    return {"stop_reason": "stop_sequence" if step.end.stopped_by else "end_turn", "stop_sequence": step.end.stopped_by}


def _usage(step: Step) -> dict[str, Any]:
    assert step.end is not None
    return {**_no_usage(), "input_tokens": step.end.prompt_tokens, "output_tokens": step.end.completion_tokens}


def _no_usage() -> dict[str, Any]:
    return {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "service_tier": "standard"}
