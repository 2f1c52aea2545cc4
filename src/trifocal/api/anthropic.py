"""Anthropic's dialect: messages, with pictures, tools and event streams, and counting."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.answers import additions_of
from trifocal.api.errors import explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.needs import needs
from trifocal.api.parameters import UNTOLD, Share, Temperature, TopK, Whole
from trifocal.api.serving import Answers, Job, Server, Serving, Step
from trifocal.api.tools import Offer, call_of, choice_of, offer_of
from trifocal.api.wire import (
    Draft,
    Echoed,
    Json,
    Picture,
    Tagged,
    Wire,
    check_text,
    dump,
    from_base64,
    picture,
    user_text,
)
from trifocal.messages import Call, Role

__all__ = ["MessagesRequest", "router"]

router = APIRouter(tags=["Anthropic"])
Part = str | Picture | Tagged


class TextBlock(Echoed):
    """Text."""

    type: Literal["text"]
    text: str


class Base64Source(Echoed):
    """A picture's bytes, or a text."""

    type: Literal["base64", "text"]
    media_type: str | None = None
    data: str


class UrlSource(Echoed):
    """Where a picture is, on a host that the server allows."""

    type: Literal["url"]
    url: str


class FileSource(Echoed):
    """A file that was uploaded before; there are none here."""

    type: Literal["file"]
    file_id: str


Source = Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class ImageBlock(Echoed):
    """A picture."""

    type: Literal["image"]
    source: Source


class DocumentBlock(Echoed):
    """A document; of its kinds a plain text can be read."""

    type: Literal["document"]
    source: dict[str, Any]
    title: str | None = None
    context: str | None = None


class ThoughtBlock(Echoed):
    """What an answer thought before; it is not thought again."""

    type: Literal["thinking", "redacted_thinking"]
    data: Any = None


class CallBlock(Echoed):
    """A call that an answer asked for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)


class FoundBlock(Echoed):
    """A function that a search for functions found; from here on the client offers it."""

    type: Literal["tool_reference"]
    tool_name: str


Inner = Annotated[TextBlock | ImageBlock | DocumentBlock | FoundBlock, Field(discriminator="type")]


class ResultBlock(Echoed):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Inner] | None = None
    is_error: bool | None = None


Block = Annotated[
    TextBlock | ImageBlock | DocumentBlock | ThoughtBlock | CallBlock | ResultBlock, Field(discriminator="type")
]


class Turn(Echoed):
    """One turn; the keys of a whole answer may stand beside its content."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]
    type: Literal["message"] = "message"


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
            drafts += _drafts(turn, f"messages[{at}]", names)
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
        effort = bool(self.output_config and self.output_config.effort)
        return (*self.notes, *(["output_config.effort has no effect here"] if effort else []))


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


def _drafts(turn: Turn, where: str, names: dict[str, str]) -> list[Draft]:
    """A turn as drafts: each result of a tool is one of its own, before what the user says besides."""
    blocks = [TextBlock(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    parts: list[Part] = []
    calls: list[Call] = []
    results: list[Draft] = []
    for at, block in enumerate(blocks):
        name = f"{where}.content[{at}]"
        match block:
            case CallBlock():
                calls.append(call_of(block.name, block.input, block.id, f"{name}.input"))
                names[block.id] = block.name
            case ResultBlock():
                results.append(_result(block, name, names.get(block.tool_use_id, "")))
            case ThoughtBlock():
                continue
            case _:
                parts += _part(block, turn.role, name)
    if results and not parts:
        return results
    return [*results, Draft(turn.role, tuple(parts), calls=tuple(calls))]


def _result(block: ResultBlock, where: str, called: str) -> Draft:
    inner = [TextBlock(type="text", text=block.content)] if isinstance(block.content, str) else block.content or []
    parts = [part for at, each in enumerate(inner) for part in _part(each, "tool", f"{where}.content[{at}]")]
    said = ["Error: ", *parts] if block.is_error else parts
    return Draft("tool", tuple(said), answers=block.tool_use_id, name=called)


def _part(block: TextBlock | ImageBlock | DocumentBlock | FoundBlock, role: Role, name: str) -> list[Part]:
    if isinstance(block, ImageBlock):
        if role not in ("user", "tool"):
            raise refuse("invalid_value", "only user messages and results of tools hold pictures", name)
        return [_picture(block.source, name)]
    text = _text(block, name)
    if role == "user":
        return [user_text(text, name)]
    check_text(text, name)
    return [text]


def _text(block: TextBlock | DocumentBlock | FoundBlock, name: str) -> str:
    if isinstance(block, FoundBlock):
        return f"found: {block.tool_name}"
    return block.text if isinstance(block, TextBlock) else _document(block, name)


def _document(block: DocumentBlock, name: str) -> str:
    source = block.source
    if source.get("type") != "text" or not isinstance(source.get("data"), str):
        raise refuse("unsupported_parameter", "of documents only plain text can be read", name)
    return "\n\n".join(filter(None, (block.title, block.context, source["data"])))


def _picture(source: Source, name: str) -> Picture:
    if isinstance(source, UrlSource):
        return picture(source.url, name)
    if isinstance(source, FileSource):
        raise refuse("unsupported_parameter", "there are no uploaded files here: send the picture's base64", name)
    return Picture(from_base64(source.data, name), name)
