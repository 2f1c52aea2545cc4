"""Where captions are kept: a text beside each picture, a JSON Lines file or a CSV file.

Whatever ended the run before (a crash, a full disk, a kill in the middle of a line), what is kept is whole: a half line
at the end is taken off, a text appears under its name when all of it is written.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from trifocal.errors import TrifocalError, UsageError
from trifocal.tools.writing import check_place

__all__ = ["Beside", "CaptionStore", "Lines", "NotWritten"]

CSV_HEAD = ["file", "text", "question"]
_BEGUN = b'{"file": "'  # how each line begins: nothing else at the end of a file is half of one


class NotWritten(TrifocalError):
    """A caption could not be written down: a full disk, a folder that went away."""


class CaptionStore(Protocol):
    """The captions of a folder: `check` before the first picture, `add` for each, `finish` after the last."""

    mended: str  # what was put right in what an earlier run left, in words

    def done(self) -> set[Path]:
        """The pictures that have a caption."""
        ...

    def check(self, todo: Sequence[Path]) -> None:
        """Refuses, before the first picture, what could not be written."""
        ...

    def add(self, path: Path, text: str) -> None:
        """Writes a caption down, whole or not at all."""
        ...

    def finish(self) -> None:
        """Puts what was written anew in the place of what was there."""
        ...

    def close(self) -> None:
        """Lets other runs write there."""
        ...


class Beside:
    """A text file beside each picture, of its name."""

    def __init__(self, folder: Path, pictures: Sequence[Path]) -> None:
        self._folder, self._pictures = folder, pictures
        self._held: int | None = None
        self.mended = ""

    def done(self) -> set[Path]:
        """Those whose text is not empty: an empty one was never written to its end."""
        return {path for path in self._pictures if _holds_text(path.with_suffix(".txt"))}

    def check(self, todo: Sequence[Path]) -> None:
        """No two pictures share a text, no text is a picture, every folder can be written to."""
        seen: dict[Path, Path] = {}
        for path in self._pictures:
            text = path.with_suffix(".txt")
            other = seen.setdefault(text, path)
            if other != path:
                raise UsageError(f"{other} and {path} would both be captioned in {text.name}; use --out FILE.jsonl")
        for path in todo:
            text = path.with_suffix(".txt")
            if text in self._pictures:
                raise UsageError(f"{text} is a picture itself, so no caption can stand there; use --out FILE.jsonl")
            if text.exists() and not text.is_file():
                raise UsageError(f"{text} is no file, so no caption can stand there; use --out FILE.jsonl")
        for folder in {path.parent for path in todo}:
            if not os.access(folder, os.W_OK):
                raise UsageError(f"{folder} can't be written to; use --out FILE.jsonl in another folder")
        with suppress(OSError):  # where folders can't be opened, they have no locks
            self._held = os.open(self._folder, os.O_RDONLY)
            _lock(self._held, self._folder)

    def add(self, path: Path, text: str) -> None:
        """Writes the text under another name first."""
        place = path.with_suffix(".txt")
        half = place.with_name(f".{place.name}.part")
        try:
            half.write_bytes(text.encode("utf-8", "replace") + b"\n")
            os.replace(half, place)
        except OSError as error:
            with suppress(OSError):
                half.unlink()
            raise NotWritten(f"{place}: {error.strerror}; the captions before it are there") from error

    def finish(self) -> None:
        """Each text is in its place already."""

    def close(self) -> None:
        """Lets other runs write there."""
        if self._held is not None:
            os.close(self._held)
        self._held = None


class Lines:
    """A file with a line (or a row, where it is called .csv) for each picture, with its name, text and question.

    ``again`` writes another file first, which takes the place of this one when it is finished.
    """

    def __init__(self, out: Path, folder: Path, pictures: Sequence[Path], question: str, *, again: bool) -> None:
        self._out, self._folder, self._pictures, self._question = out, folder, pictures, question
        self._csv = out.suffix.lower() == ".csv"
        self._place = out.with_name(out.name + ".new") if again else out
        self._check_place()
        self.mended = ""
        self._file = self._opened()
        try:
            self._names = self._begun() if again else self._read()
        except BaseException:
            self._file.close()
            raise

    def done(self) -> set[Path]:
        """Those whose line is there."""
        return {path for path in self._pictures if self._name(path) in self._names}

    def check(self, todo: Sequence[Path]) -> None:
        """The file is open and was read: nothing more can be known before it is written to."""

    def add(self, path: Path, text: str) -> None:
        """Writes a line behind the others; where it does not go in whole, none of it stays."""
        line = {"file": self._name(path), "text": text, "question": self._question}
        end = self._file.seek(0, os.SEEK_END)
        rows = [*([CSV_HEAD] if self._csv and not end else []), [line[name] for name in CSV_HEAD]]
        data = _as_csv(rows) if self._csv else _as_json(line)
        try:
            while data:  # a disk that is nearly full takes a part of it first
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise NotWritten(f"{self._place}: {error.strerror}; the captions before it are there") from error

    def finish(self) -> None:
        """With ``again``: takes over lines about pictures that were not captioned anew, and takes the file's place."""
        if self._place == self._out:
            return
        if self._out.exists():
            with self._out.open("rb") as old:
                new = self._read()
                kept = [line for line in self._lines(self._out, old.read()) if line["file"] not in new]
            for line in kept:
                if line.get("question", self._question) == self._question:
                    self.add(self._folder / line["file"], line["text"])
        os.replace(self._place, self._out)

    def close(self) -> None:
        """Lets other runs write there."""
        self._file.close()

    def _name(self, path: Path) -> str:
        name = path.relative_to(self._folder).as_posix()
        return name.encode("utf-8", "backslashreplace").decode() if self._csv else name

    def _check_place(self) -> None:
        check_place(self._out, "--out", "captions.jsonl")

    def _opened(self) -> io.FileIO:
        """The file without a buffer, so that a line that fails leaves nothing behind; no other run has it."""
        try:
            file = io.FileIO(self._place, "r+" if self._place.exists() else "x+")
        except OSError as error:
            raise UsageError(f"--out {self._place}: {error.strerror}") from error
        try:
            _lock(file.fileno(), self._place)
        except UsageError:
            file.close()
            raise
        return file

    def _begun(self) -> set[str]:
        """The names in the file that was begun with ``again``; where it answers something else, it is begun anew."""
        try:
            return self._read()
        except UsageError:
            self._file.truncate(0)
            return set()

    def _read(self) -> set[str]:
        """The names of the pictures in the file. A half line at its end is taken off, a missing line break added."""
        self._file.seek(0)
        lines = self._lines(self._place, self._file.readall())
        for line in lines:
            if line.get("question", self._question) != self._question:
                raise UsageError(
                    f"{self._place} holds answers to another question ({line['question']!r}); "
                    "name another --out, or write all of them anew with --again"
                )
        return {line["file"] for line in lines}

    def _lines(self, place: Path, data: bytes) -> list[dict[str, Any]]:
        """The lines as values; what is half or not closed at the end of our own file is mended."""
        whole, lines = _rows(place, data, self._question) if self._csv else _objects(place, data)
        if place == self._place and whole != data:
            self._mend(data, whole)
        return lines

    def _mend(self, data: bytes, whole: bytes) -> None:
        if whole.startswith(data):
            self.mended = f"{self._place}: the last line had no end; it has one now"
            self._file.seek(0, os.SEEK_END)
            self._file.write(whole[len(data) :])
        else:
            self.mended = f"{self._place}: the last line was half written; its picture is captioned again"
            self._file.truncate(len(whole))


