"""A tower and a projector on other machines: whoever serves `looks` and `see` there is asked over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from trifocal.connection import Connection
from trifocal.errors import BadImage, UsageError, VisionError
from trifocal.images import Image
from trifocal.peer import address, key_headers, object_of
from trifocal.placement import Part
from trifocal.timing import step
from trifocal.vision.base import Look, check_rows
from trifocal.vision.wire import (
    PROTOCOL,
    Size,
    encoded,
    layout_from,
    pack,
    rows_digest,
    size_of,
    unpack,
)

if TYPE_CHECKING:
    import torch

__all__ = ["KEY_VARIABLE", "Exchange", "VisionElsewhere", "open_elsewhere", "vision_over"]

log = logging.getLogger("trifocal")
KEY_VARIABLE = "TRIFOCAL_VISION_KEY"
Result = TypeVar("Result")
SIZES = 4096  # prompts' sizes of pictures whose looks are remembered
SECONDS = 120.0  # without a byte: a server lets a request wait for its turn for 60
SLOWEST = 1 << 18  # bytes a second of a line that is not given up
BUSY_SECONDS = 60.0  # how long full servers are asked again
PAUSE_SECONDS = 0.2
RESTS_SECONDS = 10.0  # a server that failed is the last to be asked for so long
ANSWER_BYTES = 1 << 20  # of an answer beside the rows
PICTURES = 16  # of one request
LARGEST = 1 << 40  # a number that a server tells of itself
PRECISIONS = {"float32", "float16", "bfloat16"}
_IMAGE = re.compile(r"images\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class _Way:
    """How a picture is seen there: its name, and which of a prompt's pictures it is, so that it can be told again."""

    name: str
    sizes: tuple[Size, ...] = field(repr=False, compare=False)
    at: int = field(repr=False, compare=False)


class _Failed(Exception):
    """One server can't be asked, or its answer is not to be believed; says why."""


class _Busy(_Failed):
    """It is there and has no room now."""


class _Refused(Exception):
    """A picture that was refused: another server would do the same."""

    def __init__(self, at: int, rule: str, detail: str) -> None:
        self.at, self.rule, self.detail = at, rule, detail


# path, body (None: asked without one), its kind, the most bytes that are taken -> status and body; OSError: no answer
Exchange = Callable[[str, bytes | None, str, int], tuple[int, bytes]]


