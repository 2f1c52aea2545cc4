"""Waiting for something to be so. How long it took never decides a test: what hangs is ended after minutes, no more."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable

__all__ = ["PATIENCE", "line_of", "until"]

PATIENCE = float(os.environ.get("TRIFOCAL_PATIENCE", "180"))  # seconds: far more than anything takes


def until(holds: Callable[[], object], what: str = "this") -> None:
    """Returns as soon as ``holds()`` is true."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.005)


def line_of(process: subprocess.Popen[str], *, errors: bool = False) -> str:
    """The next line that a process says, or that it says among its ``errors``; one that stays silent is ended: ""."""
    said = process.stderr if errors else process.stdout
    assert said is not None
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        return said.readline()
    finally:
        timer.cancel()
