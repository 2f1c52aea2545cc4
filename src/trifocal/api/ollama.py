"""Ollama's dialect: chat, generate, and what its clients ask of a model; streams are lines of JSON, and the default."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from trifocal import __version__
from trifocal.api.answers import additions_of, scored
from trifocal.api.errors import Refusal, explain, refuse
from trifocal.api.events import LINES, EventStream
from trifocal.api.jobs import Answers, Job, Step
from trifocal.api.needs import needs
from trifocal.api.parameters import UNTOLD, Penalty, Repetition, Seed, Share, Stop, Temperature, TopK, Whole, bound
from trifocal.api.serving import Server, Serving
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
    notes_header,
    user_text,
)
from trifocal.messages import Call, Role, Sampling, TokenLogprob

__all__ = ["ChatRequest", "GenerateRequest", "router"]

router = APIRouter(tags=["Ollama"])
LEVEL = "0.13.0"  # of Ollama, whose API this is: clients ask for it before they use what came later
Shape = Callable[[Step, str], dict[str, Any]]


class Options(Wire):
    """How the answer is drawn, and within how many positions. Ollama's loader has no part in it here."""

    untold = UNTOLD | {
        "draft_num_predict", "embedding_only", "f16_kv", "logits_all", "low_vram", "main_gpu", "num_batch", "num_gpu",
        "num_gqa", "num_keep", "num_thread", "numa", "use_mlock", "use_mmap", "vocab_only",
    }  # fmt: skip
    lenient = True

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    repeat_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    num_predict: Whole | None = Field(None, ge=-2)
    num_ctx: Whole | None = Field(None, ge=0)
    stop: Stop | None = None

    def sampling(self, server: Server, **more: Any) -> Sampling:
        """These options as a `Sampling`; greedy unless a temperature is given."""
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop")
        given = {name: getattr(self, name) for name in names}
        penalty = self.repeat_penalty
        return server.sampling(max_tokens=bound(self.num_predict), repetition_penalty=penalty, **given, **more)


class Shared(Wire):
    """What chat and generate share."""

    untold = UNTOLD | {"shift", "debug_render_only", "_debug_render_only"}
    lenient = True  # as Ollama itself is

    model: str
    stream: bool | None = None
    options: Options | None = None
    keep_alive: str | float | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    truncate: Literal[True] | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """What of the request has no effect here."""
        return (*self.notes, *(self.options.notes if self.options else ()))

    @property
    def leaves(self) -> bool:
        """Whether the model is to go after this request; it stays, but the client is answered in its words."""
        given = self.keep_alive.rstrip("hms") if isinstance(self.keep_alive, str) else self.keep_alive
        try:
            return given is not None and float(given) == 0
        except ValueError:
            return False

    def job(self, server: Server, drafts: Sequence[Draft], *, raw: bool = False, offer: Offer | None = None) -> Job:
        """What is asked for."""
        schema = {"type": "object"} if self.format == "json" else self.format
        options = self.options or Options.model_validate({})
        top = (self.top_logprobs or 0) if self.logprobs else None
        forced = offer.schema if offer else None
        text = forced or (dump(schema) if schema else None)
        sampling = options.sampling(server, schema=text, top_logprobs=top)
        more: dict[str, Any] = {
            "held": "tool_choice" if forced else "format",
            "room": options.num_ctx or None,
            "raw": raw,
        }
        return Job(drafts, sampling, notes=self.told, offer=offer or Offer(), **more)


class CalledFunction(Echoed):
    """A function's name and its arguments."""

    name: str
    arguments: dict[str, Any] | str = Field(default_factory=dict)


class ToolCall(Echoed):
    """A call that an answer asked for."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Turn(Echoed):
    """One turn; ``images`` are base64."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ChatRequest(Shared):
    """A conversation to go on with; without one the model is only loaded."""

    messages: list[Turn] = Field(default_factory=list, max_length=1024)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class GenerateRequest(Shared):
    """One question, in the model's template unless ``raw``; without one the model is only loaded."""

    prompt: str = ""
    images: list[str] | None = None
    system: str | None = None
    raw: bool | None = None
    template: str | None = None
    context: list[Whole] | None = None


class ModelRequest(Wire):
    """Which model."""

    lenient = True

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


