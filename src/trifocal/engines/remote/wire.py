"""What an engine's process and its front say to each other: frames over two pipes, and nothing in them that runs.

A frame is its length, its kind and a body. The body of `Kind.TOKENS` is tokens one behind the other; any other is the
length of its head, the head as JSON, and numbers raw: ids as int64, rows of pictures as they lie in memory.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, BinaryIO

import torch

from trifocal import errors
from trifocal.engines.base import State, Token
from trifocal.errors import EngineError, TrifocalError
from trifocal.messages import Sampling
from trifocal.prompt import ImageSpan, Prompt, Span, TokenSpan

__all__ = [
    "Frame",
    "Kind",
    "WireError",
    "error_from",
    "error_to",
    "prompt_from",
    "prompt_to",
    "read_frame",
    "sampling_from",
    "state_from",
    "tensor_from",
    "tensor_to",
    "tokens_from",
    "tokens_to",
    "write_frame",
]

LARGEST = 1 << 36  # bytes of a body; a length beyond it is no length
TOGETHER = 1 << 16  # bytes up to which a frame is written at once
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
_FRAME = struct.Struct("<QB")
_HEAD = struct.Struct("<I")
_TOKEN = struct.Struct("<QqdB")  # whose it is, its id, its log-probability, how many others follow
_OTHER = struct.Struct("<qd")
_ERRORS = {name: kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), TrifocalError)}


class Kind(IntEnum):
    """What a frame says: the first five are said to the process, the others by it."""

    LOAD = 1  # the recipe
    STREAM = 2  # a prompt, to be continued
    ATTEND = 3  # a prompt and an answer: where did it look
    TEXT = 4  # a question to the tokenizer
    LEFT = 5  # nobody waits for this any more
    READY = 6  # the engine is loaded: what it is
    UNFIT = 7  # it can't be loaded: why
    TOKENS = 8  # of any requests
    DONE = 9  # a request has ended: with nothing more, a result or an error
    STATE = 10  # how the engine is
    BROKEN = 11  # the engine can do nothing more, and its process ends


class WireError(Exception):
    """What was read is no frame, or not one of those that are said."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame as it was read: its head, and the bytes behind it; of tokens bytes alone."""

    kind: Kind
    head: Mapping[str, Any] = field(default_factory=dict)
    rest: memoryview = field(default_factory=lambda: memoryview(b""))


def write_frame(pipe: BinaryIO, kind: Kind, head: Mapping[str, Any] | None, parts: Sequence[memoryview] = ()) -> None:
    """Writes a frame; without a head the parts are the whole body. ``pipe`` is unbuffered.

    Raises:
        OSError: nobody reads any more.
    """
    front = b"" if head is None else json.dumps(head, allow_nan=False).encode()
    front = front if head is None else _HEAD.pack(len(front)) + front
    length = len(front) + sum(part.nbytes for part in parts)
    front = _FRAME.pack(length, kind) + front
    if len(front) + length <= TOGETHER:
        _write(pipe, memoryview(b"".join([front, *parts])))
        return
    for part in (memoryview(front), *parts):
        _write(pipe, part.cast("B"))


def read_frame(pipe: BinaryIO) -> Frame | None:
    """The next frame, or None where there will be none any more.

    Raises:
        WireError: what comes is no frame.
    """
    front = pipe.read(_FRAME.size)
    if len(front) < _FRAME.size:
        return None
    length, number = _FRAME.unpack(front)
    try:
        kind = Kind(number)
        if length > LARGEST:
            raise WireError(f"a frame of {length} bytes")
        body = memoryview(bytearray(length))
        if pipe.readinto(body) < length:  # type: ignore[attr-defined]  # a BufferedReader's
            return None
        if kind is Kind.TOKENS:
            return Frame(kind, rest=body)
        (size,) = _HEAD.unpack_from(body)
        head = json.loads(bytes(body[_HEAD.size : _HEAD.size + size]))
        if not isinstance(head, dict) or _HEAD.size + size > length:
            raise WireError("a head that is none")
        return Frame(kind, head, body[_HEAD.size + size :])
    except (ValueError, struct.error) as error:
        raise WireError(f"what came is no frame ({type(error).__name__})") from error


def tokens_to(tokens: Iterable[tuple[int, Token]]) -> memoryview:
    """Tokens with the number of the request whose they are."""
    packed = bytearray()
    for number, token in tokens:
        packed += _TOKEN.pack(number, token.id, token.logprob, len(token.top))
        for other, logprob in token.top:
            packed += _OTHER.pack(other, logprob)
    return memoryview(packed)


