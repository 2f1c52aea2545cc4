"""OpenAI's Responses: the same answers as items, streamed as typed events, and kept for the next request."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.answers import additions_of, scored
from trifocal.api.caller import caller_of
from trifocal.api.errors import Refusal, explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.items import Item, Said, drafts_of, said_of
from trifocal.api.jobs import Answers, Job, Step
from trifocal.api.needs import needs
from trifocal.api.openai import StreamOptions
from trifocal.api.parameters import Count, Penalty, Seed, Share, Stop, Temperature, TopK, Whole, bound
from trifocal.api.serving import Server, Serving
from trifocal.api.stored import Stored
from trifocal.api.tools import Offer, allowed_of, choice_of, offer_of
from trifocal.api.wire import Draft, Json, Wire, check_text, dump
from trifocal.messages import Call

__all__ = ["ResponseRequest", "router"]

router = APIRouter(tags=["OpenAI"])
LOGPROBS = "message.output_text.logprobs"


class TextFormat(Wire):
    """The shape of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, validation_alias="schema", serialization_alias="schema")
    strict: bool | None = None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer is held to.

        Raises:
            Refusal: none was given.
        """
        if self.type == "text":
            return None
        if self.type == "json_schema" and self.schema_ is None:
            raise refuse("missing_required_parameter", "it is required", "text.format.schema")
        return dump(self.schema_ or {"type": "object"})


class Text(Wire):
    """How the answer's text is to be."""

    format: TextFormat | None = None


class ImageOptions(Wire):
    """How pictures are kept in a long conversation, which has no effect here: they stay as they are."""

    context_compression: str | None = None


class ResponseRequest(Wire):
    """Items to answer; ``previous_response_id`` says after which answer they come."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(max_length=1024)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Whole | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    text: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    background: Literal[False] | None = None
    image: ImageOptions | None = None

    def offer(self, items: Sequence[Said]) -> Offer:
        """The functions that may be called, those that items add to them included."""
        choice, allowed = choice_of(self.tool_choice), allowed_of(self.tool_choice)
        tools = [*(self.tools or ()), *(tool for item in items for tool in item.tools)]
        return offer_of(tools, choice, single=self.parallel_tool_calls is False, allowed=allowed)

    def job(self, server: Server, items: Sequence[Said]) -> Job:
        """What is asked for of a conversation."""
        if self.max_output_tokens == 0:
            raise refuse("invalid_value", "it is 1 or more, or -1 for as many as fit", "max_output_tokens")
        check_text(self.instructions or "", "instructions")
        told = [Draft("system", (self.instructions,))] if self.instructions else []
        offer = self.offer(items)
        names = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
        schema = self.text.format.schema_text if self.text and self.text.format else None
        scores = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        sampling = server.sampling(
            max_tokens=bound(self.max_output_tokens),
            schema=offer.schema or schema,
            top_logprobs=(self.top_logprobs or 0) if scores else None,
            stop=self.stop,
            **{name: getattr(self, name) for name in names},
        )
        notes = (*self.notes, *(self.text.notes if self.text else ()))
        if self.truncation == "disabled":
            notes = (*notes, "truncation disabled has no effect here: the oldest turns go where the context is full")
        held = "tool_choice" if offer.forced else "text.format"
        return Job([*told, *drafts_of(items)], sampling, offer=offer, notes=notes, held=held)


@router.post("/v1/responses", summary="Answer items", responses=STREAMED)
@needs(pool="answers")
async def respond(request: Request, body: ResponseRequest, server: Serving) -> Response:
    """An answer as items; streamed as server-sent events when asked, and kept unless `store` is false."""
    server.check_model(body.model)
    caller = caller_of(request)
    items = _items(server, caller, body)
    job = body.job(server, items)
    told = _Told(server, caller, body, items, job.offer)
    if body.stream:
        answers = await server.answer(request, job)
        return EventStream(_events(answers, told), server.settings.write_seconds)
    ((text, step),) = await server.collect(request, job)
    return Json(told.whole(text, step))


@router.post("/v1/responses/compact", summary="Conversations are not compacted", status_code=400)
@needs()
async def compact() -> Response:
    """Says that there is no shorter form of a conversation that only this server could read."""
    words = "conversations are not compacted here: send the whole one, its oldest turns go where the context is full"
    raise Refusal(400, "not_supported", words)


@router.post("/v1/responses/input_tokens", summary="Count items")
@needs(pool="light")
async def count(request: Request, body: ResponseRequest, server: Serving) -> Response:
    """How many positions items take, their pictures and what was said before included."""
    server.check_model(body.model)
    job = body.job(server, _items(server, caller_of(request), body))
    tools = job.offer.tools
    found = await server.work(request, job.drafts, lambda talk: server.llava.count(talk, tools=tools))
    return Json({"object": "response.input_tokens", "input_tokens": found})


@router.get("/v1/responses/{id}", summary="A response that was kept")
async def get(request: Request, id: str, server: Serving, stream: bool = False) -> Response:
    """The response as it was told, to the one who asked for it."""
    if stream:
        raise refuse("unsupported_parameter", "a kept response is not streamed again: leave it out", "stream")
    return Json(_found(server, caller_of(request), id).response)


@router.get("/v1/responses/{id}/input_items", summary="What a response answers")
async def input_items(
    request: Request,
    id: str,
    server: Serving,
    after: str | None = None,
    before: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The items that a kept response answers, those of earlier responses that it goes on from included."""
    items = [said.told for said in _found(server, caller_of(request), id).items]
    items = items[::-1] if order == "desc" else items
    start = 0 if after is None else _at(items, after, "after") + 1
    end = len(items) if before is None else _at(items, before, "before")
    page = items[start:end][:limit] if before is None else items[start:end][-limit:]
    more = len(page) < len(items[start:end])
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return Json({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})


