"""Conversations written down and read again: as JSON of their own, and in a log that can be gone on with."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from trifocal.errors import BadImage, TrifocalError, UsageError
from trifocal.images import LIMITS, Image, from_data_uri
from trifocal.messages import Message
from trifocal.tools.pictures import open_picture

__all__ = ["Entry", "Log", "log_file", "read_conversation", "turns_from", "turns_of", "write_conversation"]

VERSION = 1
_OWN = replace(LIMITS, bytes=1 << 30)  # a photograph as PNG is larger than the JPEG that it was


def turns_of(messages: Sequence[Message], *, whole: bool) -> list[dict[str, Any]]:
    """Messages as plain JSON values.

    ``whole`` holds the pictures' pixels (as PNG, in data URIs); otherwise a file stands by its path and digest.
    """
    return [{"role": each.role, "parts": [_part(part, whole) for part in each.parts]} for each in messages]


def turns_from(values: Any, name: str) -> list[Message]:
    """The messages again; ``name`` says whose they are.

    Raises:
        UsageError: these are no messages.
        BadImage: a picture that is no longer there, or is another one now.
    """
    try:
        return [Message(each["role"], [_read(part) for part in each["parts"]]) for each in values]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{name}: this is no conversation that trifocal wrote") from error


def write_conversation(path: Path, messages: Sequence[Message]) -> None:
    """Writes messages to a file, pictures and all; only a conversation is written over.

    Raises:
        UsageError: it can't be written there.
    """
    if path.exists():
        try:
            read_conversation(path)
        except BadImage:
            pass
        except UsageError as error:
            raise UsageError(f"{path} is there and is no conversation; name another file") from error
    half = path.with_name(f".{path.name}.part")
    try:
        half.write_text(json.dumps({"trifocal": VERSION, "turns": turns_of(messages, whole=True)}), "utf-8")
        os.replace(half, path)
    except OSError as error:
        half.unlink(missing_ok=True) if half.parent.is_dir() else None
        raise UsageError(f"{path}: {error.strerror}") from error


def read_conversation(path: Path) -> list[Message]:
    """The messages in a file that `write_conversation` wrote.

    Raises:
        UsageError: there is no such file, or it is none of those.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: this is no conversation that trifocal wrote") from error
    return turns_from(found.get("turns") if isinstance(found, dict) else None, str(path))


def _part(part: str | Image, whole: bool) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    told = {"image": part.name, "digest": part.digest}
    if not whole and os.path.isfile(part.name):
        return {**told, "path": os.path.abspath(part.name)}
    data = BytesIO()
    part.pixels.save(data, "PNG", compress_level=1)
    return {**told, "data": f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"}


def _read(part: Any) -> str | Image:
    if "text" in part:
        return str(part["text"])
    if "data" in part:
        return from_data_uri(part["data"], name=part["image"], limits=_OWN)
    image = open_picture(part["path"])
    if image.digest != part["digest"]:
        raise BadImage("changed", "the file holds another picture now than the one that was talked about", image.name)
    return image


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer in the log, or a chat: of which only the last question and answer stand in ``question``, ``answer``."""

    number: int
    time: str
    model: str
    question: str
    answer: str
    pictures: tuple[str, ...]
    turns: str

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with the answer at its end."""
        return turns_from(json.loads(self.turns), f"entry {self.number} of the log")


def log_file() -> Path:
    """Where the log is unless it is said otherwise: in the user's own data (the XDG base directories)."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(data) / "trifocal" / "log.db"


class Log:
    """Past answers in an SQLite file that only its user can read. Pictures stand in it by their paths."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, model: str, messages: Sequence[Message], number: int | None = None) -> int:
        """Adds a conversation that ends with its answer, or writes entry ``number`` anew; its number.

        Raises:
            TrifocalError: the file can't be written.
        """
        asked = next(each for each in reversed(messages) if each.role == "user")
        names = [image.name for message in messages for image in message.images]
        turns = json.dumps(turns_of(messages, whole=False))
        row = (_now(), model, _plain(asked.text), _plain(messages[-1].text), json.dumps(names), turns)
        with self._open() as database:
            put = (
                "INSERT INTO answers (time, model, question, answer, pictures, turns, id) VALUES (?, ?, ?, ?, ?, ?, ?)"
            )
            anew = (
                "UPDATE answers SET time = ?, model = ?, question = ?, answer = ?, pictures = ?, turns = ? WHERE id = ?"
            )
            if number is None or not database.execute(anew, (*row, number)).rowcount:
                number = int(database.execute(put, (*row, number)).lastrowid or 0)
        return number

    def last(self, count: int, search: str = "") -> list[Entry]:
        """The newest entries, newest first, of those that have a text in question or answer."""
        with self._open() as database:
            found = database.execute(
                "SELECT id, time, model, question, answer, pictures, turns FROM answers "
                "WHERE instr(lower(question), lower(?1)) OR instr(lower(answer), lower(?1)) ORDER BY id DESC LIMIT ?2",
                (search, count),
            ).fetchall()
        return [_entry(row) for row in found]

    def entry(self, which: str) -> Entry:
        """An entry by its number, or the ``last``.

        Raises:
            UsageError: there is none of that number.
        """
        if which != "last" and not (which.isascii() and which.isdecimal() and len(which) < 18):
            raise UsageError(f"{which!r} is no entry of the log: a number or last; trifocal log lists them")
        with self._open() as database:
            row = database.execute(
                "SELECT id, time, model, question, answer, pictures, turns FROM answers "
                "WHERE id = ?1 OR ?1 = 'last' ORDER BY id DESC LIMIT 1",
                (which if which == "last" else int(which),),
            ).fetchone()
        if row is None:
            raise UsageError(f"the log has no entry {which}; trifocal log lists them")
        return _entry(row)

    def remove(self, number: int | None) -> int:
        """Takes an entry out, or all of them; how many were taken. Nothing of them stays in the file."""
        with self._open() as database:
            where, values = ("", ()) if number is None else (" WHERE id = ?", (number,))
            return int(database.execute(f"DELETE FROM answers{where}", values).rowcount)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database, with its table; what SQLite or the disk says becomes a sentence."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                database.execute("PRAGMA secure_delete = ON")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT, model TEXT, "
                    "question TEXT, answer TEXT, pictures TEXT, turns TEXT)"
                )
                yield database
        except sqlite3.Error as error:
            raise TrifocalError(f"the log {self.path}: {error}; name another with --log-file, or --no-log") from error
        except OSError as error:
            reason = error.strerror or "can not be written"
            raise TrifocalError(f"the log {self.path}: {reason}; name another with --log-file, or --no-log") from error


def _entry(row: Sequence[Any]) -> Entry:
    number, time, model, question, answer, pictures, turns = row
    return Entry(number, time, model, question, answer, tuple(json.loads(pictures)), turns)


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")


def _plain(text: str) -> str:
    """Text that SQLite takes: it has no half surrogates."""
    return text.encode("utf-8", "replace").decode()
