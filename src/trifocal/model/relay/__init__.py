"""A model that another server has, whoever made that server: conversations are passed on to it with their pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from trifocal.conversation.history import Keep, keep_images
from trifocal.conversation.templates import ChatTemplate, Piece
from trifocal.embedded import Embedded
from trifocal.engines import PASSED_ON
from trifocal.engines.base import State, Tokenizer
from trifocal.errors import (
    BadImage,
    BadMessages,
    NotSupported,
    PeerBusy,
    PeerRefused,
    UnknownName,
    UsageError,
)
from trifocal.images import Image
from trifocal.messages import Chunk, Message, Sampling, Tool
from trifocal.model.budget import Budget
from trifocal.model.explaining import Explanation
from trifocal.model.outline import Outline
from trifocal.model.relay.answer import read_chat, read_text
from trifocal.model.relay.request import Dialect, chat_body, text_body
from trifocal.model.relay.turns import Passed
from trifocal.model.settings import Settings
from trifocal.model.talking import Talking
from trifocal.peer import FIRST_SECONDS, KEY_VARIABLE, NEXT_SECONDS, Peer, address, key_headers
from trifocal.placement import Part
from trifocal.prompt import Scope

__all__ = ["Asking", "Passing", "Relay", "open_relay"]

RESTS_SECONDS = 10.0  # for which a server that could not be reached counts as away
OPTIONS = ("url", "key", "model", "context", "pictures", "first_seconds", "next_seconds")
LISTED = 20  # models that an error names


@dataclass(frozen=True, slots=True)
class Passing:
    """What is passed on: a conversation, or a raw prompt's parts (``raw``). ``notes`` tell what is done otherwise."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    raw: bool = False
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asking:
    """What a server will be asked."""

    passing: Passing
    sampling: Sampling

    def positions(self, answers: int = 1) -> int:
        """Nobody here can count them."""
        return 0

    def again(self, seed: int | None) -> Asking:
        """The same for another answer, drawn from this seed."""
        return replace(self, sampling=replace(self.sampling, seed=seed))