@router.post("/v1/responses/{id}/cancel", summary="Answers are not given in the background", status_code=400)
@needs()
async def cancel(request: Request, id: str, server: Serving) -> Response:
    """Says that a response that is kept is done: none is given in the background."""
    _found(server, caller_of(request), id)
    words = "this response is done: only one that was asked for in the background could be cancelled, and none is here"
    raise refuse("not_in_background", words, "id")


@router.delete("/v1/responses/{id}", summary="Forget a response")
@needs()
async def delete(request: Request, id: str, server: Serving) -> Response:
    """The response is kept no longer."""
    _found(server, caller_of(request), id)
    server.responses.delete(caller_of(request), id)
    return Json({"id": id, "object": "response", "deleted": True})


def _at(items: Sequence[dict[str, Any]], id: str, param: str) -> int:
    """Where an item stands among them.

    Raises:
        Refusal: there is none of that id.
    """
    for at, item in enumerate(items):
        if item["id"] == id:
            return at
    raise refuse("item_not_found", f"there is no item {id[:80]} in this response", param)


def _found(server: Server, caller: str, id: str) -> Stored:
    stored = server.responses.get(caller, id)
    if stored is None:
        raise Refusal(404, "response_not_found", f"there is no response {id[:80]}: it was not kept, or no longer")
    return stored


def _items(server: Server, caller: str, body: ResponseRequest) -> tuple[Said, ...]:
    """What was said before and what is asked now."""
    before = _before(server, caller, body.previous_response_id)
    return (*before, *said_of(body.input, partial(server.responses.item, caller), before))


def _before(server: Server, caller: str, id: str | None) -> tuple[Said, ...]:
    """What was said up to the end of a response."""
    if id is None:
        return ()
    stored = server.responses.get(caller, id)
    if stored is None:
        words = f"there is no response {id[:80]}: it was not kept, or no longer; send the whole conversation"
        raise refuse("previous_response_not_found", words, "previous_response_id")
    return (*stored.items, *stored.answer)


