"""The dialect of early text-generation-webui: raw prompts with pictures inside, over HTTP and websockets."""

from __future__ import annotations

import asyncio
import html
from contextlib import aclosing, suppress
from typing import Any, Literal, Self

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema
from starlette.websockets import WebSocketState

from trifocal.api.caller import caller_of
from trifocal.api.errors import explain, refuse
from trifocal.api.jobs import Job
from trifocal.api.needs import needs
from trifocal.api.serving import Server, Serving
from trifocal.api.wire import Draft, Json, Tagged, check_names, dump, hasty, invalid, notes_header, notes_of, once
from trifocal.messages import Sampling

__all__ = ["ChatRequest", "GenerateRequest", "router"]

router = APIRouter(tags=["text-generation-webui"])
FRAMES_WAITING = 8
EACH = 64 << 10  # characters of events for each piece of an answer


class Lenient(BaseModel):
    """A body as those clients send it: numbers may come as text.

    What is no field is looked up in the tables of `trifocal.api.parameters`, as in every other dialect.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _once(cls, given: Any) -> Any:
        return once(cls.model_fields, dict(given)) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _all_known(self) -> Self:
        check_names(self.model_extra or {})
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The rules, in which a list is read up to its first bad member."""
        return hasty(handler(source))


class Parameters(Lenient):
    """Every parameter of text-generation-webui's API of 2023, with its default.

    Those after ``stopping_strings`` are not implemented: they are taken at the value that changes
    nothing and refused by name at any other.
    """

    max_new_tokens: int = Field(200, ge=1, validation_alias=AliasChoices("max_new_tokens", "max_length"))
    do_sample: bool = True
    temperature: float = Field(0.5, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.1, gt=0, le=10, validation_alias=AliasChoices("repetition_penalty", "rep_pen"))
    seed: int = Field(-1, ge=-(2**63), lt=2**63)
    truncation_length: int = Field(2048, ge=1, validation_alias=AliasChoices("truncation_length", "max_context_length"))
    ban_eos_token: bool = False
    stopping_strings: list[str] = Field(
        default_factory=list, max_length=16, validation_alias=AliasChoices("stopping_strings", "stop_sequence")
    )
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)

    typical_p: float = Field(1.0, validation_alias=AliasChoices("typical_p", "typical"))
    encoder_repetition_penalty: float = 1.0
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    penalty_alpha: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False
    add_bos_token: bool = True
    skip_special_tokens: bool = True
    custom_stopping_strings: str | list[str] = ""
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    tfs: float = 1.0
    top_a: float = 0.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_penalty_range: int = 0
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    preset: str | None = None

    def sampling(self, server: Server, *more_stops: str) -> Sampling:
        """These parameters as a `Sampling`.

        Raises:
            Refusal: one that is not implemented is not at its neutral value.
        """
        self._refuse_unsupported()
        return server.sampling(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature if self.do_sample else 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed == -1 else self.seed,
            ignore_end=self.ban_eos_token,
            stop=[*self.stopping_strings, *more_stops],
        )

    def _refuse_unsupported(self) -> None:
        names = list(Parameters.model_fields)
        for name in names[names.index("typical_p") :]:
            neutral, given = Parameters.model_fields[name].default, getattr(self, name)
            if name in ("mirostat_tau", "mirostat_eta"):  # without mirostat_mode they change nothing
                continue
            if given != neutral and not (name in ("custom_stopping_strings", "preset") and given in ([], "None", "")):
                raise refuse("unsupported_parameter", f"{name} is only supported at {neutral!r}", name)


class GenerateRequest(Parameters):
    """A raw prompt; pictures stand in it as ``<img src="data:image/jpeg;base64,...">``."""

    prompt: str

    def job(self, server: Server) -> Job:
        """The prompt as it stands, in the room that the client names."""
        draft = Draft("user", (Tagged(self.prompt),))
        return Job([draft], self.sampling(server), raw=True, room=self.truncation_length, stoppable=True)


class History(Lenient):
    """Pairs of what the user and the model said: as the model read them, and as they were shown."""

    internal: list[tuple[str, str]] = Field(default_factory=list, max_length=1024)
    visible: list[tuple[str, str]] = Field(default_factory=list, max_length=1024)


