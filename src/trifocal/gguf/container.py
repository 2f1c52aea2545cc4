"""The GGUF container: metadata and tensors of a memory-mapped file, checked before anything is read.

Layout (versions 2 and 3, little endian): magic, version, counts, key-value pairs, tensor table, and the tensors' blocks
from the next multiple of ``general.alignment`` on. Source: ggml ``docs/gguf.md``.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, size_of
from trifocal.gguf.ggml import TYPES, BlockType, dequantise

__all__ = ["GgufFile", "Metadata", "TensorInfo"]

Metadata = Mapping[str, Any]  # key -> int | float | bool | str | list of these

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DEEPEST = 4  # arrays of arrays of arrays ... are legal, and a way to exhaust the stack


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. ``shape`` is in torch's order (the file's, turned round); ``start`` counts from byte 0."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    start: int
    bytes: int


class GgufFile(Mapping[str, torch.Tensor]):
    """A GGUF file as a mapping from its own tensor names to tensors that are read when they are asked for.

    F32, F16 and BF16 tensors keep their type; quantised ones come dequantised, as float32. A file that is split into
    ``...-00001-of-00003.gguf`` is opened by its first part and reads as one.

    Raises:
        CheckpointError: no GGUF file, cut short, of another version, or with a table that does not fit its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata, table = _parse(path)
        self._homes = {name: (path, info) for name, info in table.items()}
        for part in _other_parts(path, self.metadata):
            _, more = _parse(part)
            for name in more.keys() & self._homes.keys():
                raise CheckpointError(f"{part}: tensor {name!r} is also in {self._homes[name][0].name}")
            self._homes.update({name: (part, info) for name, info in more.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        path, info = self._homes[name]
        if info.kind.decode is None:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {info.kind.name}, with which the engine llamacpp alone computes; "
                f"take that engine, or a file of other types. Read here: {_names(decoded=True)}"
            )
        data = np.memmap(path, dtype=np.uint8, mode="r")
        raw = data[info.start : info.start + info.bytes]
        return dequantise(raw, info.kind, _DTYPES.get(info.kind.name, torch.float32)).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def info(self, name: str) -> TensorInfo:
        """Shape, type and place of a tensor, without reading it; KeyError if there is none."""
        return self._homes[name][1]

    def need(self, key: str) -> Any:
        """A metadata value that can't be done without.

        Raises:
            CheckpointError: the file has no such key.
        """
        if key not in self.metadata:
            raise CheckpointError(f"{self.path}: the metadata key {key!r} is missing")
        return self.metadata[key]


def _names(decoded: bool = False) -> str:
    return ", ".join(kind.name for kind in TYPES.values() if kind.decode or not decoded)


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Metadata and tensor table of one file."""
    size_of(path)
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    cursor = _Cursor(data.data, path)
    cursor.header()
    tensors, pairs = cursor.count(24), cursor.count(13)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise CheckpointError(f"{path}: the metadata key {key!r} stands there twice")
        metadata[key] = cursor.value(cursor.number("<I"), key)
    entries = [cursor.entry() for _ in range(tensors)]
    return metadata, _place(path, entries, _data_start(path, metadata, cursor.at), len(data))


def _data_start(path: Path, metadata: Metadata, end: int) -> tuple[int, int]:
    """Where the tensors' bytes begin, and the alignment of their offsets."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {alignment!r}, expected a power of two")
    return -(-end // alignment) * alignment, alignment


def _place(
    path: Path, entries: list[tuple[str, tuple[int, ...], int, int]], start: tuple[int, int], size: int
) -> dict[str, TensorInfo]:
    """The table with every tensor's type, shape and bytes checked against the file."""
    base, alignment = start
    table: dict[str, TensorInfo] = {}
    for name, shape, code, offset in entries:
        if code not in TYPES:
            raise CheckpointError(
                f"{path}: tensor {name!r} has the ggml type {code}, which can't be read; known: {_names()}"
            )
        kind = TYPES[code]
        if name in table:
            raise CheckpointError(f"{path}: tensor {name!r} stands in the table twice")
        if not shape or 0 in shape or shape[-1] % kind.values:
            raise CheckpointError(
                f"{path}: tensor {name!r} of shape {list(shape)} can't be {kind.name} (blocks of {kind.values})"
            )
        length = math.prod(shape) // kind.values * kind.bytes
        if offset % alignment:
            raise CheckpointError(f"{path}: tensor {name!r} starts at {offset}, which is no multiple of {alignment}")
        if base + offset + length > size:
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {base + offset + length}, the file has {size}: it is cut short"
            )
        table[name] = TensorInfo(name, shape, kind, base + offset, length)
    _refuse_overlap(path, table)
    return table


def _refuse_overlap(path: Path, table: Mapping[str, TensorInfo]) -> None:
    ordered = sorted(table.values(), key=lambda info: info.start)
    for first, second in itertools.pairwise(ordered):
        if first.start + first.bytes > second.start:
            raise CheckpointError(f"{path}: the tensors {first.name!r} and {second.name!r} share bytes")


def _other_parts(path: Path, metadata: Metadata) -> list[Path]:
    """The other files of a split model; all of them must be there."""
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts <= 1:
        return []
    stem = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if stem is None or int(stem[3]) != parts or int(stem[2]) != 1:
        raise CheckpointError(f"{path}: is one of {parts} parts; name the first, called ...-00001-of-{parts:05}.gguf")
    names = [path.with_name(f"{stem[1]}-{part:05}-of-{parts:05}.gguf") for part in range(2, parts + 1)]
    for name in names:
        if not name.is_file():
            raise CheckpointError(f"{name}: is missing; the model has {parts} parts")
    return names


class _Cursor:
    """Reads a file's head from front to back and never past its end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self._data, self._path, self.at = data, path, 0

    def header(self) -> None:
        if bytes(self._take(4, "the magic")) != b"GGUF":
            found = other_kind(bytes(self._data[:64])) or f"it begins with {bytes(self._data[:4])!r}"
            raise CheckpointError(f"{self._path}: is no GGUF file: {found}")
        version = self.number("<I")
        if version not in (2, 3):
            turned = struct.unpack(">I", struct.pack("<I", version))[0]
            what = f"big-endian GGUF {turned}" if turned in (2, 3) else f"GGUF version {version}"
            raise CheckpointError(f"{self._path}: is {what}; versions 2 and 3, little endian, can be read")

    def number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), "a number"))[0]

    def count(self, least: int) -> int:
        """A count of things that take at least ``least`` bytes each: more than fit is damage."""
        count = int(self.number("<Q"))
        left = len(self._data) - self.at
        if count * least > left:
            raise CheckpointError(
                f"{self._path}: byte {self.at - 8} says {count} entries, but only {left} bytes follow"
            )
        return count

    def text(self, what: str) -> str:
        try:
            return str(self._take(self.count(1), what), "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path}: {what} before byte {self.at} is no UTF-8 text") from error

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(f"the value of {key!r}")
        if kind != _ARRAY or depth == _DEEPEST:
            raise CheckpointError(f"{self._path}: the metadata key {key!r} has a value of the unknown type {kind}")
        inner = self.number("<I")
        if inner in _SCALARS:
            length = self.count(struct.calcsize(_SCALARS[inner]))
            form = f"<{length}{_SCALARS[inner][1]}"
            return list(struct.unpack(form, self._take(struct.calcsize(form), f"the values of {key!r}")))
        return [self.value(inner, key, depth + 1) for _ in range(self.count(8))]

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """A row of the tensor table: name, shape in torch's order, ggml type, offset."""
        name = self.text("a tensor's name")
        rank = self.number("<I")
        if rank > 4:
            raise CheckpointError(f"{self._path}: tensor {name!r} has {rank} dimensions, expected at most 4")
        shape = tuple(self.number("<Q") for _ in range(rank))
        return name, shape[::-1], self.number("<I"), self.number("<Q")

    def _take(self, length: int, what: str) -> memoryview:
        if self.at + length > len(self._data):
            raise CheckpointError(f"{self._path}: ends at byte {len(self._data)}, inside of {what}: it is cut short")
        self.at += length
        return self._data[self.at - length : self.at]
