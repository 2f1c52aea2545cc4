"""transformers asked without its talk: its tables of weights, bars of progress and advice to its own users.

What is wrong with a checkpoint is told by our own errors, by file and tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet"]

_lock = threading.Lock()
_asking = 0
_before: tuple[int, bool] = (0, True)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that transformers would say below an error is said meanwhile, whichever threads are inside."""
    global _asking, _before
    from transformers.utils import logging

    talk: Any = logging

    with _lock:
        if not _asking:
            _before = talk.get_verbosity(), talk.is_progress_bar_enabled()
            talk.set_verbosity_error()
            talk.disable_progress_bar()
        _asking += 1
    try:
        yield
    finally:
        with _lock:
            _asking -= 1
            if not _asking:
                level, bars = _before
                talk.set_verbosity(level)
                (talk.enable_progress_bar if bars else talk.disable_progress_bar)()