class ChatRequest(Parameters):
    """A conversation. ``mode`` is one of the host's; the served model's own template is used in each."""

    user_input: str
    history: History = Field(default_factory=History)
    regenerate: bool = False
    continue_: bool = Field(False, validation_alias="_continue")
    stop_at_newline: bool = False
    mode: Literal["chat", "chat-instruct", "instruct"] = "chat"
    chat_prompt_size: int = Field(2048, ge=1)

    character: str | None = None
    instruction_template: str | None = None
    your_name: str | None = None
    chat_generation_attempts: int = 1
    chat_instruct_command: str | None = Field(None, validation_alias="chat-instruct_command")

    def job(self, server: Server) -> Job:
        """The conversation as turns.

        Raises:
            Refusal: nothing to regenerate or continue, or a character that is not the model.
        """
        for name, neutral in (("character", "None"), ("instruction_template", "None"), ("your_name", "You")):
            if getattr(self, name) not in (None, "", neutral):
                raise refuse("unsupported_parameter", f"{name}: the model's own template is always used", name)
        if self.chat_generation_attempts != 1:
            raise refuse("unsupported_parameter", "only 1 is supported", "chat_generation_attempts")
        drafts = [draft for user, reply in self.kept for draft in _exchange(user, reply)]
        if self.continue_:
            user, reply = self._last()
            drafts += [Draft("user", (Tagged(user),)), Draft("assistant", (reply,))]
        else:
            drafts.append(Draft("user", (Tagged(self.asked),)))
        stops = ("\n",) if self.stop_at_newline else ()
        room = min(self.truncation_length, self.chat_prompt_size + self.max_new_tokens)
        return Job(drafts, self.sampling(server, *stops), room=room, stoppable=True)

    @property
    def kept(self) -> list[tuple[str, str]]:
        """The exchanges that stay as they are."""
        return self.history.internal[:-1] if self.regenerate or self.continue_ else self.history.internal

    @property
    def asked(self) -> str:
        """What is answered."""
        return self._last()[0] if self.regenerate or self.continue_ else self.user_input

    def told(self, reply: str) -> dict[str, Any]:
        """The history with this reply, as it is sent back."""
        before = self._last()[1] if self.continue_ else ""
        visible = self.history.visible[: len(self.kept)]
        return {
            "internal": [*self.kept, (self.asked, before + reply)],
            "visible": [*visible, (html.escape(self.asked), html.escape(before + reply))],
        }

    def _last(self) -> tuple[str, str]:
        if not self.history.internal:
            raise refuse("invalid_value", "the history is empty: there is nothing to go on with", "history")
        return self.history.internal[-1]


Body = GenerateRequest | ChatRequest
Kind = type[GenerateRequest] | type[ChatRequest]


class TokenCountRequest(Lenient):
    """A raw prompt to count."""

    prompt: str


@router.post("/api/v1/generate", summary="Go on with a raw prompt")
@needs(pool="answers")
async def generate(request: Request, body: GenerateRequest, server: Serving) -> Response:
    """The continuation of a prompt: `{"results": [{"text": ...}]}`."""
    ((text, _),) = await server.collect(request, body.job(server))
    return Json({"results": [{"text": text}]}, headers=notes_header(notes_of(body.model_extra or {})))


@router.post("/api/v1/chat", summary="Answer a conversation")
@needs(pool="answers")
async def chat(request: Request, body: ChatRequest, server: Serving) -> Response:
    """The history with the next reply: `{"results": [{"history": ...}]}`."""
    ((text, _),) = await server.collect(request, body.job(server))
    return Json({"results": [{"history": body.told(text)}]}, headers=notes_header(notes_of(body.model_extra or {})))


@router.post("/api/v1/token-count", summary="Count a raw prompt")
@needs(pool="light")
async def token_count(request: Request, body: TokenCountRequest, server: Serving) -> Response:
    """How many positions a prompt takes, its pictures included."""
    tokens = await server.count(request, Draft("user", (Tagged(body.prompt),)))
    return Json({"results": [{"tokens": tokens}]})


@router.get("/api/v1/model", summary="The served model's name")
async def model(server: Serving) -> Response:
    """`{"result": name}`."""
    return Json({"result": server.name})


@router.post("/api/v1/stop-stream", summary="Stop one's own answers")
@needs()
async def stop_stream(request: Request, server: Serving) -> Response:
    """Ends the answers that this caller (its key, or else its address) asked for in this dialect."""
    server.stop(caller_of(request))
    return Json({"results": "success"})


@router.websocket("/api/v1/stream")
@needs(pool="answers")
async def stream(socket: WebSocket) -> None:
    """One JSON frame in, the answer's pieces out; more requests may follow."""
    await _talk(socket, GenerateRequest)


@router.websocket("/api/v1/chat-stream")
@needs(pool="answers")
async def chat_stream(socket: WebSocket) -> None:
    """One JSON frame in, the growing history out; more requests may follow."""
    await _talk(socket, ChatRequest)


