"""``caption`` in processes of its own: every picture by its content, several at once, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures
from processes import echoing, environment, trifocal

from checkpoint_maker import V0
from trifocal.messages import Sampling
from trifocal.model.llava import load
from trifocal.tools.caption import captions, find_pictures
from waiting import PATIENCE, until


@pytest.fixture
def echo(v0: V0) -> dict[str, str]:
    return echoing(v0)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Pictures of many kinds, odd names among them, and files that are none."""
    folder = tmp_path / "album"
    folder.mkdir()
    for at, (name, kind) in enumerate(
        [
            ("a.png", "PNG"),
            ("b.JFIF", "JPEG"),
            ("c.bmp", "BMP"),
            ("d.tiff", "TIFF"),
            ("e", "WEBP"),
            ("-f g'.png", "GIF"),
        ]
    ):
        Pictures.new("RGB", (40, 30), (40 * at, 90, 200)).save(folder / name, kind)
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        Pictures.new("RGB", (40, 30), "white").save(file, "PNG")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "h.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "i").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "notes.md").write_text("notes")
    (folder / ".DS_Store").write_text("hidden")
    return folder


def test_pictures_are_found_by_content(album: Path) -> None:
    found = find_pictures(album)
    assert {path.name for path in found.pictures} == {
        *("-f g'.png", "a.png", "b.JFIF", "c.bmp", "d.tiff", "e", "caf\udce9.png", "broken.png", "h.heic", "i")
    }
    assert found.others == 2
    (album / "more").mkdir()
    (album / "a.png").rename(album / "more" / "a.png")
    assert len(find_pictures(album).pictures) == 9
    assert len(find_pictures(album, recursive=True).pictures) == 10


def test_a_whole_album_in_one_process(album: Path, echo: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"file": "a.png", "text": "there"}\n{"file": "b.JF')
    done = trifocal("caption", str(album), "what?", "--out", str(out), "--workers", "3", **echo)
    assert done.returncode == 1
    told = done.stderr.decode()
    assert "the last line was half written" in told
    assert "broken.png: the file is damaged" in told
    assert "h.heic: this is HEIC; pip install" in told
    assert done.stdout == b"6 captions written, 1 was there, 3 files refused; 2 other files are no pictures\n"
    lines = [json.loads(line) for line in out.read_bytes().split(b"\n") if line]
    assert sorted(line["file"] for line in lines) == sorted(
        ["-f g'.png", "a.png", "b.JFIF", "c.bmp", "caf\udce9.png", "d.tiff", "e"]
    )
    assert len({line["text"] for line in lines}) == 7


def test_what_can_not_be_written_is_said_before_the_first_picture(album: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    for words, told in [
        (("--out", str(tmp_path)), "this is a folder"),
        (("--out", str(tmp_path / "none" / "x.jsonl")), "there is no folder"),
        (("--out", "/dev/full"), "a device or a pipe"),
        (("--out", "-"), "name a file, such as captions.jsonl"),
        (("--out", str(tmp_path / "notes.jsonl")), "line 1: this is no caption"),
    ]:
        done = trifocal("caption", str(album), *words)
        assert (done.returncode, done.stdout) == (2, b""), (words, done)
        assert told in done.stderr.decode(), (words, done.stderr)
    assert trifocal("caption", str(album / "nowhere")).returncode == 2


def test_stopped_and_started_again(echo: dict[str, str], tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.csv"
    folder.mkdir()
    for at in range(60):
        Pictures.new("RGB", (20, 20), (at, at, at)).save(folder / f"{at:02}.png")
    words = ["caption", str(folder), "what is it?", "--out", str(out), "--workers", "2"]
    command = [
        sys.executable,
        "-m",
        "trifocal",
        *words,
        "-e",
        "delay=0.2",
    ]  # a minute of work, of which it sees the beginning

    def interruptible() -> None:
        """A shell has what it starts in the background ignore SIGINT, and so would whatever a test starts there."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(**echo)}
    with subprocess.Popen(command, **pipes, preexec_fn=interruptible) as process:
        try:
            began = lambda: out.exists() and out.read_bytes().count(b"\n") > 2  # noqa: E731
            until(lambda: began() or process.poll() is not None, "a caption")
            process.send_signal(signal.SIGINT)
            shown, told = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert b"the same command goes on there" in told
    assert b"Traceback" not in told
    assert b"written, 0 were" not in shown
    done = trifocal(*words, **echo)
    assert done.returncode == 0, done.stderr
    rows = out.read_text("utf-8").splitlines()
    assert sorted(row.split(",")[0] for row in rows[1:]) == [f'"{at:02}.png"' for at in range(60)]


def test_answers_come_as_they_are_ready_and_one_bad_picture_stops_nobody(
    album: Path, v0: V0, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = find_pictures(album).pictures
    values = {"checkpoint": str(v0.language), "tower_from": str(v0.tower), "projector_from": str(v0.projector)}
    with load(engine="echo", template="plain", **values) as llava:
        alone = {each.path: each for each in captions(llava, "what?", paths, Sampling())}
        together = {each.path: each for each in captions(llava, "what?", paths, Sampling(), workers=4)}
        assert together == alone
        assert sum(each.refusal is not None for each in alone.values()) == 3
        assert llava.gallery.nbytes == len(llava.gallery) == 0  # nothing is kept of what is asked about once
        many = captions(llava, "what?", paths * 50, Sampling(), workers=2)
        next(many)
        many.close()
        long = list(captions(llava, "x" * 200_000, paths[1:2], Sampling()))
        assert long[0].refusal is not None
        assert "context" in long[0].refusal
