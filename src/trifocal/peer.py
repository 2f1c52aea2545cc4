"""Another server, asked over HTTP: its address and key, bounded answers, streams of events, errors as ours."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trifocal.cancelling import is_unwanted, woken_by
from trifocal.connection import Answer, Connection
from trifocal.errors import PeerBusy, PeerError, PeerRefused, PeerTimeout, UsageError

__all__ = ["IMPOSSIBLE", "KEY_VARIABLE", "Peer", "address", "finite", "key_headers", "object_of"]

KEY_VARIABLE = "TRIFOCAL_ENGINE_KEY"  # of a server that an engine asks
FIRST_SECONDS = 300.0  # until an answer, or its next event, is there: a CPU may read a prompt for minutes
NEXT_SECONDS = 60.0  # between two bytes of an answer that has begun
TRIES = 3  # how often a server that can't be reached is asked, while nothing of an answer has come
PAUSE_SECONDS = 0.3
ANSWER_BYTES = 4 << 20  # of an answer that is no stream
LINE_BYTES = 1 << 20  # of an event
STREAM_BYTES = 1 << 28  # of all events of an answer
PARTS = 256  # lines of an event
IMPOSSIBLE = 9999.0  # what servers tell of a probability of zero, with a minus before it
WORDS = 400  # characters of another's words that are told on
GATEWAYS = (502, 504)  # what stands before a server says this of a server that is not there


def address(text: str, what: str, key_from: str, more: str = "") -> str:
    """An address as somebody wrote it, checked, without a slash at its end; ``more`` is said behind what one is.

    Raises:
        UsageError: it is none, or has a key, a query or a fragment in it.
    """
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        named = False
    if not named or any(letter <= " " or letter > "~" for letter in text) or "\\" in text:
        raise UsageError(f"{what}: {text!r} is no address; http://host:port is one{more}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"{what}: an address has no key, ? or # in it; the key comes from {key_from}")
    return text.rstrip("/")


def key_headers(key: str, key_from: str) -> dict[str, str]:
    """What a request says to be let in.

    Raises:
        UsageError: no key can look like that.
    """
    if not all("!" <= letter <= "~" for letter in key):
        raise UsageError(f"{key_from}: a key is made of printable ASCII characters")
    return {"authorization": f"Bearer {key}"} if key else {}


def object_of(data: bytes | str, key: str | None = None) -> dict[str, Any]:
    """The JSON object in an answer, or what it has under ``key``; empty where it has none.

    Halves of letters, which JSON can say and no text can be written with, are replaced.
    """
    try:
        found = json.loads(data)
        if (b"\\ud" if isinstance(data, bytes) else "\\ud") in data.lower():  # type: ignore[operator]
            whole = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass")
            found = json.loads(whole.decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return {}
    if key is not None and isinstance(found, dict):
        found = found.get(key)
    return found if isinstance(found, dict) else {}


def finite(told: float) -> float:
    """A log-probability that JSON can tell again: what has no end, as JSON's numbers may, is as good as impossible."""
    return float(told) if -IMPOSSIBLE < told < IMPOSSIBLE else -IMPOSSIBLE