@dataclass(slots=True, eq=False)
class _Server:
    """One that sees: its name, and how it is spoken to."""

    url: str
    exchange: Exchange
    failed: float | None = None

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json", most: int = 0) -> bytes:
        """The body of its answer, of at most ``most`` bytes and a little more.

        Raises:
            _Failed: there is no answer, or a refusal of the whole request.
            _Refused: a picture is refused.
        """
        try:
            status, answer = self.exchange(path, body, kind, most + ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Failed(str(error) or type(error).__name__) from error
        if status == 200:
            return answer
        told = object_of(answer, "error")
        if status == 400 and (match := _IMAGE.fullmatch(str(told.get("param")))):
            raise _Refused(int(match[1]), str(told.get("code")), str(told.get("message")))
        full = status in (429, 503) and told.get("code") != "shutting_down"
        raise (_Busy if full else _Failed)(f"status {status}" + (f", {told['message']}" if "message" in told else ""))


@dataclass(frozen=True, slots=True)
class _Address:
    """An `Exchange` over HTTP."""

    url: str
    headers: Mapping[str, str]
    seconds: float

    def __call__(self, path: str, body: bytes | None, kind: str, most: int) -> tuple[int, bytes]:
        connection = Connection(self.url)
        try:
            kinds = {"content-type": kind} if body is not None else {}
            sent = len(body or b"") / SLOWEST
            with closing(connection.ask(path, body, {**self.headers, **kinds}, self.seconds + sent)) as response:
                response.within(self.seconds, self.seconds + most / SLOWEST)
                answer = response.read(most + 1)
                if len(answer) > most:
                    raise http.client.HTTPException(f"an answer of more than {most} bytes")
                if response.length:  # read(n) does not tell what is cut short
                    raise http.client.IncompleteRead(answer, response.length)
                return response.status, answer
        finally:
            connection.close()


class VisionElsewhere:
    """The vision that one or several servers have loaded (``trifocal see``), all of them the same one.

    The digest of a picture's pixels says who is asked first, so that whoever asks about it finds it seen already. Who
    goes away in the middle, is full or has meanwhile become another vision is passed over, and the next one is asked.
    """

    def __init__(self, servers: Sequence[_Server], facts: Mapping[str, Any]) -> None:
        self._servers = servers
        self.hidden, self.identity = int(facts["hidden"]), str(facts["identity"])
        self._body_bytes = int(facts["body_bytes"])
        self.parts = tuple(_part(each, servers) for each in facts["parts"])
        self._told = lru_cache(SIZES)(self._looks)

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """How each picture of a prompt will be seen; their sizes alone are sent, and remembered.

        Raises:
            BadImage: one that can't be seen there.
            VisionError: no server can be asked.
        """
        sizes = tuple(map(size_of, images))
        try:
            told = self._told(sizes)
        except _Refused as refused:
            raise _bad(refused, images) from refused
        return [
            Look(image, layout, _Way(name, sizes, at))
            for at, (image, (layout, name)) in enumerate(zip(images, told, strict=True))
        ]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of each look, as they were made there, bit for bit, on the CPU.

        Raises:
            BadImage: one that is refused there.
            VisionError: no server could see them.
        """
        first: dict[str, list[int]] = {}
        for at, look in enumerate(looks):
            first.setdefault(self._order(look.image.digest)[0].url, []).append(at)
        groups = list(first.values())
        with step("tower"), ThreadPoolExecutor(max(1, len(groups)), thread_name_prefix="see") as threads:
            seen = threads.map(lambda group: self._seen([looks[at] for at in group]), groups)
            found = dict[int, "torch.Tensor"]()
            for group, rows in zip(groups, seen, strict=True):
                found |= zip(group, rows, strict=True)
        return [found[at] for at in range(len(looks))]

    def _seen(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of looks that one server is asked for first, in bodies that it takes."""
        return [rows for some, files in self._bodies(looks) for rows in self._seen_at_once(some, files)]

    def _bodies(self, looks: Sequence[Look]) -> Iterator[tuple[list[Look], list[list[bytes]]]]:
        some, files, size = list[Look](), list[list[bytes]](), 0
        for look in looks:
            mine = encoded(look.image)
            more = sum(map(len, mine)) + (16 << 10)
            if more > self._body_bytes:
                detail = f"{more} bytes without loss; the servers of this vision take {self._body_bytes}"
                raise BadImage("too_many_bytes", detail, look.image.name)
            if some and (size + more > self._body_bytes or len(some) == PICTURES):
                yield some, files
                some, files, size = [], [], 0
            some, files, size = [*some, look], [*files, mine], size + more
        if some:
            yield some, files

    def _seen_at_once(self, looks: Sequence[Look], files: Sequence[Sequence[bytes]]) -> list[torch.Tensor]:
        body = self._body(looks, files)
        most = sum(look.rows for look in looks) * self.hidden * 4  # bytes of float32, the widest that comes

        def ask(server: _Server) -> list[torch.Tensor]:
            return self._checked(looks, server.ask("/v1/vision/see", body, "application/octet-stream", most))

        try:
            return self._asked(looks[0].image.digest, ask)
        except _Refused as refused:
            raise _bad(refused, [look.image for look in looks]) from refused

    def _body(self, looks: Sequence[Look], files: Sequence[Sequence[bytes]]) -> bytes:
        import torch

        prompts = list(dict.fromkeys(_way(look).sizes for look in looks))
        asked = [
            {"digest": look.image.digest, "way": way.name, "prompt": prompts.index(way.sizes), "at": way.at}
            for look in looks
            for way in (_way(look),)
        ]
        tensors = {
            f"{number}.{frame}": torch.frombuffer(bytearray(file), dtype=torch.uint8)
            for number, mine in enumerate(files)
            for frame, file in enumerate(mine)
        }
        return pack(tensors, {"identity": self.identity, "prompts": prompts, "looks": asked})

    def _checked(self, looks: Sequence[Look], answer: bytes) -> list[torch.Tensor]:
        """The rows of an answer that is what it says, and what was asked for."""
        try:
            tensors, text = unpack(answer)
            facts = object_of(text.encode())
            rows = [tensors[str(number)] for number in range(len(looks))]
            for look, each in zip(looks, rows, strict=True):
                check_rows(look, each, self.hidden)
        except (UsageError, KeyError) as error:
            raise _Failed(f"its answer is not what was asked for: {error}") from error
        self._check_identity(facts)
        precisions = {str(each.dtype).removeprefix("torch.") for each in rows}
        if precisions != {facts.get("dtype")} or not precisions <= PRECISIONS:
            raise _Failed("the rows that came are of another precision than it says, or of none that rows have")
        if not all(bool(each.isfinite().all()) for each in rows):
            raise _Failed("there are rows that are no finite numbers")
        if rows_digest(rows) != facts.get("digest"):
            raise _Failed("the rows that came are not those that it sent: their digest is another")
        return rows

    def _looks(self, sizes: tuple[Size, ...]) -> tuple[tuple[Any, str], ...]:
        body = json.dumps({"identity": self.identity, "sizes": sizes}).encode()

        def ask(server: _Server) -> tuple[tuple[Any, str], ...]:
            facts = object_of(server.ask("/v1/vision/looks", body, most=len(sizes) << 16))
            self._check_identity(facts)
            try:
                told = tuple((layout_from(each["layout"]), str(each["way"])) for each in facts["looks"])
            except (UsageError, KeyError, TypeError) as error:
                raise _Failed(f"its answer is not what was asked for: {error}") from error
            if len(told) != len(sizes):
                raise _Failed(f"it told of {len(told)} pictures, {len(sizes)} were asked for")
            return told

        return self._asked(repr(sizes), ask)

    def _check_identity(self, facts: Mapping[str, Any]) -> None:
        if facts.get("identity") != self.identity:
            raise _Failed("it serves another vision now")

    def _order(self, name: str) -> list[_Server]:
        """Whom to ask, one after the other: the same order for the same name, those that failed just now last."""
        now = time.monotonic()

        def rank(server: _Server) -> tuple[bool, bytes]:
            rests = server.failed is not None and now - server.failed < RESTS_SECONDS
            return rests, hashlib.sha256(f"{server.url} {name}".encode()).digest()

        return sorted(self._servers, key=rank)

    def _asked(self, name: str, ask: Callable[[_Server], Result]) -> Result:
        """What the first server gives that can be asked; where all that are there are full, one of them later.

        Raises:
            VisionError: none can, or none has room for long; says what became of each.
        """
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self._asked_once(name, ask)
            except _Busy as busy:
                if time.monotonic() > until:
                    raise VisionError(f"no vision server has room ({busy})") from busy
                time.sleep(PAUSE_SECONDS)

    def _asked_once(self, name: str, ask: Callable[[_Server], Result]) -> Result:
        reasons, full = list[str](), False
        for server in self._order(name):
            try:
                found = ask(server)
            except _Busy as busy:
                full = True
                reasons.append(f"{server.url}: {busy}")
            except _Failed as failed:
                server.failed = time.monotonic()
                reasons.append(f"{server.url}: {failed}")
                log.warning("vision server %s", reasons[-1])
            else:
                server.failed = None
                return found
        if full:
            raise _Busy("; ".join(reasons))
        raise VisionError(f"no vision server could be asked ({'; '.join(reasons)}); is trifocal see running there?")


def open_elsewhere(
    addresses: str, environ: Mapping[str, str] | None = None, *, seconds: float = SECONDS
) -> VisionElsewhere:
    """The vision at ``http://host:port``, or at several of them with commas between.

    The variable ``TRIFOCAL_VISION_KEY`` has the key that the servers want. One of them must answer now; the others may
    come later.

    Raises:
        UsageError: what is no address, or servers that see differently.
        VisionError: none answers.
    """
    return _opened(_servers(addresses, os.environ if environ is None else environ, seconds))


def vision_over(servers: Mapping[str, Exchange]) -> VisionElsewhere:
    """The vision of those who speak the protocol of ``trifocal see`` in another way than over HTTP, by their names.

    Raises as `open_elsewhere`.
    """
    return _opened([_Server(name, exchange) for name, exchange in servers.items()])


def _opened(servers: Sequence[_Server]) -> VisionElsewhere:
    """Asks all of them what they are.

    Raises as `open_elsewhere`.
    """
    known: dict[str, tuple[str, dict[str, Any]]] = {}
    reasons = []
    for server in servers:
        try:
            facts = _facts(server)
            known.setdefault(facts["identity"], (server.url, facts))
        except (_Failed, _Refused) as error:
            server.failed = time.monotonic()
            reasons.append(f"{server.url}: {error}")
            log.warning("vision server %s", reasons[-1])
    if len(known) > 1:
        several = " and ".join(url for url, _ in known.values())
        raise UsageError(f"{several} see differently: start them with the same checkpoint, precision and options")
    for _, facts in known.values():
        return VisionElsewhere(servers, facts)
    raise VisionError(f"no vision server answers ({'; '.join(reasons)}); start one there: trifocal see -m CHECKPOINT")


def _servers(addresses: str, environ: Mapping[str, str], seconds: float) -> list[_Server]:
    headers = key_headers(environ.get(KEY_VARIABLE, ""), KEY_VARIABLE)
    urls = dict.fromkeys(
        address(word.strip(), "vision", KEY_VARIABLE, ", with commas between several") for word in addresses.split(",")
    )
    return [_Server(url, _Address(url, headers, seconds)) for url in urls]


def _facts(server: _Server) -> dict[str, Any]:
    """What a server tells of its vision."""
    facts = object_of(server.ask("/v1/vision"))
    if facts.get("protocol") != PROTOCOL:
        raise _Failed(f"it does not speak this version's protocol ({PROTOCOL}): is it trifocal see, of this version?")
    for name, kind in (("hidden", int), ("identity", str), ("body_bytes", int), ("parts", list)):
        if type(facts.get(name)) is not kind:
            raise _Failed(f"it does not tell its {name}")
    if not all(1 <= facts[name] <= LARGEST for name in ("hidden", "body_bytes")):
        raise _Failed(f"it tells of a width of {facts['hidden']} and of {facts['body_bytes']} bytes that it takes")
    return facts


def _part(told: Any, servers: Sequence[_Server]) -> Part:
    """A part that is loaded elsewhere; it takes no memory here."""
    facts = told if isinstance(told, dict) else {}
    name, what, dtype = (str(facts.get(key, "")) for key in ("name", "what", "dtype"))
    return Part(name, what, ", ".join(server.url for server in servers), dtype, 0)


def _way(look: Look) -> _Way:
    """A look of this vision."""
    assert isinstance(look.way, _Way)
    return look.way


def _bad(refused: _Refused, images: Sequence[Image]) -> BadImage:
    name = images[refused.at].name if refused.at < len(images) else "image"
    return BadImage(refused.rule, refused.detail, name)
