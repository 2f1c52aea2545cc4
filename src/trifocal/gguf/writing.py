"""GGUF files written tensor by tensor: nothing is held but the one at hand, and a file is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from trifocal.errors import UsageError
from trifocal.gguf.ggml import TYPES

__all__ = ["Entry", "Tell", "write"]

ALIGNMENT = 32
Tell = Callable[[int, int], None]  # tensors written, tensors in all
_CODES = {kind.name: code for code, kind in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: its name in the file, its shape in torch's order, and what makes its kind and bytes (uint8)."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], tuple[str, torch.Tensor]]


def write(
    file: Path,
    metadata: Mapping[str, str | int | float | bool],
    entries: Sequence[Entry],
    *,
    room: int = 0,
    tell: Tell | None = None,
) -> None:
    """Writes a file of version 3, which has its name only when all is in it; ``room`` is about what it will take.

    Raises:
        UsageError: the disk has no room, or the folder can't be written to.
    """
    part = file.with_name(f".{file.name}.part-{os.getpid()}-{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(file.parent).free
        if free < room:
            raise UsageError(f"{file.parent} has room for {free / 1e9:.1f} GB, {file.name} takes {room / 1e9:.1f} GB")
        with part.open("wb") as opened:
            _fill(opened, metadata, entries, tell)
        part.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: can't be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _fill(
    opened: BinaryIO, metadata: Mapping[str, str | int | float | bool], entries: Sequence[Entry], tell: Tell | None
) -> None:
    """Tensors first: the table in front of them says their kinds, and takes the same room whatever they are."""
    placed = [(_CODES["F32"], 0)] * len(entries)
    opened.write(bytes(_padded(len(_head(metadata, entries, placed)))))
    start = opened.tell()
    for at, entry in enumerate(entries):
        kind, data = entry.make()
        placed[at] = _CODES[kind], opened.tell() - start
        opened.write(data.numpy().data)
        opened.write(bytes(-len(data) % ALIGNMENT))
        if tell is not None:
            tell(at + 1, len(entries))
    opened.seek(0)
    opened.write(_head(metadata, entries, placed))
    opened.flush()
    os.fsync(opened.fileno())


def _head(
    metadata: Mapping[str, str | int | float | bool],
    entries: Sequence[Entry],
    placed: Sequence[tuple[int, int]],
) -> bytes:
    """Everything in front of the tensors; ``placed`` is the kind and the offset of each."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    for entry, (code, offset) in zip(entries, placed, strict=True):
        sides = entry.shape[::-1]
        parts += [_text(entry.name), struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, code, offset)]
    return b"".join(parts)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float | bool) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _text(value)
