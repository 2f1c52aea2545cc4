"""A text for every picture of a folder: which files are pictures, and several of them in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from trifocal.errors import BadImage, UsageError
from trifocal.images import Image
from trifocal.messages import Sampling
from trifocal.model.decoding import collect
from trifocal.tools.pictures import is_picture, open_picture

if TYPE_CHECKING:
    from trifocal.model.llava import Llava
    from trifocal.model.relay import Relay

__all__ = ["Captioned", "Found", "captions", "find_pictures"]

AHEAD = 2  # pictures that are decoded and wait, for each that is answered


@dataclass(frozen=True, slots=True)
class Found:
    """The pictures of a folder in order, how many other files there are, and folders that can't be looked into."""

    pictures: tuple[Path, ...]
    others: int
    closed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture's text, or why it has none."""

    path: Path
    text: str
    refusal: str | None = None


def find_pictures(folder: Path, *, recursive: bool = False) -> Found:
    """What is a picture by content or by name; hidden files (``.DS_Store``, ``._cat.jpg``) are others.

    Raises:
        UsageError: the folder can't be looked into.
    """
    pictures: list[Path] = []
    closed: list[str] = []
    others = 0
    for place, below, names in os.walk(folder, onerror=lambda error: closed.append(_closed(error))):
        below[:] = sorted(name for name in below if not name.startswith(".")) if recursive else []
        for path in (Path(place) / name for name in names):
            if not path.name.startswith(".") and path.is_file() and _is_picture(path):
                pictures.append(path)
            else:
                others += 1
    return Found(tuple(sorted(pictures)), others, tuple(closed))


def captions(
    llava: Llava | Relay, question: str, paths: Sequence[Path], sampling: Sampling, *, workers: int = 1
) -> Generator[Captioned, None, None]:
    """The answer about each picture as soon as it is there, with ``workers`` of them in flight.

    Pictures are decoded ahead. Closing it ends the answers that are under way.

    Raises:
        TrifocalError: what is no picture's fault: the engine failed, memory is out.
    """
    left = Event()

    def answered(path: Path, image: Image) -> Captioned:
        try:
            messages = [llava.question(question, [image])]
            # nothing is kept: each picture is asked about once
            with closing(llava.stream(messages, sampling, scope=None)) as stream:
                reply = collect(chunk for chunk in stream if not left.is_set() or _leave())
        except UsageError as error:
            return Captioned(path, "", f"{path}: {error}")
        return Captioned(path, reply.text.strip())

    with ThreadPoolExecutor(workers, "decode") as decoders, ThreadPoolExecutor(workers, "answer") as answerers:
        pending: set[Future[Captioned]] = set()
        try:
            for path, image in _decoded(paths, decoders, workers * AHEAD):
                if isinstance(image, BadImage):
                    yield Captioned(path, "", str(image))
                    continue
                pending.add(answerers.submit(answered, path, image))
                if len(pending) >= workers:
                    yield from _finished(pending)
            while pending:
                yield from _finished(pending)
        finally:
            left.set()
            for each in pending:
                each.cancel()


def _leave() -> bool:
    raise InterruptedError("the answers are no longer wanted")


def _finished(pending: set[Future[Captioned]]) -> Iterator[Captioned]:
    """The results that are there, at least one; they are pending no more."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    pending -= done
    for each in done:
        yield each.result()


def _decoded(
    paths: Sequence[Path], decoders: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Path, Image | BadImage]]:
    """Each picture in order, or why it is none; the next ones are decoded meanwhile."""
    waiting: deque[tuple[Path, Future[Image | BadImage]]] = deque()
    try:
        for path in paths:
            waiting.append((path, decoders.submit(_opened, path)))
            if len(waiting) > ahead:
                first, image = waiting.popleft()
                yield first, image.result()
        while waiting:
            first, image = waiting.popleft()
            yield first, image.result()
    finally:
        for _, image in waiting:
            image.cancel()


def _opened(path: Path) -> Image | BadImage:
    try:
        return open_picture(path)
    except BadImage as error:
        return error


def _is_picture(path: Path) -> bool:
    try:
        return is_picture(path)
    except OSError:  # it may be one: whoever opens it says what is wrong
        return True


def _closed(error: OSError) -> str:
    return f"{error.filename}: {error.strerror or 'can not be looked into'}"
