"""GGUF files made of checkpoints, kept in the user's cache folder and found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trifocal.engines.language import Language
from trifocal.engines.llamacpp.conversion import convert
from trifocal.gguf.writing import Tell
from trifocal.weights.packed import Located

__all__ = ["folder", "made_of"]

VERSION = "1"  # of what `convert` writes
_SAMPLE = 1 << 16  # bytes from each end of a file

log = logging.getLogger("trifocal")


def folder() -> Path:
    """Where they are kept. Any of them may be deleted: it is made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal" / "gguf"


def made_of(language: Language, rounding: str | None) -> Path:
    """The file made of a checkpoint, which is converted where it was not.

    Raises:
        CheckpointError: the checkpoint is damaged.
        UsageError: the disk has no room.
    """
    file = folder() / f"{_digest(language, rounding)}.gguf"
    if file.is_file():
        return file
    began = time.perf_counter()
    log.info("language model: %s becomes a GGUF file, once", language.folder)
    with _progress(f"converting {language.folder.name}") as tell:
        convert(language, file, rounding=rounding, tell=tell)
    size, seconds = file.stat().st_size / 1e9, time.perf_counter() - began
    log.info("language model: converted in %.1f s, %.2f GB, kept in %s", seconds, size, file)
    return file


def _digest(language: Language, rounding: str | None) -> str:
    """What the file is made of: the configuration, the tensors' names, and each of their files by its size, the time of
    its last change and both of its ends."""
    digest = hashlib.sha256()
    weights = language.weights
    files = weights.files if isinstance(weights, Located) else set()
    told = [VERSION, rounding, dict(language.config), sorted(weights)]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for file in sorted(files):
        facts = file.stat()
        digest.update(f"{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_SAMPLE))
            opened.seek(max(0, facts.st_size - _SAMPLE))
            digest.update(opened.read(_SAMPLE))
    return digest.hexdigest()[:40]


@contextmanager
def _progress(what: str) -> Iterator[Tell | None]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)
