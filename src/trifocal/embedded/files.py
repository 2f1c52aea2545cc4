"""Files of one tensor as bytes with a shape: safetensors, and what ``torch.save`` writes, of which nothing is run."""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

__all__ = ["Stored", "read_safetensors", "read_torch"]

HEAD_BYTES = 1 << 16  # of a header of safetensors
PICKLE_BYTES = 4096  # of the pickle that a tensor has: it takes some 250
MEMBERS = 16  # of torch's archive: it has five
_SAFE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
}
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_REBUILD, _HOOKS = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
OTHER = (
    "embeddings are a dense tensor of float32, float16 or bfloat16 in a safetensors file or in what torch.save writes"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A dense tensor as its bytes, little end first."""

    data: memoryview
    dtype: str
    shape: tuple[int, ...]


def read_safetensors(data: bytes) -> tuple[Stored, dict[str, Any]]:
    """The one tensor of a safetensors file, and the facts that Trifocal put beside it.

    Raises:
        ValueError: it is none of one such tensor.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > min(HEAD_BYTES, len(data) - 8):
        raise ValueError(OTHER)
    try:
        head = json.loads(data[8 : 8 + size])
        facts = json.loads((head.pop("__metadata__", None) or {}).get("trifocal", "{}"))
        (told,) = head.values()
        dtype, shape, offsets = _SAFE[told["dtype"]], tuple(told["shape"]), told["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(OTHER) from error
    _check_whole(shape)
    rest = memoryview(data)[8 + size :]
    if offsets != [0, len(rest)] or math.prod(shape) * _SIZES[dtype] != len(rest) or not isinstance(facts, dict):
        raise ValueError("the embeddings' file does not have the bytes that its header tells")
    return Stored(rest, dtype, shape), facts


def read_torch(data: bytes) -> Stored:
    """The one tensor of what ``torch.save`` writes.

    Its pickle is not run: it is read as the list of instructions that it is, and has to be the one that a plain dense
    tensor has. Members of the archive are stored as they are: what is packed may be larger than it looks.

    Raises:
        ValueError: it is anything else.
    """
    if data.count(b"PK\1\2") > MEMBERS:  # each begins so in the directory, of which an object is made for each
        raise ValueError(OTHER)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MEMBERS or any(each.compress_type or each.flag_bits & 1 for each in members):
                raise ValueError(OTHER)
            (pickled,) = (each for each in members if each.filename.endswith("/data.pkl"))
            if pickled.file_size > PICKLE_BYTES:
                raise ValueError(OTHER)
            base = pickled.filename.removesuffix("data.pkl")
            storage, offset, shape = _tensor_of(archive.read(pickled))
            kind, key, count = storage
            names = {each.filename for each in members}
            if f"{base}byteorder" in names and archive.read(f"{base}byteorder") != b"little":
                raise ValueError("embeddings are stored with the little end first")
            held = archive.read(f"{base}data/{key}")
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, OverflowError, EOFError) as error:
        raise ValueError(OTHER) from error
    width, wanted = _SIZES[kind], math.prod(shape)
    if len(held) != count * width or offset + wanted > count:
        raise ValueError("the embeddings' file does not have the bytes that its header tells")
    return Stored(memoryview(held)[offset * width : (offset + wanted) * width], kind, shape)


def _tensor_of(pickled: bytes) -> tuple[tuple[str, str, int], int, tuple[int, ...]]:
    """A plain tensor's storage (precision, name, length), its offset there and its shape, by its pickle."""
    match _Reading().value(pickled):
        case _Made(
            name,
            (_Stored(("storage", str(kind), str(key), str(), int(count))), int(offset), shape, strides, bool(), hooks),
        ) if name == _REBUILD and hooks == _Made(_HOOKS, ()) and kind in _STORAGES and key.isdecimal():
            _check_whole(shape)
            if offset < 0 or count < 0 or strides != _dense(shape):
                raise ValueError("embeddings are stored row by row: save rows.contiguous().clone()")
            return (_STORAGES[kind], key, count), offset, shape
    raise ValueError(OTHER)


def _check_whole(shape: Any) -> None:
    """Refuses what is no shape, holds nothing, or has sides of which the product alone would be a work of its own."""
    fine = isinstance(shape, tuple) and len(shape) <= 8
    if not fine or any(type(side) is not int or not 0 < side < 1 << 40 for side in shape):
        raise ValueError(OTHER)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps."""
    return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))


@dataclass(frozen=True, slots=True)
class _Made:
    """What a function would make of arguments, if it were called."""

    function: Any
    arguments: Any


@dataclass(frozen=True, slots=True)
class _Stored:
    """A name of something outside of the pickle."""

    name: Any


class _Reading:
    """The few instructions of a tensor's pickle, and what they leave on the stack: names, numbers and tuples.

    A function is a text here, and calling it makes a pair.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def value(self, pickled: bytes) -> Any:
        """What the pickle stands for.

        Raises:
            ValueError: it has other instructions, or ends too early.
        """
        acts: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "GLOBAL": self._stack.append,
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "TUPLE": lambda _: self._tuple(len(self._stack) - self._marks.pop()),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "BINPERSID": lambda _: self._stack.append(_Stored(self._stack.pop())),
            "REDUCE": lambda _: self._reduce(),
        }
        for name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            acts[name] = self._stack.append
        for name in ("BINPUT", "LONG_BINPUT"):
            acts[name] = lambda at: self._memo.__setitem__(at, self._stack[-1])
        for name in ("BINGET", "LONG_BINGET"):
            acts[name] = lambda at: self._stack.append(self._memo[at])
        try:
            for code, argument, _ in pickletools.genops(pickled):
                if code.name == "STOP":
                    (value,) = self._stack
                    return value
                acts[code.name](argument)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ValueError(OTHER) from error
        raise ValueError(OTHER)

    def _tuple(self, count: int) -> None:
        if not 0 <= count <= len(self._stack):
            raise ValueError(OTHER)
        at = len(self._stack) - count
        self._stack[at:] = [tuple(self._stack[at:])]

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_Made(function, arguments))