def _exchange(user: str, reply: str) -> list[Draft]:
    opening = [Draft("user", (Tagged(user),))] if user != "<|BEGIN-VISIBLE-CHAT|>" else []
    return [*opening, Draft("assistant", (reply,))]


async def _talk(socket: WebSocket, kind: Kind) -> None:
    """Answers frame after frame until the client leaves, which also ends the answer under way."""
    server: Server = socket.app.state.server
    await socket.accept()
    frames = _Frames(server)
    tasks = [
        asyncio.ensure_future(_read(socket, frames)),
        asyncio.ensure_future(_answer_all(socket, server, kind, frames)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        frames.drop()
    if socket.client_state is WebSocketState.CONNECTED:
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(1008)


class _Frames:
    """The frames of one websocket that wait or are answered; their bytes count like those of bodies."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._held = self._current = 0

    def put(self, frame: bytes) -> bool:
        """Takes one more; False where that is too much."""
        settings, size = self._server.settings, len(frame)
        if self._waiting.qsize() >= FRAMES_WAITING or self._held + size > settings.body_bytes:
            return False
        if self._server.held + size > settings.held_bytes:
            return False
        self._server.held += size
        self._held += size
        self._waiting.put_nowait(frame)
        return True

    async def next(self) -> bytes:
        """The next one; the one before it is done with."""
        self._forget(self._current)
        frame = await self._waiting.get()
        self._current = len(frame)
        return frame

    def drop(self) -> None:
        """Forgets all of them."""
        self._forget(self._held)

    def _forget(self, size: int) -> None:
        self._server.held -= size
        self._held -= size
        self._current = 0


async def _read(socket: WebSocket, frames: _Frames) -> None:
    """Collects frames; ends when the client leaves, or sends more than it waits for."""
    while True:
        frame = await socket.receive()
        if frame["type"] == "websocket.disconnect":
            return
        if not frames.put((frame.get("text") or "").encode("utf-8", "surrogatepass")):
            return


async def _answer_all(socket: WebSocket, server: Server, kind: Kind, frames: _Frames) -> None:
    while True:
        await _answer_frame(socket, server, kind, await frames.next())


class _Gone(Exception):
    """The socket takes nothing more: its client left, or does not read."""


class _Events:
    """What is sent of one answer: all of it, and where an event is large not each of its stages.

    The chat's events carry the whole history each time: with pictures in it, a hundred words would be gigabytes.
    """

    def __init__(self, socket: WebSocket, server: Server, body: Body) -> None:
        self._socket, self._server, self._body = socket, server, body
        self._owed = 0
        self.number = 0
        self._said, self._waiting = "", ""

    async def add(self, text: str) -> None:
        """One more piece of the answer."""
        if self.number == 0:
            await self._event()
        self._said += text
        self._waiting += text
        self._owed -= EACH
        if text and self._owed <= 0:
            await self._event()

    async def end(self) -> None:
        """What was kept back."""
        if self._waiting:
            await self._event()

    async def _event(self) -> None:
        content = _text_event(self._body, self.number, self._waiting, self._said)
        self._owed = await _send(self._socket, self._server, content)
        self._waiting = ""
        self.number += 1


async def _send(socket: WebSocket, server: Server, content: dict[str, Any]) -> int:
    """Sends an event; how many characters it had."""
    text = dump(content)
    try:
        async with asyncio.timeout(server.settings.write_seconds):
            await socket.send_text(text)
    except (WebSocketDisconnect, RuntimeError, TimeoutError) as error:
        raise _Gone from error
    return len(text)


async def _answer_frame(socket: WebSocket, server: Server, kind: Kind, data: bytes) -> None:
    """Sends text_stream events and stream_end; an error event before it where something is refused.

    Clients of that time read until stream_end, so it comes whatever happens.
    """
    number, content = 0, None
    try:
        content = await server.read(data)
        body = kind.model_validate(content)
        async with server.using(None) as used:
            events = _Events(socket, used, body)
            async with aclosing(used.steps(body.job(used), caller_of(socket))) as steps:
                async for step in steps:
                    await events.add(step.text)
                    number = events.number
            await events.end()
        number = events.number
    except _Gone:
        raise
    except Exception as error:
        refusal = invalid(error.errors(), content) if isinstance(error, ValidationError) else explain(error)
        await _send(socket, server, {"event": "error", "message_num": number, **refusal.body()})
    await _send(socket, server, {"event": "stream_end", "message_num": number})


def _text_event(body: Body, number: int, delta: str, said: str) -> dict[str, Any]:
    content = {"history": body.told(said)} if isinstance(body, ChatRequest) else {"text": delta}
    return {"event": "text_stream", "message_num": number, **content}
