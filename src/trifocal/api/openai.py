"""OpenAI's dialect: chat completions, completions and models."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AliasChoices, Field

from trifocal.api.answers import additions_of, finish_of, scored, usage_of
from trifocal.api.errors import explain, refuse
from trifocal.api.events import STREAMED, EventStream, event
from trifocal.api.jobs import Answers, Job, Step
from trifocal.api.needs import needs
from trifocal.api.openai_messages import ChatMessage, drafts_of
from trifocal.api.parameters import Count, Penalty, Repetition, Seed, Share, Stop, Temperature, TopK, Whole, bound
from trifocal.api.serving import Server, Serving
from trifocal.api.tools import Offer, allowed_of, choice_of, offer_of
from trifocal.api.wire import Draft, Json, Tagged, Wire, dump
from trifocal.conversation.history import Keep, parse_keep
from trifocal.conversation.templates import ChatTemplate, get_template
from trifocal.errors import UsageError
from trifocal.messages import Call, Sampling, TokenLogprob

__all__ = ["ChatRequest", "CompletionRequest", "Options", "keep_of", "router", "template_of"]

router = APIRouter(tags=["OpenAI"])
Logprobs = Sequence[TokenLogprob]
COMPLETION_TOKENS = 16  # what OpenAI's completions have where no number is said
MOST_PROMPTS = 8


class StreamOptions(Wire):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Wire):
    """A JSON schema with its name. It is always held to strictly."""

    name: str = "answer"
    schema_: dict[str, Any] = Field(validation_alias="schema", serialization_alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """The shape of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, validation_alias="schema", serialization_alias="schema")

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer is held to.

        Raises:
            Refusal: none was given.
        """
        if self.type == "text":
            return None
        if self.schema_ is not None:  # the way of llama.cpp's server
            return dump(self.schema_)
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
    max_tokens: Count | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict", "max_new_tokens", "num_predict")
    )
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    repetition_penalty: Repetition | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty", "rep_pen")
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = Field(None, validation_alias=AliasChoices("seed", "random_seed", "sampler_seed"))
    stop: Stop | None = Field(None, validation_alias=AliasChoices("stop", "stopping_strings", "stop_sequence"))
    do_sample: bool | None = None
    n: Whole | None = Field(None, ge=1, le=8)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation_length: Whole | None = Field(
        None, ge=0, validation_alias=AliasChoices("truncation_length", "num_ctx", "max_context_length")
    )
    trifocal: Additions | None = None

    def sampling(self, server: Server, limit: int | None, **more: Any) -> Sampling:
        """These options as a `Sampling`; greedy unless a temperature is given."""
        if limit == 0:
            raise refuse("invalid_value", "max_tokens is 1 or more, or -1 for as many as fit", "max_tokens")
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
        given = {name: getattr(self, name) for name in (*names, "frequency_penalty", "seed", "stop")}
        given |= {"temperature": 0.0} if self.do_sample is False else {}
        return server.sampling(max_tokens=bound(limit), **given, **more)

    @property
    def additions(self) -> Additions:
        """What is asked for of our own."""
        return self.trifocal or Additions()


class ChatRequest(Options):
    """A conversation to go on with."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    max_completion_tokens: Count | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None

    def job(self, server: Server) -> Job:
        """What is asked for.

        Raises:
            Refusal: something that would change the answer and can't be done.
        """
        drafts, ours = drafts_of(self.messages), self.additions
        offer = self._offer()
        schema = self.response_format.schema_text if self.response_format else None
        if self.top_logprobs and not self.logprobs:
            raise refuse("invalid_value", "top_logprobs needs logprobs to be true", "top_logprobs")
        top = (self.top_logprobs or 0) if self.logprobs else None
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Job(
            drafts,
            self.sampling(server, limit, schema=offer.schema or schema, top_logprobs=top),
            answers=self.n or 1,
            images=ours.keep,
            template=ours.written,
            offer=offer,
            notes=self.notes,
            held="tool_choice" if offer.forced else "response_format",
            room=self.truncation_length or None,
        )

    def _offer(self) -> Offer:
        """The functions, in today's words or in those of 2023."""
        if self.tools:
            choice, allowed = choice_of(self.tool_choice), allowed_of(self.tool_choice)
            return offer_of(self.tools, choice, single=self.parallel_tool_calls is False, allowed=allowed)
        named = self.tool_choice if self.function_call is None else self.function_call
        return offer_of(self.functions, choice_of(named), "functions")


class CompletionRequest(Options):
    """Texts to go on with, each for itself; pictures stand in them as ``<img src="data:...">``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: Whole | Literal[False] | None = Field(None, le=20)

    @property
    def prompts(self) -> list[str]:
        """The texts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
