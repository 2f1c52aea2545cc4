"""Waiting for something to be so. How long it took never decides a test: what hangs is ended after minutes, no more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["PATIENCE", "until"]

PATIENCE = float(os.environ.get("TRIFOCAL_PATIENCE", "180"))  # seconds: far more than anything takes


def until(holds: Callable[[], object], what: str = "this") -> None:
    """Returns as soon as ``holds()`` is true."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.005)