@router.post("/api/chat", summary="Answer a conversation", responses=LINES)
@needs(pool="answers")
async def chat(request: Request, body: ChatRequest, server: Serving) -> Response:
    """The next turn of a conversation with pictures."""
    server.check_model(body.model)
    if not body.messages:
        return _loaded(server, body, {"message": {"role": "assistant", "content": ""}})
    drafts = [_draft(turn, f"messages[{at}]") for at, turn in enumerate(body.messages)]
    offer = offer_of(body.tools, choice_of(body.tool_choice) if body.tools else "auto")
    return await _reply(request, server, body, body.job(server, drafts, offer=offer), _message)


@router.post("/api/generate", summary="Answer one question", responses=LINES)
@needs(pool="answers")
async def generate(request: Request, body: GenerateRequest, server: Serving) -> Response:
    """The answer to one question with pictures."""
    server.check_model(body.model)
    for name in ("template", "context"):
        if getattr(body, name):
            raise refuse("unsupported_parameter", f"{name} is not supported: leave it out", name)
    if body.raw and (body.images or body.system):
        raise refuse("invalid_value", "a raw prompt holds its pictures and its system text itself", "raw")
    if not body.prompt and not body.images:
        return _loaded(server, body, {"response": ""})
    if body.raw:
        job = body.job(server, [Draft("user", (Tagged(body.prompt),))], raw=True)
    else:
        said: list[dict[str, Any]] = [{"role": "user", "content": body.prompt, "images": body.images}]
        said = [{"role": "system", "content": body.system}, *said] if body.system else said
        job = body.job(server, [_draft(Turn.model_validate(turn), "prompt") for turn in said])
    return await _reply(request, server, body, job, lambda step, text: {"response": text})


@router.get("/api/tags", summary="The served models")
async def tags(server: Serving) -> Response:
    """The models that are served, loaded or not, and other names."""
    return Json({"models": [_model(each, name, modified_at=_time(each.modified)) for each, name in _named(server)]})


@router.get("/api/ps", summary="The models that are loaded")
async def loaded(server: Serving) -> Response:
    """Those that are loaded; each stays until its room is needed."""
    return Json({"models": [_held(each, name) for each, name in _named(server) if each.is_loaded]})


@router.post("/api/show", summary="What the served model is")
@needs()
async def show(body: ModelRequest, server: Serving) -> Response:
    """Family, context and capabilities."""
    server.check_model(body.model or body.name)
    family, context, has_tools = server.facts.family, server.facts.context, server.facts.has_tools
    lengths = {"context_length": context, f"{family}.context_length": context} if context else {}
    info = {"general.architecture": family, **lengths}
    return Json(
        {
            "modelfile": "",
            "parameters": "",
            "template": "{{ .Tools }}{{ .System }}{{ .Prompt }}" if has_tools else "{{ .System }}{{ .Prompt }}",
            "details": _details(server),
            "model_info": info,
            "capabilities": ["completion", "vision", *(["tools"] if has_tools else [])],
            "modified_at": _time(server.modified),
        }
    )


@router.get("/api/version", summary="The level of Ollama's API that is spoken")
async def version() -> Response:
    """`{"version": ...}`, as Ollama numbers it, and Trifocal's own."""
    return Json({"version": LEVEL, "trifocal": __version__})


@router.post("/api/pull", summary="Whether a model is there", responses=LINES)
@needs()
async def pull(body: ModelRequest, server: Serving) -> Response:
    """Success for the served model; others are fetched on the command line."""
    name = body.model or body.name
    try:
        server.check_model(name)
    except Refusal as error:
        words = f"{name}: this server has {', '.join(server.names)}; on the command line: trifocal pull NAME"
        raise Refusal(404, "model_not_found", words, param="model") from error
    done = {"status": "success"}
    return Json(done) if body.stream is False else Response(dump(done) + "\n", media_type="application/x-ndjson")


@router.post("/api/embed", summary="There are no embeddings", status_code=400)
@needs()
async def embed(server: Serving) -> Response:
    """Says that the served model makes none."""
    raise Refusal(400, "not_supported", f"{server.name} answers questions; it makes no embeddings")


@router.post("/api/embeddings", summary="There are no embeddings", status_code=400)
@needs()
async def embeddings(server: Serving) -> Response:
    """Says that the served model makes none."""
    return await embed(server)


@needs()
async def _managed() -> Response:
    """Says where models are managed."""
    words = "the served model is chosen when the server starts; on the command line: trifocal pull, list, serve -m"
    raise Refusal(400, "not_supported", words)


