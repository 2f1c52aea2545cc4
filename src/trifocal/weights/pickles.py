"""Tensors in torch's own files, which are pickles: read where that was allowed, and never run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, size_of

if TYPE_CHECKING:
    import torch

__all__ = ["pickled_words", "unpickled"]

TABLE_LIMIT = 16 << 20  # bytes
MOST_OPCODES = 1 << 18  # a tensor takes about 50
_OLD_PICKLES = 5  # before torch 1.6: a magic number, a version, the system, the table, the storages' names


def unpickled(file: Path, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    """A ``.bin`` file's tensors.

    Raises:
        CheckpointError: it may not be read, is damaged, or holds anything but plain tensors.
    """
    if not allow_pickle:
        raise CheckpointError(
            f"{file} is a pickle; say --allow-pickle to read it (no code in it is run), or convert it to safetensors"
        )
    import torch

    size = _whole_archive(file)
    _opcodes(file)
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # files of before torch 1.6 can't be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file}: damaged, or a pickle that holds more than tensors; it was not run") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{file}: this is no table of tensors")
    for name, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{file}: {name} is no plain tensor with its numbers in the file")
        if tensor.nbytes > size:
            raise CheckpointError(f"{file}: {name} should take {tensor.nbytes} bytes, the whole file has {size}")
    return loaded


def _whole_archive(file: Path) -> int:
    """Bytes of a ``.bin`` file whose content, if it is a zip, is no larger than itself: torch squeezes nothing."""
    import zipfile

    size = size_of(file)
    try:
        with file.open("rb") as opened:
            if other := other_kind(opened.read(64)):
                raise CheckpointError(f"{file}: this is {other}")
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                inside = sum(entry.file_size for entry in archive.infolist())
            if inside > size:
                raise CheckpointError(f"{file}: holds {inside} bytes in {size}: no file of torch is squeezed")
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: damaged, or no file of tensors") from error
    return size


def pickled_words(file: Path) -> list[str]:
    """All strings in a ``.bin`` file's pickle, tensors' names among them. Its opcodes are read, never followed."""
    _whole_archive(file)
    return [str(word) for name, word in _opcodes(file) if "UNICODE" in name]


def _opcodes(file: Path) -> list[tuple[str, object]]:
    """Names and arguments of the opcodes in a ``.bin`` file's pickles.

    Raises:
        CheckpointError: they can't be read, or are more than a table of tensors needs.
    """
    import pickletools
    import zipfile

    found: list[tuple[str, object]] = []
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
                if not entries or max(entry.file_size for entry in entries) > TABLE_LIMIT:
                    raise CheckpointError(f"{file}: no file of tensors: no table, or one over {TABLE_LIMIT} bytes")
                streams = [io.BytesIO(archive.read(entry)) for entry in entries]
        else:
            with file.open("rb") as opened:
                streams = [io.BytesIO(opened.read(TABLE_LIMIT))] * _OLD_PICKLES
        for stream in streams:
            for opcode, word, _ in pickletools.genops(stream):
                found.append((opcode.name, word))
                if len(found) > MOST_OPCODES:
                    raise CheckpointError(
                        f"{file}: its table takes more than {MOST_OPCODES} steps: no table of tensors"
                    )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged zip or pickle makes of their readers
        raise CheckpointError(f"{file}: damaged, or a pickle that holds more than tensors; it was not run") from error
    return found
