"""What is said beside the answers: on standard error, in colour where a terminal has it and nobody minds."""

from __future__ import annotations

import os
import sys

import click

__all__ = ["coloured", "tell_error", "tell_refused"]


def coloured() -> bool:
    """Whether standard error is shown in colour: not where ``NO_COLOR`` is set (no-color.org), nor in a file."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell_error(text: str) -> None:
    """Says what went wrong."""
    _tell("error:", text)


def tell_refused(text: str) -> None:
    """Says what was left out, while the rest went on."""
    _tell("refused:", text)


def _tell(mark: str, text: str) -> None:
    shown = click.style(mark, fg="red", bold=True) if coloured() else mark
    click.echo(f"{shown} {text}", err=True, color=coloured())