def tokens_from(body: memoryview) -> Iterator[tuple[int, Token]]:
    """What `tokens_to` packed.

    Raises:
        WireError: it is not that.
    """
    at = 0
    try:
        while at < len(body):
            number, token, logprob, others = _TOKEN.unpack_from(body, at)
            at += _TOKEN.size
            top = tuple(_OTHER.unpack_from(body, at + index * _OTHER.size) for index in range(others))
            at += others * _OTHER.size
            yield number, Token(token, logprob, top)
    except struct.error as error:
        raise WireError("tokens that are none") from error


def prompt_to(prompt: Prompt) -> tuple[dict[str, Any], list[memoryview]]:
    """A prompt as a head and raw numbers: all its ids, then the rows of its pictures. Rows of the main memory are not
    copied."""
    ids = memoryview(array("q", prompt.token_ids))
    pictures = [tensor_to(span.features) for span in prompt.images]
    told = iter(pictures)
    spans = [len(span) if isinstance(span, TokenSpan) else [span.digest, next(told)[0]] for span in prompt.spans]
    return {"scope": prompt.scope, "spans": spans}, [ids, *(rows for _, rows in pictures)]


def prompt_from(head: Mapping[str, Any], body: memoryview) -> tuple[Prompt, memoryview]:
    """What `prompt_to` made, and the bytes behind it; the pictures' rows lie in them and are not copied.

    Raises:
        WireError: it is not that.
    """
    try:
        counts = [each for each in head["spans"] if isinstance(each, int)]
        size = 8 * sum(counts)
        ids, body = body[:size].cast("q"), body[size:]
        spans: list[Span] = []
        at = 0
        for each in head["spans"]:
            if isinstance(each, int):
                spans.append(TokenSpan(tuple(ids[at : at + each])))
                at += each
            else:
                digest, told = each
                features, body = tensor_from(told, body)
                spans.append(ImageSpan(features, str(digest)))
        scope = head["scope"]
        return Prompt(spans, None if scope is None else str(scope)), body
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WireError(f"a prompt that is none ({type(error).__name__})") from error


def tensor_to(tensor: torch.Tensor) -> tuple[list[Any], memoryview]:
    """What a tensor is, and its bytes; one of the main memory is not copied."""
    here = tensor.detach().cpu().contiguous()
    return [str(here.dtype), list(here.shape)], here.reshape(-1).view(torch.uint8).numpy().data


def tensor_from(told: Sequence[Any], body: memoryview) -> tuple[torch.Tensor, memoryview]:
    """The tensor whose bytes ``body`` begins with, not copied, and the bytes behind it.

    Raises:
        WireError: it is not that.
    """
    try:
        name, shape = told
        dtype, count = DTYPES[name], 1
        for size in shape:
            count *= size
        if count < 1 or any(type(size) is not int or size < 1 for size in shape):
            raise ValueError
        size = count * dtype.itemsize
        if size > len(body):
            raise ValueError
        return torch.frombuffer(body, dtype=dtype, count=count).reshape(*shape), body[size:]
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("a tensor that is none") from error


def sampling_from(values: Mapping[str, Any]) -> Sampling:
    """A `Sampling` from its fields.

    Raises:
        WireError: it is none.
    """
    try:
        return Sampling(**{**values, "stop": tuple(values["stop"])})
    except (KeyError, TypeError, TrifocalError) as error:
        raise WireError("a sampling that is none") from error


def state_from(values: Mapping[str, Any]) -> State:
    """A `State` from its fields.

    Raises:
        WireError: it is none.
    """
    try:
        return State(**values)
    except TypeError as error:
        raise WireError("a state that is none") from error


def error_to(error: TrifocalError) -> dict[str, Any]:
    """An error of ours as plain values."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    facts = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    try:
        json.dumps(facts)
    except (TypeError, ValueError):
        facts = {}
    return {"kind": kind, "words": str(error), "facts": facts}


def error_from(values: Mapping[str, Any]) -> TrifocalError:
    """The error that `error_to` wrote down; one of the same kind, words and facts."""
    kind = _ERRORS.get(str(values.get("kind")), EngineError)
    made: TrifocalError = kind.__new__(kind)
    Exception.__init__(made, str(values.get("words")))
    vars(made).update(values.get("facts") or {})
    return made


def state_to(state: State) -> dict[str, Any]:
    """A `State` as its fields."""
    return asdict(state)


def _write(pipe: BinaryIO, part: memoryview) -> None:
    while part:
        part = part[pipe.write(part) :]
