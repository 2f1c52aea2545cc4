"""OpenAI's dialect: chat completions, completions and models."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal.api.errors import explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.serving import Answers, Job, Server, Serving, Step
from trifocal.api.wire import Draft, Json, Picture, Tagged, Wire, check_text, dump, user_text
from trifocal.conversation.history import Keep, parse_keep
from trifocal.conversation.templates import ChatTemplate, get_template
from trifocal.errors import UsageError
from trifocal.messages import Role, Sampling, TokenLogprob

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "drafts_of",
    "keep_of",
    "router",
    "template_of",
    "usage_of",
]

router = APIRouter(tags=["OpenAI"])
Stop = str | Annotated[list[str], Field(max_length=16)] | None
Logprobs = Sequence[TokenLogprob]
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ImageUrl(Wire):
    """Where a picture is: a ``data:`` URI, or a URL whose host the server allows."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class TextPart(Wire):
    """Text."""

    type: Literal["text", "input_text"]
    text: str


class ImagePart(Wire):
    """A picture, as an object or as a plain string."""

    type: Literal["image_url"]
    image_url: ImageUrl | str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputImagePart(Wire):
    """A picture, as the Responses API writes it."""

    type: Literal["input_image"]
    image_url: ImageUrl | str
    detail: Literal["auto", "low", "high", "original"] | None = None


ContentPart = Annotated[TextPart | ImagePart | InputImagePart, Field(discriminator="type")]


class ChatMessage(Wire):
    """One turn. ``image_url`` beside ``role`` is the way of early clients."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    image_url: str | None = None
    name: str | None = None
    refusal: None = None


class StreamOptions(Wire):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Wire):
    """A JSON schema with its name. It is always held to strictly."""

    name: str
    schema_: dict[str, Any] = Field(validation_alias="schema", serialization_alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """The shape of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer is held to.

        Raises:
            Refusal: none was given.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return dump({"type": "object"})
        if self.json_schema is None:
            raise refuse("missing_required_parameter", "it is required", "response_format.json_schema")
        return dump(self.json_schema.schema_)


class Additions(Wire):
    """Trifocal's own: which past pictures stay (``all``, ``last`` or a number), and another conversation template."""

    images: str | int | None = None
    template: str | None = None

    @property
    def keep(self) -> Keep | None:
        """Which past pictures stay."""
        return keep_of(self.images, "trifocal.images")

    @property
    def written(self) -> ChatTemplate | None:
        """The template that is asked for."""
        return template_of(self.template, "trifocal.template")


def keep_of(given: str | int | None, param: str) -> Keep | None:
    """Which past pictures stay; None where nothing was said.

    Raises:
        Refusal: a choice that there is not.
    """
    try:
        return None if given is None else parse_keep(given)
    except UsageError as error:
        raise refuse("invalid_value", str(error), param) from error


def template_of(given: str | None, param: str) -> ChatTemplate | None:
    """The template of that name; None where none was named.

    Raises:
        Refusal: there is none of that name.
    """
    try:
        return None if given is None else get_template(given)
    except UsageError as error:
        raise refuse("invalid_value", str(error), param) from error


class Options(Wire):
    """What chat and plain completions share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = None
    n: int | None = Field(None, ge=1, le=8)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = None
    trifocal: Additions | None = None

    def sampling(self, server: Server, max_tokens: int | None, **more: Any) -> Sampling:
        """These options as a `Sampling`; greedy unless a temperature is given."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
        given = {name: getattr(self, name) for name in (*names, "frequency_penalty", "seed")}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        chosen = {name: value for name, value in given.items() if value is not None}
        return server.sampling(max_tokens=max_tokens, stop=stop, **chosen, **more)

    @property
    def additions(self) -> Additions:
        """What is asked for of our own."""
        return self.trifocal or Additions()


class ChatRequest(Options):
    """A conversation to go on with."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(Options):
    """A text to go on with; pictures stand in it as ``<img src="data:...">``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