@needs(pool="answers")
async def chat(request: Request, body: ChatRequest, server: Serving) -> Response:
    """The next turn of a conversation with pictures; streamed as server-sent events when asked."""
    server.check_model(body.model)
    return await _reply(request, server, body.job(server), body, _Chat)


@router.post("/v1/completions", summary="Go on with a text", responses=STREAMED)
@needs(pool="answers")
async def complete(request: Request, body: CompletionRequest, server: Serving) -> Response:
    """The continuations of raw prompts, without any conversation template."""
    server.check_model(body.model)
    if body.trifocal is not None:
        raise refuse("unsupported_parameter", "a raw prompt has neither turns nor a template: leave it out", "trifocal")
    limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    top = None if body.logprobs is None or body.logprobs is False else body.logprobs
    sampling = body.sampling(server, limit, top_logprobs=top)
    drafts = [Draft("user", (Tagged(prompt),)) for prompt in body.prompts]
    job = Job(drafts, sampling, raw=True, answers=body.n or 1, notes=body.notes, room=body.truncation_length or None)
    return await _reply(request, server, job, body, _Text)


@router.get("/v1/models", summary="The served models")
async def models(server: Serving) -> Response:
    """The models that are served, loaded or not, and other names."""
    names = server.names
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return Json({"object": "list", "data": [_model(server, name) for name in names], **page})


@router.get("/v1/models/{name:path}", summary="One model")
async def model(name: str, server: Serving) -> Response:
    """The model of that name, if it is served."""
    server.check_model(name)
    return Json(_model(server, name))


class _Chat:
    """The shapes of chat completions."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    @classmethod
    def choice(cls, index: int, text: str, step: Step) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if step.calls:
            message |= {"content": text or None, "tool_calls": [_called(call) for call in step.calls]}
        logprobs = cls.logprobs(step.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_of(step)}

    @staticmethod
    def first(index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    @classmethod
    def delta(cls, index: int, text: str, finish: str | None, logprobs: Logprobs = ()) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": cls.logprobs(logprobs), "finish_reason": finish}

    @staticmethod
    def calls(index: int, calls: Sequence[Call]) -> dict[str, Any]:
        called = [{"index": at, **_called(call)} for at, call in enumerate(calls)]
        return {"index": index, "delta": {"tool_calls": called}, "logprobs": None, "finish_reason": None}

    @staticmethod
    def logprobs(tokens: Logprobs) -> dict[str, Any] | None:
        if not tokens:
            return None
        content = [
            {**scored(token.text, token.logprob), "top_logprobs": [scored(*each) for each in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class _Text:
    """The shapes of plain completions."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    @classmethod
    def choice(cls, index: int, text: str, step: Step) -> dict[str, Any]:
        return cls.delta(index, text, finish_of(step), step.logprobs)

    @classmethod
    def delta(cls, index: int, text: str, finish: str | None, logprobs: Logprobs = ()) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": cls.logprobs(logprobs), "finish_reason": finish}

    @staticmethod
    def calls(index: int, calls: Sequence[Call]) -> dict[str, Any]:
        raise AssertionError("a raw prompt offers no functions")

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


def _called(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


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
    choices = [shape.choice(at, text, step) for at, (text, step) in enumerate(replies) if step.end]
    cost = usage_of(last, job.answers)
    return Json({**head, "choices": choices, "usage": cost, "trifocal": additions_of(last[0])})


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
            yield event(dump({**head, "choices": [], "usage": usage_of(last, answers.each)}))
    except Exception as error:
        yield event(dump(explain(error).body()))
    yield event("[DONE]")


def _parts(step: Step, shape: _Shape, is_first: bool) -> Iterator[dict[str, Any]]:
    """What is said of one step: that an answer begins, its text, its calls, that it ends."""
    first = shape.first(step.index)
    if is_first and first:
        yield {"choices": [first]}
    if step.text or step.logprobs:
        yield {"choices": [shape.delta(step.index, step.text, None, step.logprobs)]}
    if step.calls:
        yield {"choices": [shape.calls(step.index, step.calls)]}
    if step.end:
        yield {"choices": [shape.delta(step.index, "", finish_of(step))], "trifocal": additions_of(step)}


def _model(server: Server, name: str) -> dict[str, Any]:
    """As OpenAI, vLLM (the context) and Anthropic (the rest) tell of a model."""
    context = next((each for each in server.all if each.name == name), server).facts.context
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "trifocal",
        **({"max_model_len": context} if context else {}),
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(server.started, UTC).isoformat().replace("+00:00", "Z"),
    }
