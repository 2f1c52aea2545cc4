"""Damaged input without end: a mutator of bytes, a kept corpus, and readers that give a value or our own error."""

from __future__ import annotations

import hashlib
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CORPUS", "Target", "fuzz", "kept", "mutants"]

CORPUS = Path(__file__).parent / "corpus"
NUMBERS = tuple(
    struct.pack(f"{order}{kind}", value)
    for order in "<>"
    for kind, values in {
        "H": (0, 1, 255, 65535),
        "I": (0, 1, 1 << 31, (1 << 32) - 1),
        "Q": (0, 1 << 40, (1 << 64) - 1),
    }.items()
    for value in values
)
LONGEST = 200_000  # bytes of a mutant


@dataclass(frozen=True)
class Target:
    """A reader of strangers' bytes, what it is begun with, which errors are its own, and words that it knows."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    own: tuple[type[BaseException], ...]
    words: tuple[bytes, ...] = ()
    slowest: float = 10.0  # seconds of this thread's own work on one input


def kept(name: str) -> list[bytes]:
    """What was found once, and is tried for ever."""
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


def mutants(dice: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> Iterator[bytes]:
    """Seeds, damaged in one to eight places."""
    while True:
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 2, 3, 8))):
            _damage(dice, data, seeds, words)
        yield bytes(data[:LONGEST])


def _damage(dice: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    match dice.randrange(9):
        case 0 if data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        case 1 if data:
            data[at % len(data)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + dice.choice((1, 4, 100))]
        case 4:
            number = dice.choice(NUMBERS)
            data[at : at + len(number)] = number
        case 5:
            data[at:at] = data[at : at + dice.choice((1, 10, 300))] * dice.choice((1, 2, 50))
        case 6:
            other = dice.choice(seeds)
            start = dice.randrange(len(other) + 1)
            data[at : at + dice.choice((0, 50))] = other[start : start + dice.choice((5, 50, 500))]
        case _ if words:
            data[at:at] = dice.choice(words) * dice.choice((1, 1, 1, 3, 40))


def fuzz(name: str, target: Target, count: int, seed: str = "") -> int:
    """Reads the corpus and so many mutants; how many were no error. What is found is kept, and told by its file.

    Raises:
        AssertionError: an error that is not the reader's own, or a read that takes too long.
    """
    seeds = [*target.seeds(), *kept(name)]
    read = sum(_tried(name, target, data) for data in seeds)
    source = mutants(random.Random(f"{name} {seed}"), [each for each in seeds if len(each) < LONGEST], target.words)
    return read + sum(_tried(name, target, next(source)) for _ in range(count))


def _tried(name: str, target: Target, data: bytes) -> bool:
    started = time.thread_time()
    try:
        target.read(data)
        good = True
    except target.own:
        good = False
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(f"{type(error).__name__}: {str(error)[:200]}: {_keep(name, data)}") from error
    assert time.thread_time() - started < target.slowest, f"it took too long: {_keep(name, data)}"
    return good


def _keep(name: str, data: bytes) -> Path:
    file = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file