async def chat(request: Request, body: ChatRequest, server: Serving) -> Response:
    """The next turn of a conversation with pictures; streamed as server-sent events when asked."""
    server.check_model(body.model)
    _refuse_unsupported(body)
    drafts = drafts_of(body.messages)
    schema = body.response_format.schema_text if body.response_format else None
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("invalid_value", "top_logprobs needs logprobs to be true", "top_logprobs")
    top = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    sampling = body.sampling(server, limit, schema=schema, top_logprobs=top)
    ours = body.additions
    job = Job(drafts, sampling, answers=body.n or 1, images=ours.keep, template=ours.written)
    return await _reply(request, server, job, body, _Chat)


@router.post("/v1/completions", summary="Go on with a text", responses=STREAMED)
async def complete(request: Request, body: CompletionRequest, server: Serving) -> Response:
    """The continuation of a raw prompt, without any conversation template."""
    server.check_model(body.model)
    _refuse_unsupported(body)
    if body.trifocal is not None:
        raise refuse("unsupported_parameter", "a raw prompt has neither turns nor a template: leave it out", "trifocal")
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    sampling = body.sampling(server, body.max_tokens, top_logprobs=body.logprobs)
    draft = Draft("user", (Tagged(prompt),))
    return await _reply(request, server, Job([draft], sampling, raw=True, answers=body.n or 1), body, _Text)


@router.get("/v1/models", summary="The served model")
async def models(server: Serving) -> Response:
    """The one model that is served, and its other names."""
    return Json({"object": "list", "data": [_model(server, name) for name in (server.name, *server.settings.aliases)]})


@router.get("/v1/models/{name:path}", summary="One model")
async def model(name: str, server: Serving) -> Response:
    """The model of that name, if it is served."""
    server.check_model(name)
    return Json(_model(server, name))


def usage_of(steps: Sequence[Step]) -> dict[str, Any]:
    """What some answers to one prompt cost, in positions."""
    ends = [step.end for step in steps if step.end]
    if not ends:
        return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    prompt, completion = ends[0].prompt_tokens, sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": ends[0].cached_positions,
            "image_tokens": ends[0].image_tokens,
            "text_tokens": prompt - ends[0].image_tokens,
        },
    }


def additions_of(step: Step) -> dict[str, Any]:
    """What we tell besides: positions of each picture, cache hits, what was left out, seconds per step."""
    assert step.end is not None
    return {
        "image_positions": list(step.end.positions),
        "cached_images": step.end.cached_images,
        "left_out": list(step.end.left_out),
        "timings": {name: round(seconds, 6) for name, seconds in step.end.timings.items()},
    }


class _Chat:
    """The shapes of chat completions."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    @classmethod
    def choice(cls, index: int, text: str, finish: str, logprobs: Logprobs) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": cls.logprobs(logprobs), "finish_reason": finish}

    @staticmethod
    def first(index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    @classmethod
    def delta(cls, index: int, text: str, finish: str | None, logprobs: Logprobs) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": cls.logprobs(logprobs), "finish_reason": finish}

    @staticmethod
    def logprobs(tokens: Logprobs) -> dict[str, Any] | None:
        if not tokens:
            return None
        content = [
            {**_scored(token.text, token.logprob), "top_logprobs": [_scored(*each) for each in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class _Text:
    """The shapes of plain completions."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    @classmethod
    def choice(cls, index: int, text: str, finish: str | None, logprobs: Logprobs) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": cls.logprobs(logprobs), "finish_reason": finish}

    @staticmethod
    def logprobs(tokens: Logprobs) -> dict[str, Any] | None:
        if not tokens:
            return None
        offsets = [0, *itertools.accumulate(len(token.text) for token in tokens)]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets[:-1],
        }

    @staticmethod
    def first(index: int) -> dict[str, Any] | None:
        return None

    delta = choice


