"""Where a result is to be written, looked at before the work for it begins."""

from __future__ import annotations

import stat
from pathlib import Path

from trifocal.errors import UsageError

__all__ = ["check_place"]


def check_place(file: Path, option: str, like: str, *, once: bool = False) -> None:
    """Refuses what no file can be written to; ``like`` is a name that people could give in its place.

    What is written ``once`` and from beginning to end may go to a device or a pipe, such as ``/dev/stdout``.

    Raises:
        UsageError: it is standard output, a folder, a device or a pipe, or in no folder that is there.
    """
    if str(file) == "-":
        raise UsageError(f"{option} -: name a file, such as {like}; ./- is one that is called so")
    if file.is_dir():
        raise UsageError(f"{option} {file}: this is a folder; name a file in it, such as {like}")
    if not file.parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {file.parent}; name a file in one that is there")
    if not once and file.exists() and not stat.S_ISREG(file.stat().st_mode):
        raise UsageError(f"{option} {file}: this is a device or a pipe; name a file")
