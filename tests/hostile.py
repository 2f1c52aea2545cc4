"""What a hostile file holds, and a watch on what reading it does."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: list[list[str]] = []  # where the one hook writes down what it sees; empty: nowhere
_RUNNING = ("os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork")


class Runs:
    """What a malicious pickle holds: a call."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


def zipped(file: Path, program: bytes, *, packing: int = zipfile.ZIP_STORED, **entries: bytes) -> None:
    """A pickle in the zip that torch writes, with more entries of that name and content."""
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)


@contextmanager
def no_side_effects() -> Iterator[list[str]]:
    """Notes programs that are started, files that are written and source code that is opened beside weights."""
    found: list[str] = []
    if not _hooked:
        sys.addaudithook(_note)  # can't be taken away again: one for all
        _hooked.append(True)
    _watched.append(found)
    try:
        yield found
    finally:
        _watched.remove(found)


_hooked: list[bool] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if not _watched:
        return
    if event == "open":
        path, mode = str(arguments[0]), arguments[1]
        writing = isinstance(mode, str) and set(mode) & set("wax+")
        if writing or path.endswith("_canary.py"):
            _watched[-1].append(f"{event} {path} {mode}")
    elif event in _RUNNING:
        _watched[-1].append(f"{event} {arguments[:2]}")