def _scored(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


_Shape = type[_Chat] | type[_Text]


async def _reply(request: Request, server: Server, job: Job, body: Options, shape: _Shape) -> Response:
    head = {
        "id": shape.prefix + secrets.token_hex(12),
        "object": shape.piece if body.stream else shape.whole,
        "created": int(time.time()),
        "model": server.name,
        "system_fingerprint": None,
    }
    if body.stream:
        answers = await server.answer(request, job)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_events(answers, head, shape, usage), server.settings.write_seconds)
    replies = await server.collect(request, job)
    last = [step for _, step in replies]
    choices = [
        shape.choice(at, text, step.end.finish, step.logprobs) for at, (text, step) in enumerate(replies) if step.end
    ]
    return Json({**head, "choices": choices, "usage": usage_of(last), "trifocal": additions_of(last[0])})


async def _events(answers: Answers, head: dict[str, Any], shape: _Shape, usage: bool) -> AsyncGenerator[str, None]:
    last: list[Step] = []
    started: set[int] = set()
    try:
        async for step in answers.all():
            if step.end:
                last.append(step)
            # one write a step: each costs a turn of the interpreter, which the model's thread wants too
            yield "".join(event(dump({**head, **part})) for part in _parts(step, shape, step.index not in started))
            started.add(step.index)
        if usage:
            yield event(dump({**head, "choices": [], "usage": usage_of(last)}))
    except Exception as error:
        yield event(dump(explain(error).body))
    yield event("[DONE]")


def _parts(step: Step, shape: _Shape, is_first: bool) -> Iterator[dict[str, Any]]:
    """What is said of one step: that an answer begins, its text, that it ends."""
    first = shape.first(step.index)
    if is_first and first:
        yield {"choices": [first]}
    if step.text or step.logprobs:
        yield {"choices": [shape.delta(step.index, step.text, None, step.logprobs)]}
    if step.end:
        yield {"choices": [shape.delta(step.index, "", step.end.finish, ())], "trifocal": additions_of(step)}


def drafts_of(messages: Sequence[ChatMessage]) -> list[Draft]:
    """The messages with their pictures as they were sent.

    Raises:
        Refusal: a message without content, or a picture outside the user's messages.
    """
    return [_draft(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _draft(message: ChatMessage, where: str) -> Draft:
    role = _ROLES[message.role]
    if message.content is None and message.image_url is None:
        raise refuse("missing_required_parameter", "a message needs content", f"{where}.content")
    parts: list[Any] = []
    if isinstance(message.content, str):
        parts += _text(role, message.content, f"{where}.content")
    for at, part in enumerate(message.content if isinstance(message.content, list) else []):
        name = f"{where}.content[{at}]"
        if isinstance(part, TextPart):
            parts += _text(role, part.text, name)
        else:
            source = part.image_url if isinstance(part.image_url, str) else part.image_url.url
            parts.append(Picture(source, name))
    if message.image_url is not None:
        parts.append(Picture(message.image_url, f"{where}.image_url"))
    if role != "user" and not all(isinstance(part, str) for part in parts):
        raise refuse("invalid_value", "only user messages hold pictures", where)
    return Draft(role, tuple(parts))


def _text(role: Role, text: str, param: str) -> Sequence[Any]:
    if role == "user":
        return (user_text(text, param),)
    check_text(text, param)
    return (text,)


def _refuse_unsupported(body: ChatRequest | CompletionRequest) -> None:
    """Says by name what this server can't do, rather than leave it out."""
    neutral: dict[str, tuple[Any, ...]] = {
        "logit_bias": (None, {}),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "echo": (None, False),
        "suffix": (None, ""),
        "best_of": (None, 1),
        "store": (None, False),
        "service_tier": (None, "auto", "default"),
    }
    reasons = {"tools": "no served template has tool calls", "tool_choice": "no served template has tool calls"}
    for name, allowed in neutral.items():
        value = getattr(body, name, None)
        if not any(value is each or (value == each and type(value) is type(each)) for each in allowed):
            raise refuse("unsupported_parameter", f"{name} is not supported: {reasons.get(name, 'leave it out')}", name)


def _model(server: Server, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": server.started, "owned_by": "trifocal"}
