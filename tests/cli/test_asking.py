"""``ask`` in processes of its own: what is a picture, what is the question, and how a process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image as Pictures
from processes import echoing, environment, trifocal

from checkpoint_maker import V0
from trifocal.api.fetch import Fetcher
from trifocal.cli.ask import ask, split_words
from trifocal.cli.pictures import clipboard, is_picture_word, looks_like_a_name, read_picture
from trifocal.errors import BadImage, UsageError
from trifocal.tools.pictures import decode, is_picture, open_picture
from waiting import PATIENCE


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in [("red.png", "red"), ("blue.png", "blue"), ("-dash.png", "green"), ("Tom's cat.png", "grey")]:
        Pictures.new("RGB", (60, 40), colour).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "photos").mkdir()
    return tmp_path


@pytest.fixture
def echo(v0: V0, album: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every command talks to the echo engine."""
    values = echoing(v0)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.mark.parametrize(
    "words",
    [["cat.png"], ["red.png", "gone.jpg"], ["IMG_1234"], ["red.png", "IMG_1234"], ["*.webp"], ["~/nowhere/cat"]]
    + [["sub/cat"], ["Describe"], ["red.png", "Tom's dog.png"], ["red.png", "cat.heic"], ["red.png", "cat.unknown"]],
)
def test_a_missing_picture_is_never_asked(album: Path, words: list[str]) -> None:
    with pytest.raises(UsageError, match="there is no such file") as refused:
        split_words(words, None)
    assert words[-1] in str(refused.value)
    assert "-q " in str(refused.value)


@pytest.mark.parametrize("word", ["photos", "photos/", ".", "/", "~"])
def test_a_folder_is_never_asked(album: Path, word: str) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        split_words(["red.png", word], None)


@pytest.mark.parametrize(
    "question",
    ["what?", "Describe", "What is in it.", "2+2?", "图中有2只猫吗", "a" * 300 + " b" * 40000, "Tell me:\nwhat is it?"],
)
def test_questions_are_asked(album: Path, question: str) -> None:
    assert split_words(["red.png", question], None) == (["red.png"], question)
    assert split_words(["red.png", "Tom's cat.png"], question) == (["red.png", "Tom's cat.png"], question)


@pytest.mark.parametrize("question", ["", "   ", "caf\udce9?"])
def test_questions_that_are_none_are_refused(album: Path, question: str) -> None:
    for words, given in ((["red.png", question], None), (["red.png"], question)):
        with pytest.raises(UsageError, match="the question is"):
            split_words(words, given)


def test_every_word_is_one_thing(album: Path) -> None:
    for word in ("red.png", "Tom's cat.png", "-", "https://example.org/cat", (album / "red.png").as_uri()):
        assert is_picture_word(word), word
    for word in ("photos", "IMG_1234", "cat.jpg"):
        assert not is_picture_word(word) and looks_like_a_name(word), word  # noqa: PT018


def test_exit_codes_and_one_line(album: Path) -> None:
    for words, code, said in [
        (("ask", "cat.png"), 2, "error: cat.png: there is no such file"),
        (("ask", "photos", "what?"), 2, "error: photos: this is a folder"),
        (("ask", "red.png", "What", "is", "it?"), 2, "What: there is no such file (a question of several words"),
        (("ask", "-", "-", "what?"), 2, "standard input (-) can be read once"),
        (("ask", "-", "what?"), 2, "standard input: there are 0 bytes"),
        (("ask", "-dash.png", "what?"), 2, "begin with a dash go behind --"),
        (("ask", "https://example.org/cat.png", "what?"), 2, "--url-host example.org"),
        (("ask", "https://10.0.0.1/cat.png", "what?", "--url-host", "10.0.0.1"), 2, "not by an address"),
        (("ask", "http://example.org/a.png", "what?", "--url-host", "example.org"), 2, "https only"),
        (("ask", "red.png", "--explain", "none/looked.png"), 2, "there is no folder none"),
        (("bench", "--plot", "-"), 2, "name a file"),
        (("ask", b"caf\xe9.png", "what?"), 2, "caf"),
    ]:
        done = trifocal(*words, folder=album)
        assert (done.returncode, done.stdout) == (code, b""), (words, done)
        assert said in done.stderr.decode(), (words, done.stderr)


