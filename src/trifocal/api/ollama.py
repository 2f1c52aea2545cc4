"""Ollama's dialect: chat, generate, tags, show and version; streams are lines of JSON, and the default."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal import __version__
from trifocal.api.anthropic import from_base64
from trifocal.api.errors import explain, refuse
from trifocal.api.events import LINES, EventStream
from trifocal.api.openai import additions_of
from trifocal.api.serving import Answers, Job, Server, Serving, Step
from trifocal.api.wire import Draft, Json, Picture, Tagged, Wire, check_text, dump, user_text
from trifocal.messages import Sampling

__all__ = ["ChatRequest", "GenerateRequest", "router"]

router = APIRouter(tags=["Ollama"])
Shape = Callable[[str], dict[str, Any]]


class Options(Wire):
    """How the answer is drawn. Options of Ollama's loader have no meaning here and are refused by name."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    num_predict: int | None = Field(None, ge=-2)
    stop: str | list[str] | None = None

    def sampling(self, server: Server, schema: str | None) -> Sampling:
        """These options as a `Sampling`; greedy unless a temperature is given."""
        given = self.model_dump(exclude_none=True, exclude={"num_predict", "repeat_penalty", "stop"})
        if self.repeat_penalty is not None:
            given["repetition_penalty"] = self.repeat_penalty
        if self.num_predict == 0:
            raise refuse("invalid_value", "num_predict is 1 or more, or -1 for as many as fit", "options.num_predict")
        most = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return server.sampling(max_tokens=most, stop=stop, schema=schema, **given)


class Shared(Wire):
    """What chat and generate share."""

    model: str
    stream: bool | None = None
    options: Options | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def check(self, server: Server) -> None:
        """Refuses by name what this server can't do."""
        server.check_model(self.model)
        for name in ("think", "logprobs", "top_logprobs"):
            if getattr(self, name) not in (None, False, ""):
                raise refuse("unsupported_parameter", f"{name} is not supported: leave it out", name)


class Turn(Wire):
    """One turn; ``images`` are base64."""

    role: Literal["system", "user", "assistant"]
    content: str = ""
    images: list[str] | None = None


class ChatRequest(Shared):
    """A conversation to go on with."""

    messages: list[Turn] = Field(min_length=1, max_length=1024)
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(Shared):
    """One question, in the model's template unless ``raw``."""

    prompt: str = ""
    images: list[str] | None = None
    system: str | None = None
    raw: bool | None = None


class ShowRequest(Wire):
    """Which model."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


@router.post("/api/chat", summary="Answer a conversation", responses=LINES)
async def chat(request: Request, body: ChatRequest, server: Serving) -> Response:
    """The next turn of a conversation with pictures."""
    body.check(server)
    if body.tools:
        raise refuse("unsupported_parameter", "tools: no served template has tool calls", "tools")
    drafts = [_draft(turn, f"messages[{at}]") for at, turn in enumerate(body.messages)]
    return await _reply(
        request, server, body, Job(drafts, _sampling(body, server)), lambda text: {"message": _message(text)}
    )


@router.post("/api/generate", summary="Answer one question", responses=LINES)
async def generate(request: Request, body: GenerateRequest, server: Serving) -> Response:
    """The answer to one question with pictures."""
    body.check(server)
    if body.raw and (body.images or body.system):
        raise refuse("invalid_value", "a raw prompt holds its pictures and its system text itself", "raw")
    if body.raw:
        job = Job([Draft("user", (Tagged(body.prompt),))], _sampling(body, server), raw=True)
    else:
        turns = [Turn(role="system", content=body.system)] if body.system else []
        turns.append(Turn(role="user", content=body.prompt, images=body.images))
        job = Job([_draft(turn, "prompt") for turn in turns], _sampling(body, server))
    return await _reply(request, server, body, job, lambda text: {"response": text})


@router.get("/api/tags", summary="The served model")
async def tags(server: Serving) -> Response:
    """The one model that is served."""
    return Json({"models": [{"name": server.name, "model": server.name, "modified_at": _now(), **_facts(server)}]})


@router.post("/api/show", summary="What the served model is")
async def show(body: ShowRequest, server: Serving) -> Response:
    """Family, context and capabilities."""
    server.check_model(body.model or body.name)
    info = {"general.architecture": server.llava.checkpoint.family, "context_length": server.llava.engine.context}
    return Json({**_facts(server), "model_info": info, "capabilities": ["completion", "vision"], "modified_at": _now()})


@router.get("/api/version", summary="Trifocal's version")
async def version() -> Response:
    """`{"version": ...}`."""
    return Json({"version": __version__})


async def _reply(request: Request, server: Server, body: Shared, job: Job, shape: Shape) -> Response:
    if body.stream is not False:
        answers = await server.answer(request, job)
        lines = _lines(answers, server, shape)
        return EventStream(lines, server.settings.write_seconds, "application/x-ndjson")
    ((text, step),) = await server.collect(request, job)
    return Json({**_head(server), **shape(text), **_final(step)})


async def _lines(answers: Answers, server: Server, shape: Shape) -> AsyncGenerator[str, None]:
    try:
        async for step in answers.all():
            if step.text:
                yield dump({**_head(server), **shape(step.text), "done": False}) + "\n"
            if step.end:
                yield dump({**_head(server), **shape(""), **_final(step)}) + "\n"
    except Exception as error:
        yield dump({"error": explain(error).message}) + "\n"


def _head(server: Server) -> dict[str, Any]:
    return {"model": server.name, "created_at": _now()}


def _final(step: Step) -> dict[str, Any]:
    """The counts of the last line; Ollama counts time in nanoseconds."""
    assert step.end is not None
    seconds = step.end.timings
    generating = seconds.get("generate", 0.0)
    whole = sum(seconds.values())
    return {
        "done": True,
        "done_reason": step.end.finish,
        "total_duration": int(whole * 1e9),
        "load_duration": 0,
        "prompt_eval_count": step.end.prompt_tokens,
        "prompt_eval_duration": int((whole - generating) * 1e9),
        "eval_count": step.end.completion_tokens,
        "eval_duration": int(generating * 1e9),
        "trifocal": additions_of(step),
    }


def _sampling(body: Shared, server: Server) -> Sampling:
    schema = {"type": "object"} if body.format == "json" else body.format
    return (body.options or Options.model_validate({})).sampling(server, dump(schema) if schema else None)


def _draft(turn: Turn, where: str) -> Draft:
    if turn.images and turn.role != "user":
        raise refuse("invalid_value", "only user messages hold pictures", where)
    if turn.role != "user":
        check_text(turn.content, where)
        return Draft(turn.role, (turn.content,))
    names = [f"{where}.images[{at}]" for at in range(len(turn.images or []))]
    pictures = [Picture(from_base64(data, name), name) for data, name in zip(turn.images or [], names, strict=True)]
    return Draft("user", (*pictures, *([user_text(turn.content, where)] if turn.content else [])))


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _facts(server: Server) -> dict[str, Any]:
    family = server.llava.checkpoint.family
    details = {"format": "safetensors", "family": family, "families": [family], "parent_model": ""}
    return {"details": {**details, "parameter_size": "", "quantization_level": ""}}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