@dataclass(slots=True, eq=False)
class Peer:
    """One address and how it is asked. Many threads may ask at once: each request has a connection of its own.

    Redirects are not followed: the key was meant for this address. A server that can't be reached, or that breaks the
    connection, is asked again while nothing of its answer has come; never afterwards. A request that is not wanted any
    more (`trifocal.cancelling`) closes its connection, by which the other side knows.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    first_seconds: float = FIRST_SECONDS
    next_seconds: float = NEXT_SECONDS
    failed: float | None = None  # when it was last found unreachable

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object that it tells.

        Raises:
            PeerError: it can't be asked, refuses us, or tells something else.
            PeerRefused: it refuses the request.
        """
        return self._object(path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that it answers; raises as `get`."""
        return self._object(path, json.dumps(body).encode())

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events of an answer as they come; an answer in one piece is one event. Closing it ends the request.

        Raises:
            PeerError: it can't be asked, goes away, or says what is no event.
            PeerRefused: it refuses the request, before any event.
        """
        data = json.dumps(body).encode()
        with self._answer(path, data) as response, self._watched(begun=True):
            if response.headers.get_content_type() != "text/event-stream":
                yield self._whole(response)
                return
            for event in self._told(response):
                yield event
                response.within(self.next_seconds, self.first_seconds)

    def _object(self, path: str, body: bytes | None) -> dict[str, Any]:
        with self._answer(path, body) as response, self._watched(begun=True):
            return self._whole(response)

    def _whole(self, response: Answer) -> dict[str, Any]:
        data = response.read(ANSWER_BYTES + 1)
        if len(data) > ANSWER_BYTES:
            raise PeerError(f"{self.url} answers with more than {ANSWER_BYTES} bytes")
        if response.length:  # read(n) does not tell what is cut short
            raise http.client.IncompleteRead(data, response.length)
        found = object_of(data)
        if not found:
            raise PeerError(f"{self.url} answers with what is no JSON object: {_plain(data)!r}")
        return found

    def _told(self, response: Answer) -> Iterator[dict[str, Any]]:
        """The events of a stream. An event ends with an empty line, or, as not everybody sends one, where it is whole.

        Raises:
            PeerError: what is no event, or says of an error.
        """
        parts = list[bytes]()
        for line in self._lines(response):
            name, _, told = line.partition(b":")
            told = told.strip()
            if name == b"error":  # of servers that put an error in the place of data
                raise self._broken(object_of(told) or {"error": told.decode("utf-8", "replace")})
            if name == b"data" and told == b"[DONE]":
                return
            event = dict[str, Any]()
            if name == b"data" and told:
                parts.append(told)
                event = object_of(b"\n".join(parts))
            if event.get("error"):
                raise self._broken(event)
            if event:
                parts.clear()
                yield event
            elif parts and (not line or len(parts) == PARTS or sum(map(len, parts)) > LINE_BYTES):
                raise PeerError(f"{self.url} sent an event that is no JSON object: {_plain(b' '.join(parts))!r}")

    def _lines(self, response: Answer) -> Iterator[bytes]:
        size = 0
        while line := response.readline(LINE_BYTES + 1):
            if len(line) > LINE_BYTES:
                raise PeerError(f"{self.url} sent an event of more than {LINE_BYTES} bytes")
            if (before := size) + len(line) > STREAM_BYTES:
                raise PeerError(f"{self.url} sent more than {STREAM_BYTES} bytes of one answer")
            size += len(line)
            yield (line if before else line.removeprefix(b"\xef\xbb\xbf")).rstrip(b"\r\n")

    @contextmanager
    def _answer(self, path: str, body: bytes | None) -> Iterator[Answer]:
        """The answer's beginning, which is a good one."""
        connection, response = self._begun(path, body)
        try:
            with woken_by(connection.end):
                if response.status != 200:
                    raise self._refusal(response)
                yield response
        finally:
            response.close()
            connection.close()

    def _begun(self, path: str, body: bytes | None) -> tuple[Connection, Answer]:
        for tried in range(1, TRIES + 1):
            connection = Connection(self.url)
            try:
                with woken_by(connection.end), self._watched(begun=False):
                    more = {"content-type": "application/json"} if body is not None else {}
                    response = connection.ask(path, body, {**self.headers, **more}, self.first_seconds)
                    response.within(self.next_seconds, self.first_seconds)
                if response.status not in GATEWAYS or tried == TRIES:
                    self.failed = None
                    return connection, response
            except BaseException as error:
                connection.close()
                again = isinstance(error, PeerError) and not isinstance(error, PeerTimeout) and not is_unwanted()
                if tried == TRIES or not again:
                    self.failed = self.failed if is_unwanted() else time.monotonic()
                    raise
            else:
                response.close()
            connection.close()
            time.sleep(PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _watched(self, *, begun: bool) -> Iterator[None]:
        """Everything that a connection may raise, as ours."""
        try:
            yield
        except TimeoutError as error:
            raise PeerTimeout(f"{self.url} did not answer in time") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            became = "went away in the middle of its answer" if begun else "can't be asked"
            raise PeerError(
                f"{self.url} {became} ({error or type(error).__name__})", f"the server behind this one {became}"
            ) from error

    def _refusal(self, response: Answer) -> Exception:
        """An answer that is none, as an error of ours with its own words."""
        with self._watched(begun=True):
            data = response.read(LINE_BYTES)
        status, error = response.status, _error_of(data)
        words = _plain(error.get("message") or "") or f"status {status}"
        told = f"the server behind this one says: {words}"
        if status in (429, 503):
            return PeerBusy(f"{self.url}: {words}", told, status, _seconds(response.headers.get("retry-after")))
        if 300 <= status < 400:
            where = _plain(response.headers.get("location") or "elsewhere")
            return PeerError(f"{self.url} redirects to {where}, which is not followed: give the address itself")
        if status in (401, 403, 407):
            return PeerError(
                f"{self.url} does not let us in: {words}", "the server behind this one does not let this one in"
            )
        if status in (408, 504):
            return PeerTimeout(f"{self.url}: {words}", told)
        if 400 <= status < 500:
            code, param = error.get("code"), error.get("param")
            return PeerRefused(
                told,
                status,
                code if isinstance(code, str) else None,
                param if isinstance(param, str) else None,
            )
        return PeerError(f"{self.url} failed: {words}", told)

    def _broken(self, event: Mapping[str, Any]) -> PeerError:
        """An error that stands in a stream."""
        words = _plain(_error_of(json.dumps(event)).get("message") or "an error")
        return PeerError(f"{self.url} failed: {words}", f"the server behind this one says: {words}")


def _error_of(data: bytes | str) -> dict[str, Any]:
    """The error object in any dialect: OpenAI's, FastAPI's ``detail``, Ollama's words."""
    found = object_of(data)
    for key in ("error", "detail", "message"):
        told = found.get(key)
        if isinstance(told, dict):
            return {**told, "message": str(told.get("message", told))}
        if told:
            return {**found, "message": told if isinstance(told, str) else json.dumps(told)}
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    return {"message": "" if "<html" in text.lower() else text.strip()}


def _plain(words: str | bytes) -> str:
    """Printable text of bounded length."""
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    text = "".join(letter if letter.isprintable() else " " for letter in text[: WORDS + 1])
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _seconds(text: str | None) -> float:
    """What ``Retry-After`` says, where it says a number; within an hour."""
    try:
        seconds = float(text or 1)
    except ValueError:
        return 1.0
    return min(max(seconds, 1.0), 3600.0) if math.isfinite(seconds) else 1.0