class Relay(Talking[Passing, Asking]):
    """A language engine of last resort: a whole model behind any server that speaks OpenAI's chat completions.

    Its server writes conversations down, sees the pictures, and leaves out what it likes: nobody here can count
    positions, say where it looked or trim by room. Which past pictures stay is still decided here. What can't be told
    raises `NotSupported`. `Talking.stream` and `Talking.complete` are those of `trifocal.Llava`.
    """

    family = "relay"
    engine_name = PASSED_ON
    checkpoint = None

    def __init__(
        self,
        peer: Peer,
        model: str,
        *,
        context: int | None = None,
        images: Keep = "all",
        picture_format: str = "png",
    ) -> None:
        self._peer, self._dialect = peer, Dialect(model, picture_format)
        self.name, self.context, self.images = model, context, images
        self.template: ChatTemplate = Passed()
        self._running = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """The one model, which takes no memory here."""
        return (Part("language", self.name, "another server", "", 0),)

    @property
    def tokenizer(self) -> Tokenizer:
        """Its server has it."""
        raise NotSupported(self._not("texts can't be cut into tokens"))

    @property
    def explains_not(self) -> str | None:
        """Why `explain` can't be asked."""
        return self._not("where it looks can't be told")

    def state(self) -> State:
        """Ready, unless its server could not be reached a moment ago."""
        failed = self._peer.failed
        away = failed is not None and time.monotonic() - failed < RESTS_SECONDS
        reason = "the server behind this one can't be asked" if away else ""
        return State("failed" if away else "ready", self._running, reason=reason, several=True)

    def write(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        room: int | None = None,
    ) -> Passing:
        """A conversation as it is passed on, with the past pictures that are to stay.

        Raises:
            BadMessages: nobody asked anything.
            BadImage: a video.
            NotSupported: another template, or fewer positions than the server's own: it writes and trims itself.
        """
        if template is not None:
            raise NotSupported(self._not("no other template can be chosen"))
        if not any(message.role != "system" for message in messages):
            raise BadMessages("the conversation has no user turn")
        keep = self.images if images is None else images
        chosen, dropped = keep_images(messages, keep)
        _check_pictures(chosen)
        left_out = (f"{dropped} earlier picture{'s' * (dropped > 1)} (images={keep})",) if dropped else ()
        notes = []
        if room:
            notes.append(self._not(f"it could not be held within {room} positions"))
        if messages[-1].role == "assistant":
            notes.append("the last message is the assistant's: whether it is gone on with is up to the server asked")
        return Passing(tuple(chosen), tuple(tools), left_out=left_out, notes=tuple(notes))

    def raw(self, parts: Sequence[Piece], *, room: int | None = None) -> Passing:
        """A raw prompt; with pictures in it, it can only be passed on as one turn of a user, which is told."""
        message = Message("user", [part for part in parts if isinstance(part, (str, Image))])
        _check_pictures([message])
        notes = [self._not(f"it could not be held within {room} positions")] if room else []
        return Passing((message,), raw=True, notes=tuple(notes))

    def prepare(self, written: Passing, sampling: Sampling = Sampling(), *, scope: Scope = "") -> Asking:
        """What was written and how it is drawn; nothing is asked yet, and nothing is kept of any ``scope``."""
        return Asking(written, sampling)

    def tell(self, asked: Asking) -> Generator[Chunk, None, None]:
        """The server's answer, piece by piece. Closing it closes the connection.

        Raises:
            PeerRefused: it refuses the request; has its words.
            PeerError: it can't be asked, has no room, or went away.
        """
        self._running += 1
        try:
            passing, sampling = asked.passing, asked.sampling
            if passing.raw and not any(message.images for message in passing.messages) and self._dialect.has_text:
                try:
                    yield from self._text(passing, sampling)
                    return
                except PeerRefused as error:
                    if error.status not in (404, 405):
                        raise
                    self._dialect.has_text = False
            if passing.raw:
                said = "a raw prompt was put as one turn of the user: the server asked takes it in no other way"
                passing = replace(passing, notes=(*passing.notes, said))
            yield from self._chat(passing, sampling)
        finally:
            self._running -= 1

    def outline(self, parts: Sequence[Piece]) -> Outline:
        """Its server counts for itself."""
        raise NotSupported(self._not("positions can't be counted"))

    def count(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
    ) -> int:
        """Its server counts for itself."""
        raise NotSupported(self._not("positions can't be counted"))

    def budget(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
    ) -> Budget:
        """Its server counts for itself."""
        raise NotSupported(self._not("positions can't be counted"))

    def explain(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        max_tokens: int | None = None,
        scope: Scope = "",
    ) -> Explanation:
        """Its server does not tell."""
        raise NotSupported(self._not("where it looks can't be told"))

    def preview(self, image: Image) -> None:
        """Its server prepares pictures itself."""

    def close(self) -> None:
        """There is nothing to free."""

    def _not(self, what: str) -> str:
        return f"{self.name} is another server's model: {what}"

    def _chat(self, passing: Passing, sampling: Sampling) -> Generator[Chunk, None, None]:
        try:
            events = self._peer.events(
                "/chat/completions", chat_body(passing.messages, passing.tools, sampling, self._dialect)
            )
            with closing(read_chat(events, sampling, passing.left_out, passing.notes)) as chunks:
                yield from chunks
        except PeerRefused as error:
            if error.param != "max_tokens" or self._dialect.limit != "max_tokens" or sampling.max_tokens is None:
                raise
            self._dialect.limit = "max_completion_tokens"  # the only name that OpenAI's newer models take
            yield from self._chat(passing, sampling)

    def _text(self, passing: Passing, sampling: Sampling) -> Generator[Chunk, None, None]:
        (message,) = passing.messages
        events = self._peer.events("/completions", text_body(message.text, sampling, self._dialect))
        with closing(read_text(events, sampling, passing.left_out, passing.notes)) as chunks:
            yield from chunks