@dataclass(slots=True, eq=False)
class _Told:
    """A response as it is told: its object in every state, its items, and what is kept of it."""

    server: Server
    caller: str
    body: ResponseRequest
    items: tuple[Said, ...]
    offer: Offer
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    message: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, status: str, **more: Any) -> dict[str, Any]:
        """The response object."""
        body = self.body
        written = body.text.format if body.text and body.text.format else TextFormat.model_validate({"type": "text"})
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self.server.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": 0.0 if body.temperature is None else body.temperature,
            "text": {"format": written.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "auto",
            "usage": None,
            "user": None,
            **more,
        }

    def whole(self, text: str, step: Step, scores: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The response when it is done; it is kept from here on. ``scores`` are those of a streamed text."""
        assert step.end is not None
        cut = step.end.finish == "length"
        status = "incomplete" if cut else "completed"
        message = [self.said(text, status, step)] if text or not step.calls else []
        if message and scores is not None:
            message[0]["content"][0]["logprobs"] = scores
        response = self.object(
            status,
            output=[*message, *(self.called(call) for call in step.calls)],
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage=_usage(step),
            trifocal=additions_of(step),
        )
        if self.body.store is not False:
            said = Draft("assistant", (text,) if text else (), calls=step.calls)
            output = enumerate(response["output"])
            answer = tuple(Said(item["id"], item, (said,) if at == 0 else ()) for at, item in output)
            items = tuple(item.kept for item in self.items)
            self.server.responses.put(self.caller, self.id, Stored(response, items, answer))
        return response

    def said(self, text: str, status: str, step: Step | None = None) -> dict[str, Any]:
        """The message item."""
        content = [_part(text, step)] if step else []
        return {"id": self.message, "type": "message", "status": status, "role": "assistant", "content": content}

    def called(self, call: Call, status: str = "completed") -> dict[str, Any]:
        """The item of a call; a function of a namespace is told as it was offered, which is how its client finds it."""
        space, name = self.offer.own.get(call.name, (None, call.name))
        return {
            "id": call.id.replace("call_", "fc_", 1),
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": name,
            **({"namespace": space} if space else {}),
            "arguments": call.arguments if status == "completed" else "",
        }


async def _events(answers: Answers, told: _Told) -> AsyncGenerator[str, None]:
    """The events in the order that is specified, each with its number."""
    number, text, scores = 0, "", list[dict[str, Any]]()

    def write(events: Iterator[dict[str, Any]]) -> str:
        nonlocal number
        written = []
        for each in events:
            written.append(event(dump({**each, "sequence_number": number}), each["type"]))
            number += 1
        return "".join(written)

    yield write(iter({"type": f"response.{kind}", "response": told.object("in_progress")} for kind in _FIRST))
    try:
        async for step in answers.all():
            begins = not text and bool(step.text or (step.end and not step.calls))
            logprobs = _scores(step)
            scores += logprobs
            if begins:
                yield write(_message_begins(told))
            if step.text:
                place = _place(told) | {"delta": step.text, "logprobs": logprobs}
                yield write(iter([{"type": "response.output_text.delta", **place}]))
                text += step.text
            if step.end:
                yield write(_ends(told, text, begins or bool(text), step, scores))
    except Exception as error:
        refusal = explain(error)
        failed = told.object("failed", error={"code": refusal.code, "message": refusal.message})
        yield write(iter([{"type": "response.failed", "response": failed}]))


_FIRST = ("created", "in_progress")


def _message_begins(told: _Told) -> Iterator[dict[str, Any]]:
    yield {"type": "response.output_item.added", "output_index": 0, "item": told.said("", "in_progress")}
    yield {"type": "response.content_part.added", **_place(told), "part": _part("", None)}


def _ends(
    told: _Told, text: str, has_message: bool, step: Step, scores: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The message is whole, the calls come, the response is done."""
    whole = told.whole(text, step, scores)
    output = whole["output"]
    if has_message:
        yield {"type": "response.output_text.done", **_place(told), "text": text, "logprobs": scores}
        yield {"type": "response.content_part.done", **_place(told), "part": output[0]["content"][0]}
        yield {"type": "response.output_item.done", "output_index": 0, "item": output[0]}
    for at, call in enumerate(step.calls, start=int(has_message)):
        yield {"type": "response.output_item.added", "output_index": at, "item": told.called(call, "in_progress")}
        place = {"item_id": output[at]["id"], "output_index": at}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": call.arguments}
        done = {"name": output[at]["name"], "arguments": call.arguments}
        yield {"type": "response.function_call_arguments.done", **place, **done}
        yield {"type": "response.output_item.done", "output_index": at, "item": output[at]}
    yield {"type": f"response.{whole['status']}", "response": whole}


def _place(told: _Told) -> dict[str, Any]:
    return {"item_id": told.message, "output_index": 0, "content_index": 0}


def _part(text: str, step: Step | None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": _scores(step) if step else []}


def _scores(step: Step) -> list[dict[str, Any]]:
    return [
        {**scored(token.text, token.logprob), "top_logprobs": [scored(*each) for each in token.top]}
        for token in step.logprobs
    ]


def _usage(step: Step) -> dict[str, Any]:
    assert step.end is not None
    prompt, completion = step.end.prompt_tokens, step.end.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": step.end.cached_positions},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
