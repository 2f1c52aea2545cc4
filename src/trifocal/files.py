"""Files of a checkpoint, looked at before they are opened: no folder, no pipe, no device, of a bearable size."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError

__all__ = ["other_kind", "read_bytes", "read_object", "read_text", "size_of"]

TEXT_LIMIT = 256 << 20  # the largest tokenizers have 35 MB
_ELSE = {
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for: fetch that with git lfs pull",
    b"<!doctype html": "an HTML page, not the file: a download brought an error instead",
    b"<html": "an HTML page, not the file: a download brought an error instead",
}
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")


def size_of(file: Path) -> int:
    """Bytes of an ordinary file.

    Raises:
        CheckpointError: it is not there, can't be looked at, or is a folder, a pipe or a device.
    """
    try:
        found = file.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {getattr(error, 'strerror', None) or 'can not be read'}") from error
    if stat.S_ISDIR(found.st_mode):
        raise CheckpointError(f"{file}: Is a directory, a file was expected")
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{file}: is no ordinary file but a pipe, a socket or a device")
    return found.st_size


def read_bytes(file: Path) -> bytes:
    """An ordinary file, whole.

    Raises:
        CheckpointError: it can't be read, or is larger than any such file.
    """
    size = size_of(file)
    if size > TEXT_LIMIT:
        raise CheckpointError(f"{file}: has {size} bytes; up to {TEXT_LIMIT} are read")
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or 'can not be read'}") from error


def read_text(file: Path) -> str:
    """The text of an ordinary file, without the mark that some editors put before it.

    Raises:
        CheckpointError: it can't be read, is larger than any such file, or no UTF-8.
    """
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: this is no JSON, not even text") from error


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is not there, or no JSON object.
    """
    text = read_text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        other = other_kind(text[:64].encode())
        raise CheckpointError(f"{file}: this is no JSON{other and f', but {other}'}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object was expected, this is a {type(value).__name__}")
    return value


def other_kind(head: bytes) -> str:
    """What a file is by its first bytes, where a download brought something else; empty where they don't tell."""
    if _TIKTOKEN.match(head):
        return "tiktoken's list of ranks: copy the model's tokenizer.json there, which says how they are used"
    return next((what for start, what in _ELSE.items() if head.lstrip().lower().startswith(start)), "")
