"""Captions that are kept: whatever ended the run before, nothing is lost and nothing doubled."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trifocal.errors import UsageError
from trifocal.tools.caption_files import Beside, Lines, NotWritten

A, B, C = '{"file": "a.png", "text": "one\u2028two"}', '{"file": "b.png", "text": "three"}', '{"file": "c'

OPENED: list[Lines] = []


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in ("a.png", "b.png", "c.png", "caf\udce9.png")]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What a test left open is closed behind it."""
    yield
    for each in OPENED:
        each.close()
    OPENED.clear()


def lines(out: Path, pictures: list[Path], question: str = "what?", *, again: bool = False) -> Lines:
    OPENED.append(Lines(out, pictures[0].parent, pictures, question, again=again))
    return OPENED[-1]


def names(kept: Lines) -> set[str]:
    return {path.name for path in kept.done()}


@pytest.mark.parametrize(
    ("written", "done", "mended", "stays"),
    [
        (f"{A}\n{B}\n{C}", {"a.png", "b.png"}, "half written", f"{A}\n{B}\n"),
        (f"{A}\n{B}", {"a.png", "b.png"}, "had no end", f"{A}\n{B}\n"),
        (f"{A}\r\n\n{B}\n", {"a.png", "b.png"}, "", f"{A}\r\n\n{B}\n"),
        ('{"fi', set(), "half written", ""),
        ("", set(), "", ""),
    ],
)
def test_what_an_earlier_run_left_is_gone_on_with(
    tmp_path: Path, pictures: list[Path], written: str, done: set[str], mended: str, stays: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(written.encode())
    kept = lines(out, pictures)
    assert names(kept) == done
    assert mended in kept.mended
    assert bool(kept.mended) == bool(mended)
    kept.add(pictures[2], "four\n\u2029five")
    kept.add(pictures[3], "six")
    assert out.read_bytes().startswith(stays.encode() + b'{"file": "c.png"')
    told = [json.loads(line) for line in out.read_bytes().split(b"\n") if line.strip()]
    assert [line["text"] for line in told][-2:] == ["four\n\u2029five", "six"]
    kept.close()
    assert names(lines(out, pictures)) == {*done, "c.png", "caf\udce9.png"}


@pytest.mark.parametrize(
    "data", [b"my notes", b"my notes\n", b'["file"]\n', b'{"file": 1}\n', b"\xff\xfe\n", b"[" * 9999]
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, pictures: list[Path], data: bytes, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    out.write_bytes(data)
    with pytest.raises(UsageError, match="name another --out"):
        lines(out, pictures)
    assert out.read_bytes() == data


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_another_question_is_told(tmp_path: Path, pictures: list[Path], ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    kept = lines(out, pictures)
    kept.add(pictures[0], "red")
    kept.close()
    with pytest.raises(UsageError, match=r"another question \('what\?'\)"):
        lines(out, pictures, "where?")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_places_that_take_no_file(tmp_path: Path, pictures: list[Path], ending: str) -> None:
    fifo = tmp_path / f"fifo.{ending}"
    os.mkfifo(fifo)
    for out, told in [(tmp_path, "a folder"), (tmp_path / "none" / "x", "no folder"), (fifo, "a pipe")]:
        with pytest.raises(UsageError, match=told):
            lines(out, pictures)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_two_runs_on_one_file(tmp_path: Path, pictures: list[Path], ending: str) -> None:
    first = lines(tmp_path / f"out.{ending}", pictures)
    with pytest.raises(UsageError, match="another run"):
        lines(tmp_path / f"out.{ending}", pictures)
    first.add(pictures[0], "red")


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_a_table_is_gone_on_with_wherever_it_was_cut(tmp_path: Path, pictures: list[Path], cut: int) -> None:
    out = tmp_path / "out.csv"
    kept = lines(out, pictures, 'what "is", it?')
    kept.add(pictures[0], 'a "red",\nstar')
    one = len(out.read_bytes())
    kept.add(pictures[1], "two")
    kept.add(pictures[3], "three")
    kept.close()
    whole = out.read_bytes()
    out.write_bytes(whole[: max(len(whole) - cut, one - 10)])
    kept = lines(out, pictures, 'what "is", it?')
    done = names(kept)
    for path in pictures:
        if path not in kept.done():
            kept.add(path, {"a.png": 'a "red",\nstar', "b.png": "two"}.get(path.name, "three"))
    assert done < {"a.png", "b.png", "caf\udce9.png"} or cut < 3
    import csv

    rows = list(csv.DictReader(out.read_text("utf-8").splitlines(keepends=True)))
    assert sorted(row["file"] for row in rows) == ["a.png", "b.png", "c.png", "caf\\udce9.png"]
    assert rows[0] == {"file": "a.png", "text": 'a "red",\nstar', "question": 'what "is", it?'}


def test_again_takes_the_place_when_all_is_there(tmp_path: Path, pictures: list[Path]) -> None:
    out = tmp_path / "out.jsonl"
    for path in pictures[:2]:
        kept = lines(out, pictures)
        kept.add(path, "old")
        kept.close()
    before = out.read_bytes()
    again = lines(out, pictures, again=True)
    assert again.done() == set()
    again.add(pictures[0], "new")
    assert out.read_bytes() == before
    again.close()
    resumed = lines(out, pictures, again=True)
    assert names(resumed) == {"a.png"}
    resumed.finish()
    told = {line["file"]: line["text"] for line in map(json.loads, out.read_text("utf-8").splitlines())}
    assert told == {"a.png": "new", "b.png": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@contextmanager
def room(nbytes: int) -> Iterator[None]:
    """Files of this process may have so many bytes: as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, pictures: list[Path], ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    kept = lines(out, pictures)
    kept.add(pictures[0], "red")
    before = out.read_bytes()
    with room(len(before) + 10), pytest.raises(NotWritten, match="the captions before it are there"):
        kept.add(pictures[1], "blue")
    assert out.read_bytes() == before


def test_texts_beside_are_whole_or_not_there(tmp_path: Path, pictures: list[Path]) -> None:
    kept = Beside(tmp_path, pictures)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("mine")
    assert kept.done() == {pictures[1]}
    kept.check([pictures[0]])
    with room(3), pytest.raises(NotWritten, match=r"a\.txt"):
        kept.add(pictures[0], "red star")
    kept.close()
    assert (tmp_path / "a.txt").read_text() == ""
    kept.add(pictures[0], "red star")
    kept.add(pictures[3], "coffee")
    assert (tmp_path / "a.txt").read_text() == "red star\n"
    assert os.listdir(os.fsencode(tmp_path)).count(b"caf\xe9.txt") == 1
    assert not list(tmp_path.glob(".*"))


def test_texts_that_would_overwrite_are_refused(tmp_path: Path) -> None:
    same = [tmp_path / "a.png", tmp_path / "a.jpg"]
    with pytest.raises(UsageError, match=r"both be captioned in a\.txt"):
        Beside(tmp_path, same).check(same)
    odd = [tmp_path / "b.txt", tmp_path / "c.png"]
    with pytest.raises(UsageError, match="a picture itself"):
        Beside(tmp_path, odd).check(odd)
    (tmp_path / "c.txt").mkdir()
    with pytest.raises(UsageError, match="is no file"):
        Beside(tmp_path, odd[1:]).check(odd[1:])
