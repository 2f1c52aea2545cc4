"""What tests of engines over heavy libraries need, and that it is there where `make test-engines` installs it."""

from __future__ import annotations

import importlib.util
import os

import pytest

__all__ = ["engine", "has"]


def has(module: str) -> bool:
    """Whether an engine's library is installed."""
    return importlib.util.find_spec(module) is not None


def engine(name: str, module: str) -> pytest.MarkDecorator:
    """A mark that skips where an engine's library is not installed; where it was made sure of, nothing is skipped."""
    wanted = os.environ.get("TRIFOCAL_TESTED") == name
    return pytest.mark.skipif(not has(module) and not wanted, reason=f"{module} is not installed: make test-engines")
