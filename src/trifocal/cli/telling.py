"""What is said beside the answers: on standard error, in colour where a terminal has it and nobody minds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import click

from trifocal.messages import End

__all__ = ["coloured", "counted", "tell_error", "tell_refused", "told_of"]


def coloured() -> bool:
    """Whether standard error is shown in colour: not where ``NO_COLOR`` is set (no-color.org), nor in a file."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell_error(text: str) -> None:
    """Says what went wrong."""
    _tell("error:", text)


def tell_refused(text: str) -> None:
    """Says what was left out, while the rest went on."""
    _tell("refused:", text)


def counted(count: int, what: str) -> str:
    """So many of something, in words: "1 file", "2 files"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def told_of(end: End) -> Iterator[str]:
    """What stands below an answer: what was left out, and what was done otherwise than asked."""
    if end.left_out:
        yield f"[left out: {'; '.join(end.left_out)}]"
    if end.notes:
        yield f"[note: {'; '.join(end.notes)}]"


def _tell(mark: str, text: str) -> None:
    shown = click.style(mark, fg="red", bold=True) if coloured() else mark
    click.echo(f"{shown} {text}", err=True, color=coloured())
