"""The header of a safetensors file: read whole and checked against the file before any tensor is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, size_of

__all__ = ["read_header"]

HEADER_LIMIT = 16 << 20  # bytes
MOST_SIDES = 8
_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's header: dtype, shape and place of every tensor, checked against the file.

    Raises:
        CheckpointError: the file is missing, cut short, or its header makes no sense.
    """
    try:
        size = size_of(file)
        with file.open("rb") as opened:
            start = opened.read(64)
            if other := other_kind(start):
                raise CheckpointError(f"{file}: this is {other}")
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f"{file}: its header claims {length} bytes, the file has {size}: cut short, or no safetensors file"
                )
            opened.seek(8)
            header: Any = json.loads(opened.read(length), object_pairs_hook=_once)
    except _Twice as error:
        raise CheckpointError(f"{file}: its header holds {error} twice: the file is damaged") from error
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is no JSON: the file is damaged") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is no table of tensors")
    _check_header(file, header, size - 8 - length)
    return header


class _Twice(Exception):
    """A name stands in a header twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return table


def _check_header(file: Path, header: dict[str, Any], room: int) -> None:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in _SIZES:
                raise CheckpointError(f"{file}: {name} is of the type {entry['dtype']!r}; known: {', '.join(_SIZES)}")
            if len(entry["shape"]) > MOST_SIDES or not all(type(side) is int for side in entry["shape"]):
                raise TypeError("no shape")
            size = _SIZES[entry["dtype"]]
            for side in entry["shape"]:
                size *= side
            sound = 0 <= begin <= end and end - begin == size and all(side >= 0 for side in entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: the header's entry for {name} makes no sense") from error
        if not sound:
            raise CheckpointError(f"{file}: {name} should take {size} bytes, its place has {end - begin}")
        if end > room:
            raise CheckpointError(f"{file}: {name} ends at byte {end}, the file has {room}: it is cut short")
    _check_places(file, header, room)


def _check_places(file: Path, header: dict[str, Any], room: int) -> None:
    """Tensors lie one behind the other, from the first byte to the last."""
    at, before = 0, "the header"
    spans = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    for begin, end, name in spans:
        if begin != at:
            what = "overlap" if begin < at else f"leave {begin - at} bytes between them"
            raise CheckpointError(f"{file}: {before} and {name} {what}: the file is damaged")
        at, before = end, name
    if at != room:
        raise CheckpointError(f"{file}: {room - at} bytes follow its last tensor: the file is damaged")
