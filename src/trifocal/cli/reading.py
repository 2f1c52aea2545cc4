"""What a user types in a conversation: several lines, edited, remembered from one session to the next."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

import click

from trifocal.cli.pictures import path_of
from trifocal.errors import UsageError

__all__ = ["Typed", "names_in"]

REMEMBERED = 1000  # lines
_QUOTES = '"""'


class Typed:
    """Questions from the terminal, or line by line from a pipe; ``remember`` keeps what was typed for the next time."""

    def __init__(self, *, remember: bool = True) -> None:
        self._terminal = sys.stdin is not None and sys.stdin.isatty()
        self._file = _history_file() if remember and self._terminal else None
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused with a sentence, below
        if self._terminal:
            with contextlib.suppress(ImportError):
                import readline  # importing it gives input() its line editing

                if self._file:
                    with contextlib.suppress(OSError):
                        readline.read_history_file(self._file)

    def next(self, waiting: int) -> str | None:
        """What was typed: a line, or several after a `\\` at a line's end or between triple quotes; None at the end.

        Raises:
            UsageError: it is no text in UTF-8.
        """
        prompt = f"[{waiting} picture{'s' * (waiting > 1)}] > " if waiting else "> "
        try:
            text = self._several(self._line(prompt))
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo()
            return ""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("that was no text in UTF-8; nothing was asked") from error
        return text

    def close(self) -> None:
        """Keeps what was typed."""
        if not self._file:
            return
        with contextlib.suppress(ImportError, OSError):
            import readline

            readline.set_history_length(REMEMBERED)
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(self._file)

    def _several(self, line: str) -> str:
        if line.strip().startswith(_QUOTES):
            return self._quoted(line.strip()[len(_QUOTES) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._more())
        return "\n".join(lines)

    def _quoted(self, text: str) -> str:
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + self._more()
        return text.rstrip()[: -len(_QUOTES)].strip("\n")

    def _more(self) -> str:
        return self._line("... ")

    def _line(self, prompt: str) -> str:
        if sys.stdin is None:
            raise EOFError
        return input(prompt if self._terminal else "")


def names_in(text: str) -> list[str]:
    """The names of files in what was typed or dragged in: one with spaces as it is, or several in shell's quotes."""
    text = text.strip()
    if not text or os.path.isfile(path_of(text)):
        return [text] if text else []
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is not closed: Tom's cat.png
        return [text]


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "trifocal" / "history"