for _path, _method in (
    ("/api/create", "POST"),
    ("/api/copy", "POST"),
    ("/api/push", "POST"),
    ("/api/delete", "DELETE"),
):
    words = "Models are managed on the command line"
    router.add_api_route(_path, _managed, methods=[_method], summary=words, status_code=400)


async def _reply(request: Request, server: Server, body: Shared, job: Job, shape: Shape) -> Response:
    headers = notes_header((*job.notes, *job.offer.notes))
    if body.stream is not False:
        answers = await server.answer(request, job)
        lines = _lines(answers, server, shape)
        return EventStream(lines, server.settings.write_seconds, "application/x-ndjson", headers)
    ((text, step),) = await server.collect(request, job)
    return Json({**_head(server), **shape(step, text), **_logprobs(step.logprobs), **_final(step)}, headers=headers)


async def _lines(answers: Answers, server: Server, shape: Shape) -> AsyncGenerator[str, None]:
    try:
        async for step in answers.all():
            if step.text or step.calls or step.logprobs:
                said = {**shape(step, step.text), **_logprobs(step.logprobs)}
                yield dump({**_head(server), **said, "done": False}) + "\n"
            if step.end:
                yield dump({**_head(server), **shape(Step(0, ""), ""), **_final(step)}) + "\n"
    except Exception as error:
        yield dump(explain(error).body("/api/chat")) + "\n"


def _loaded(server: Server, body: Shared, said: dict[str, Any]) -> Response:
    """What a request without a question is answered: the model is there, and stays."""
    reason = "unload" if body.leaves else "load"
    notes = (*body.told, *(["the model stays loaded"] if body.leaves else []))
    return Json({**_head(server), **said, "done": True, "done_reason": reason}, headers=notes_header(notes))


def _head(server: Server) -> dict[str, Any]:
    return {"model": server.name, "created_at": _time(None)}


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


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    told = [
        {**scored(token.text, token.logprob), "top_logprobs": [scored(*each) for each in token.top]} for token in tokens
    ]
    return {"logprobs": told} if told else {}


def _message(step: Step, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if step.calls:
        message["tool_calls"] = [_called(at, call) for at, call in enumerate(step.calls)]
    return {"message": message}


def _called(at: int, call: Call) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": at, "name": call.name, "arguments": call.values}}


def _draft(turn: Turn, where: str) -> Draft:
    role: Role = "system" if turn.role == "developer" else turn.role
    if turn.images and role not in ("user", "tool"):
        raise refuse("invalid_value", "only user messages and results of tools hold pictures", where)
    pictures = [_picture(data, f"{where}.images[{at}]") for at, data in enumerate(turn.images or [])]
    if role == "user":
        return Draft(role, (*pictures, *([user_text(turn.content, where)] if turn.content else [])))
    check_text(turn.content, where)
    calls = tuple(
        call_of(call.function.name, call.function.arguments, call.id, f"{where}.tool_calls[{at}]")
        for at, call in enumerate(turn.tool_calls or ())
    )
    name, answers = turn.tool_name or turn.name or "", turn.tool_call_id or ""
    return Draft(role, (turn.content, *pictures), calls=calls, answers=answers, name=name)


def _picture(data: str, name: str) -> Picture:
    """A picture as base64 or a data URI; Ollama's clients read files and addresses themselves."""
    return Picture(data if data[:8].lower().startswith(("http:", "https:")) else from_base64(data, name), name)


def _named(server: Server) -> list[tuple[Server, str]]:
    """Each model's server under its name; the first one under its other names too."""
    own = [(each, each.name) for each in server.all]
    return [*own, *((server.all[0], alias) for alias in server.settings.aliases)]


def _model(server: Server, name: str, **more: Any) -> dict[str, Any]:
    facts = {"size": server.bytes, "digest": server.digest, "details": _details(server), **more}
    return {"name": name, "model": name, **facts}


def _held(server: Server, name: str) -> dict[str, Any]:
    context = server.facts.context
    more = {"size_vram": server.gpu_bytes, **({"context_length": context} if context else {})}
    return _model(server, name, expires_at="2318-01-01T00:00:00Z", **more)


def _details(server: Server) -> dict[str, Any]:
    family = server.facts.family
    details = {"format": "safetensors", "family": family, "families": [family], "parent_model": ""}
    return {**details, "parameter_size": "", "quantization_level": ""}


def _time(seconds: float | None) -> str:
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat().replace("+00:00", "Z")
