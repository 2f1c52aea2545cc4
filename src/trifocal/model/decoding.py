"""From ids to text as soon as it is sure: half characters and half stop strings are held back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from trifocal.engines.base import Tokenizer
from trifocal.messages import Chunk, End, Reply, Sampling

__all__ = ["Decoder", "Piece", "collect", "stream_text"]

UNSURE = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 8  # ids: twice the bytes of UTF-8, since some ids have no text; after that it never will be whole


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is sure. The last piece says how the answer ended, at which stop string, and how many ids it had.

    ``told`` is how many ids begin in the text that was given out so far.
    """

    text: str
    finish: Literal["stop", "length"] | None = None
    tokens: int = 0
    told: int = 0
    stop: str | None = None


class Decoder:
    """Text of a growing row of ids.

    Tokenizers are not letter by letter: a character may take several ids, and SentencePiece drops a
    leading space. So ids are decoded together with those before them, and what is new is the
    difference; each id is decoded a bounded number of times.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # ids from here on are decoded, as the context of those ...
        self._read = 0  # ... from here on, whose text was not given out yet

    def push(self, token: int) -> str:
        """The text that became sure with this id; empty while a character is half there."""
        self._ids.append(token)
        return self._new(last=False)

    def flush(self) -> str:
        """The rest, sure or not: there will be no more ids."""
        return self._new(last=True)

    def _new(self, *, last: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        now = self._tokenizer.decode(self._ids[self._start :])
        half = now.endswith(UNSURE) and len(self._ids) - self._read < LONGEST_CHARACTER
        if (
            self._read and now == before
        ):  # control tokens, or ids that no word has: nothing that is decoded later needs them
            del self._ids[self._read :]
        if (half and not last) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]


def stream_text(
    ids: Generator[int, None, None], tokenizer: Tokenizer, sampling: Sampling
) -> Generator[Piece, None, None]:
    """The text of an answer, piece by piece, without the stop string that ends it; it may name a control token.

    ``ids`` is closed as soon as a stop string is whole, when the answer ends, and when this
    generator is closed.
    """
    decoder, held, given = Decoder(tokenizer), "", 0
    starts: list[int] = []  # where each id's text begins
    ends = {tokenizer.token(stop): stop for stop in sampling.stop}
    ended: str | None = None
    with closing(ids):
        for token in ids:
            ended = ends.get(token)
            if ended:
                break
            starts.append(given + len(held))
            held += decoder.push(token)
            at, stop = _first(held, sampling.stop)
            if stop:
                yield Piece(held[:at], "stop", len(starts), bisect_left(starts, given + at), stop)
                return
            sure = len(held) - _overlap(held, sampling.stop)
            if sure:
                given += sure
                yield Piece(held[:sure], told=bisect_left(starts, given))
                held = held[sure:]
    held += decoder.flush()
    at, stop = _first(held, sampling.stop)
    finish: Literal["stop", "length"] = "stop"
    if not stop and not ended and sampling.max_tokens is not None and len(starts) >= sampling.max_tokens:
        finish = "length"
    told = bisect_left(starts, given + at) if stop else len(starts)
    yield Piece(held[:at], finish, len(starts), told, stop or ended)


def collect(chunks: Iterable[Chunk]) -> Reply:
    """All chunks of an answer as one reply."""
    texts: list[str] = []
    end: End | None = None
    for chunk in chunks:
        texts.append(chunk.text)
        end = chunk.end or end
    assert end is not None, "an answer ends with an End"
    return Reply("".join(texts), end)


def _first(text: str, stops: Iterable[str]) -> tuple[int, str | None]:
    """Where the first stop string begins, and which it is; the end of the text where there is none."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else (len(text), None)


def _overlap(text: str, stops: Iterable[str]) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    return max(
        (size for stop in stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])),
        default=0,
    )
