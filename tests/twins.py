"""A twin: something whose guard is taken away, at which the very check that stands for the guard must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

GONE: tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)  # how a check fails, and nothing else


def is_found(check: Callable[[], object], owner: Any, what: str, broken: Any) -> None:
    """Shows that ``check`` holds, and that it fails where ``owner`` has ``broken`` for ``what``."""
    check()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, what, broken)
        with pytest.raises(GONE):
            check()