def _objects(place: Path, data: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """The file as it should be, and its lines. They end with a line feed and nothing else: U+2028 is text."""
    lines: list[dict[str, Any]] = []
    parts = data.split(b"\n")
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        line = _object(part)
        if line is not None:
            lines.append(line)
        elif part and last and (part.startswith(_BEGUN) or _BEGUN.startswith(part)):
            return data[: len(data) - len(part)], lines
        elif part.strip(b"\0 \t\r"):
            raise UsageError(f"{place}, line {number}: this is no caption; name another --out")
    return (data + b"\n" if parts[-1].strip() else data), lines


def _object(part: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(part)
    except (ValueError, RecursionError):
        return None
    good = isinstance(line, dict) and isinstance(line.get("file"), str) and isinstance(line.get("text"), str)
    return line if good else None


def _rows(place: Path, data: bytes, question: str) -> tuple[bytes, list[dict[str, Any]]]:
    """As `_objects`, of rows. The last one is whole without a line break where it ends with the question."""
    whole = _closed_rows(data)
    rows, half = _table(place, whole), data[len(whole) :]
    if not rows and not _as_csv([CSV_HEAD]).startswith(data):
        raise UsageError(f"{place}: its first row is not {','.join(CSV_HEAD)}; name another --out")
    if rows and rows[0][:2] != CSV_HEAD[:2]:
        raise UsageError(f"{place}: its first row is not {','.join(CSV_HEAD)}; name another --out")
    if half and half.count(b'"') % 2 == 0:
        last = _table(place, half)
        if rows and [len(row) for row in last] == [len(CSV_HEAD)] and last[0][-1] == question:
            whole, rows = data.rstrip(b"\r") + b"\r\n", [*rows, *last]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UsageError(f"{place}, row {number}: this is no caption; name another --out")
    return whole, [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def _table(place: Path, data: bytes) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{place}: this is no table in UTF-8; name another --out") from error


def _closed_rows(data: bytes) -> bytes:
    """The rows that have an end. An even number of quotes stands before it: quotes in a text are doubled."""
    end, at, quotes = 0, 0, 0
    for line in data.split(b"\n")[:-1]:
        at += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            end = at
    return data[:end]


def _as_json(line: dict[str, str]) -> bytes:
    """A line of JSON; a name that is no UTF-8 is kept in escapes, from which Python reads the same name."""
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line).encode() + b"\n"


def _as_csv(rows: Sequence[Sequence[str]]) -> bytes:
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    return written.getvalue().encode("utf-8", "backslashreplace")


def _holds_text(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except OSError:
        return False


def _lock(file: int, place: Path) -> None:
    """Keeps two runs from writing one file; where files have no locks, nothing does."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{place} is being written by another run") from error
    except OSError:
        return