@pytest.mark.parametrize(("where", "code"), [(">/dev/full", 1), (">&-", 0), ("2>&-", 0), ("| head -n 0", 0)])
def test_outputs_that_take_nothing(where: str, code: int) -> None:
    command = f"{sys.executable} -m trifocal --help {where}"
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr
    assert (b"No space left" in done.stderr) == (where == ">/dev/full")


def test_the_clipboard(monkeypatch: pytest.MonkeyPatch, album: Path) -> None:
    from PIL import ImageGrab

    held: list[object] = [Pictures.new("RGB", (9, 9)), [str(album / "red.png")], None, []]
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: held.pop(0))
    assert (clipboard().width, clipboard().width) == (9, 60)
    for _ in range(2):
        with pytest.raises(BadImage, match="clipboard: there is no picture in it"):
            clipboard()

    def refuse() -> None:
        raise NotImplementedError("wl-paste or xclip is required for ImageGrab.grabclipboard() on Linux")

    monkeypatch.setattr(ImageGrab, "grabclipboard", refuse)
    with pytest.raises(BadImage, match="can't be asked here"):
        clipboard()


def test_an_address_is_fetched_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, album: Path) -> None:
    async def fetch(self: Fetcher, url: str, name: str) -> bytes:
        return (album / "red.png").read_bytes()

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    address = "https://Example.org/a.png"
    assert read_picture(address, ["example.org"]) == read_picture("red.png")
    with pytest.raises(BadImage, match=r"--url-host example\.org"):
        read_picture(address, ["example.com"])


def test_a_terminal_is_not_waited_for(album: Path) -> None:
    import pty

    main, other = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "trifocal", "ask", "-", "what?"],
        stdin=other,
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
    )
    os.close(main)
    os.close(other)
    assert done.returncode == 2
    assert b"pipe it in" in done.stderr


def test_each_picture_has_an_answer_and_refusals_a_code(echo: dict[str, str], album: Path) -> None:
    words = ("ask", "red.png", "gone.png", "text.png", "-dash.png", "-q", "what?", "--each", "--json")
    done = trifocal(*words[:4], *words[5:], "--", "-dash.png", folder=album, **echo)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [line["file"] for line in lines] == ["red.png", "-dash.png"]
    assert lines[0]["text"] != lines[1]["text"]
    assert b"refused: gone.png: there is no such file" in done.stderr
    assert b"refused: text.png: this is no picture" in done.stderr


@pytest.mark.usefixtures("echo")
def test_the_question_from_standard_input_and_each_in_words(album: Path) -> None:
    shown = CliRunner().invoke(ask, ["red.png", "-q", "-"], input="what is it?\n", catch_exceptions=False)
    assert shown.exit_code == 0
    assert shown.stdout.rstrip().endswith("what is it?")
    shown = CliRunner().invoke(ask, ["red.png", "blue.png", "-q", "it?", "--each"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert [line.partition(": ")[0] for line in shown.stdout.splitlines()] == ["red.png", "blue.png"]
    with pytest.raises(UsageError, match="is no text in UTF-8"):
        CliRunner().invoke(ask, ["red.png", "-q", "-"], input=b"caf\xe9", catch_exceptions=False)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "PCX", "TIFF 16", "CMYK"])
def test_every_format_that_pillow_reads(tmp_path: Path, kind: str) -> None:
    mode = {"TIFF 16": "I;16", "CMYK": "CMYK"}.get(kind, "RGB")
    path = tmp_path / "picture"
    Pictures.new(mode, (32, 32)).save(path, "TIFF" if mode != "RGB" else kind)
    assert is_picture(path)
    assert open_picture(path).pixels.size == (32, 32)
    data = path.read_bytes()
    with pytest.raises(BadImage, match=r"damaged|no picture|AVIF"):
        decode(data[: len(data) // 2], "half")


def test_what_nothing_reads_is_called_what_it_is(tmp_path: Path) -> None:
    for data, told in [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg>", "SVG"),
        (b"hello", "no picture; JPEG, PNG, WebP, GIF, BMP, TIFF and more are read here"),
    ]:
        with pytest.raises(BadImage, match=told):
            decode(data, "x")
    bomb = BytesIO()
    Pictures.new("1", (30000, 30000)).save(bomb, "TIFF", compression="group4")
    with pytest.raises(BadImage, match="pixels"):
        decode(bomb.getvalue(), "bomb")