def open_relay(settings: Settings, environ: Mapping[str, str] | None = None) -> Relay:
    """The model of the server that the engine's options name; see docs/engines.md for the options.

    Raises:
        UsageError: no address, an option of another kind, or settings of parts that are not loaded here.
        UnknownName: an option that there is not, or a model that the server does not have.
        PeerError: the server can't be asked.
    """
    options = dict(settings.engine_options)
    for option in options:
        if option not in OPTIONS:
            raise UnknownName(f"option of the engine {PASSED_ON}", option, list(OPTIONS))
    _check_nothing_is_loaded(settings)
    environ = os.environ if environ is None else environ
    url = address(str(options.get("url", "")), "-e url=ADDRESS", f"-e key=... or {KEY_VARIABLE}")
    key = str(options.get("key") or environ.get(KEY_VARIABLE, ""))
    seconds = [
        _seconds(options, name, plain) for name, plain in zip(OPTIONS[-2:], (FIRST_SECONDS, NEXT_SECONDS), strict=True)
    ]
    base = url if url.split("://", 1)[1].partition("/")[2] else f"{url}/v1"
    peer = Peer(base, key_headers(key, KEY_VARIABLE), *seconds)
    model, told = _model(peer, options.get("model"))
    context = options.get("context", told)
    if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
        raise UsageError(f"-e context={context}: it is a number of positions")
    form = str(options.get("pictures", "png"))
    if form not in ("png", "jpeg"):
        raise UsageError(f"-e pictures={form}: it is png, which loses nothing, or jpeg")
    return Relay(peer, model, context=context, images=settings.images, picture_format=form)


def _model(peer: Peer, wanted: Any) -> tuple[str, int | None]:
    """The name of the model, and its context where its server tells it."""
    try:
        listed = peer.get("/models").get("data")
    except PeerRefused as error:  # not everybody has a list
        if wanted is None:
            raise UsageError(f"{peer.url} has no list of models ({error}): say -e model=NAME") from error
        return str(wanted), None
    except PeerBusy:
        if wanted is None:
            raise
        return str(wanted), None
    entries = listed if isinstance(listed, list) else []
    known = {str(each["id"]): each for each in entries if isinstance(each, dict) and each.get("id")}
    if wanted is None:
        if len(known) != 1:
            names = ", ".join(sorted(known)[:LISTED]) or "none"
            raise UsageError(f"{peer.url} has {len(known)} models: say which with -e model=NAME; it has {names}")
        (wanted,) = known
    length = known.get(str(wanted), {}).get("max_model_len")
    return str(wanted), length if isinstance(length, int) and length > 0 else None


def _seconds(options: Mapping[str, Any], name: str, plain: float) -> float:
    value = options.get(name, plain)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise UsageError(f"-e {name}={value}: it is a number of seconds")
    return float(value)


def _check_nothing_is_loaded(settings: Settings) -> None:
    plain = Settings()
    names = ("checkpoint", "tower_from", "projector_from", "language_from", "tower", "projector", "language")
    for name in (*names, "template", "vision", "fit"):
        if getattr(settings, name) != getattr(plain, name):
            more = "; the model's name there is -e model=NAME" if name == "checkpoint" else ""
            raise UsageError(f"{name}: with --engine {PASSED_ON} nothing is loaded here{more}")


def _check_pictures(messages: Sequence[Message]) -> None:
    for image in (image for message in messages for image in message.images):
        if isinstance(image, Embedded):
            raise BadImage("bad_embeds", "embeddings can't be passed on to another server", image.name)
        if image.frames:
            raise BadImage("unsupported_format", "a video can't be passed on to another server", image.name)
