"""``trifocal log``: past answers, and the options of the commands that write them down."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from trifocal.cli.configuration import Configured
from trifocal.errors import TrifocalError, UsageError
from trifocal.messages import Message
from trifocal.tools.conversations import Entry, Log, log_file

__all__ = ["Going", "log", "log_options"]

_FILE = click.option("--log-file", type=click.Path(path_type=Path), help="The log.  [default: in your own data]")


class Going:
    """The conversation that is gone on with, and the log in which answers are written down, where one is kept."""

    def __init__(self, log: Log | None, before: Sequence[Message] = (), number: int | None = None) -> None:
        self._log, self.before, self._number = log, list(before), number

    @property
    def kept(self) -> bool:
        """Whether anything is written down."""
        return self._log is not None

    def put(self, model: str, messages: Sequence[Message], *, same: bool = False) -> None:
        """Writes a conversation, over its last state where it is the ``same``. The answer stands if that fails."""
        if self._log is None:
            return
        try:
            self._number = self._log.put(model, messages, self._number if same else None)
        except TrifocalError as error:
            click.echo(f"not written down: {error}", err=True)
            self._log = None

    def forget(self) -> None:
        """What comes is another conversation."""
        self._number = None


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of the log; the command gets ``going``."""

    @functools.wraps(command)
    def gathered(log: bool, log_file: Path | None, go_on: str | None, **values: Any) -> Any:
        kept = Log(_place(log_file))
        entry = kept.entry(go_on) if go_on else None
        before = entry.messages if entry else ()
        return command(going=Going(kept if log else None, before, entry.number if entry else None), **values)

    on = click.option("--log/--no-log", "log", default=True, help="Write answers down: trifocal log shows them.")
    again = click.option("-c", "--continue", "go_on", metavar="ENTRY", help="Go on with an entry of the log, or last.")
    return again(on(_FILE(gathered)))


@click.command(
    "log",
    cls=Configured,
    short_help="Past answers, and going on with one.",
    epilog="""\b
Examples:
  trifocal log                             the newest ones
  trifocal log 12                          all of one conversation
  trifocal log --search "red star" --json
  trifocal ask "And its colour?" -c 12     goes on with it; chat -c last too
  trifocal log --clear                     forgets all of them""",
)
@click.argument("which", required=False, metavar="[ENTRY]")
@click.option("-n", "--count", default=20, show_default=True, type=click.IntRange(1, 1 << 31), help="Of the newest.")
@click.option("--search", default="", metavar="TEXT", help="Those with this text in question or answer.")
@click.option("--remove", is_flag=True, help="Take ENTRY out.")
@click.option("--clear", is_flag=True, help="Take all of them out.")
@click.option("--json", "as_json", is_flag=True, help="As lines of JSON.")
@_FILE
def log(
    which: str | None, count: int, search: str, remove: bool, clear: bool, as_json: bool, log_file: Path | None
) -> None:
    """Shows the answers that ask and chat wrote down, newest first, or the conversation ENTRY.

    They are in a file that only you can read; pictures stand in it by their paths. `--no-log`, TRIFOCAL_LOG=no or
    `log = false` in trifocal.toml switches it off.
    """
    kept = Log(_place(log_file))
    if clear or remove:
        if clear == (which is not None):
            raise UsageError("--clear takes all out, and ENTRY --remove one: give one of them")
        click.echo(f"{kept.remove(None if clear else kept.entry(str(which)).number)} taken out")
    elif which is not None:
        entry = kept.entry(which)
        click.echo(json.dumps(_told(entry), ensure_ascii=False) if as_json else _whole(entry))
    else:
        for entry in kept.last(count, search):
            click.echo(json.dumps(_told(entry), ensure_ascii=False) if as_json else _line(entry))


def _place(given: Path | None) -> Path:
    return given.expanduser() if given else log_file()


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "entry": entry.number,
        "time": entry.time,
        "model": entry.model,
        "pictures": list(entry.pictures),
        "question": entry.question,
        "answer": entry.answer,
    }


def _line(entry: Entry) -> str:
    pictures = f" [{', '.join(Path(name).name for name in entry.pictures)}]" if entry.pictures else ""
    text = " ".join(f"{entry.number:>4}  {entry.time[:16]}  {entry.question}{pictures} -> {entry.answer}".split(" "))
    return _cut(" ".join(text.splitlines()), shutil.get_terminal_size((100, 24)).columns)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _whole(entry: Entry) -> str:
    lines = [f"entry {entry.number}, {entry.time}, {entry.model}"]
    for turn in json.loads(entry.turns):
        said = "".join(part["text"] if "text" in part else f"[{part['image']}] " for part in turn["parts"])
        lines.append(f"\n{turn['role']}: {said}")
    return "\n".join(lines)
