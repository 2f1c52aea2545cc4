"""The command line as a user meets it: answers, JSON, errors as one line, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image as Pictures

from checkpoint_maker import V0
from trifocal import cli
from trifocal.cli.ask import ask
from trifocal.cli.caption import caption
from trifocal.cli.chat import chat
from trifocal.cli.inspect import inspect
from trifocal.errors import UsageError
from waiting import PATIENCE


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in [("red.png", "red"), ("blue.png", "blue")]:
        Pictures.new("RGB", (60, 40), colour).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.fixture
def echo(v0: V0, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command talks to the echo engine."""
    for name, value in [
        ("checkpoint", v0.language),
        ("tower_from", v0.tower),
        ("projector_from", v0.projector),
        ("engine", "echo"),
        ("template", "plain"),
    ]:
        monkeypatch.setenv(f"TRIFOCAL_{name.upper()}", str(value))


def run(command: object, *words: str, stdin: str | bytes | None = None) -> str:
    result = CliRunner().invoke(command, list(words), input=stdin, catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.usefixtures("echo")
def test_ask_streams_the_answer() -> None:
    out = run(ask, "red.png", "what is <image> here?")
    assert out.startswith("what is[picture: 16 positions, mean ")
    assert out.rstrip().endswith("here?")


@pytest.mark.usefixtures("echo")
def test_two_pictures_and_none_and_standard_input(files: Path) -> None:
    assert run(ask, "red.png", "blue.png", "differ?").count("[picture") == 2
    assert run(ask, "only text").strip() == "only text"
    assert run(ask, "-", "it?", stdin=(files / "red.png").read_bytes()) == run(ask, "red.png", "it?")


@pytest.mark.usefixtures("echo")
def test_a_picture_without_a_question_is_described() -> None:
    assert "Describe the picture." in run(ask, "red.png")


@pytest.mark.usefixtures("echo")
def test_json_tells_positions_and_timings() -> None:
    told = json.loads(run(ask, "red.png", "what?", "--json", "--max-tokens", "5"))
    assert told["finish"] == "length"
    usage = told["usage"]
    assert usage["prompt_tokens"] == usage["text_tokens"] + usage["image_tokens"]
    assert (usage["image_tokens"], usage["completion_tokens"], usage["images"], usage["left_out"]) == (16, 5, 1, [])
    assert {"decode", "preprocess", "tower", "projector", "prefill", "per_token"} <= set(told["timings"])


@pytest.mark.usefixtures("echo")
def test_chat_keeps_pictures_and_turns() -> None:
    lines = ["/help", "first", "/image blue.png", "/image text.png", "second", "/images last", "/nonsense", "/retry"]
    result = CliRunner().invoke(chat, ["red.png"], input="\n".join([*lines, "/undo", "/clear", "third", "/quit"]))
    assert result.exit_code == 0, result.output
    said = [line for line in result.stdout.splitlines() if line]
    assert "/image PATH" in result.stdout
    assert "goes with your next question" in result.stderr
    assert "error: text.png: this is no picture" in result.stderr
    assert "there is no /nonsense" in result.stderr
    assert "[left out: 1 earlier picture (images=last)]" in result.stderr
    assert [line for line in said if line.strip("> ")][-1].endswith("third")


@pytest.mark.usefixtures("echo")
def test_captions_are_written_once_and_damaged_files_are_told(files: Path) -> None:
    folder = files / "album"
    folder.mkdir()
    for name in ("red.png", "blue.png", "text.png"):
        (folder / name).write_bytes((files / name).read_bytes())
    result = CliRunner().invoke(caption, [str(folder), "what?"])
    assert result.exit_code == 1
    assert "2 captions written, 0 were there, 1 file refused" in result.stdout
    assert "text.png" in result.stderr
    assert "[picture: 16" in (folder / "red.txt").read_text()
    assert not (folder / "text.txt").exists()
    (folder / "text.png").unlink()
    assert "0 captions written, 2 were there" in run(caption, str(folder), "what?")
    out = files / "captions.jsonl"
    run(caption, str(folder), "what?", "--out", str(out))
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == ["blue.png", "red.png"]
    assert "2 were there" in run(caption, str(folder), "what?", "--out", str(out))


@pytest.mark.usefixtures("echo")
def test_captions_that_would_overwrite_each_other_are_refused(files: Path) -> None:
    Pictures.new("RGB", (9, 9)).save(files / "red.jpg")
    with pytest.raises(UsageError, match=r"both be captioned in red\.txt"):
        run(caption, str(files))


def test_inspect_tells_the_parts(hf15: Path, v0: V0) -> None:
    table = run(inspect, str(hf15))
    assert "16" in table
    for word in ("tower", "projector", "language", "llava_v1", "block 3 of 4", "centre cropped"):
        assert word in table
    told = json.loads(
        run(inspect, str(v0.language), "--tower-from", str(v0.tower), "--projector-from", str(v0.projector), "--json")
    )
    assert told["positions per picture"] == 18
    assert [part["part"] for part in told["parts"]] == ["tower", "projector", "language"]
    assert told["parts"][1]["numbers"] == 64 * 32 + 64
    assert told["parts"][1]["bytes"] == 4 * (64 * 32 + 64)


def test_known_checkpoints_are_listed() -> None:
    listed = "".join(run(inspect, "--known").split()).replace("│", "").replace("┃", "")
    assert "wojtab/llava-13b-v0-4bit-128g" in listed


def trifocal(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "trifocal", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=PATIENCE,
    )


def test_mistakes_are_one_line_and_an_exit_code(files: Path) -> None:
    for words, code, said in [
        (("ask", "none.png", "what?"), 2, "error: none.png: there is no such file"),
        (("ask", "text.png", "what?"), 2, "error: text.png: this is no picture"),
        (("ask", "red.png", "what?", "--template", "warp"), 2, "error: unknown template 'warp'; known:"),
        (("ask", "red.png", "what?", "-m", "nowhere"), 2, "error: 'nowhere' is no file or folder here"),
        (("ask", "red.png", "what?", "--temperature", "-1"), 2, "error: temperature: -1.0 is out of range"),
        (("ask",), 2, "Missing argument"),
        (("nonsense",), 2, "No such command"),
    ]:
        shown = trifocal(*words)
        assert (shown.returncode, shown.stdout) == (code, ""), shown
        assert said in shown.stderr
        assert "Traceback" not in shown.stderr


def test_the_help_teaches() -> None:
    shown = trifocal("--help").stdout
    assert "trifocal ask cat.png" in shown
    for name in cli.COMMANDS:
        assert name in shown
        assert trifocal(name, "--help").returncode == 0


def test_a_reader_that_leaves_is_no_error(files: Path) -> None:
    shown = subprocess.run(
        f"{sys.executable} -m trifocal --help | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert shown.stderr == ""


def test_engine_options_are_read() -> None:
    import click

    from trifocal.cli.options import parse_engine_options

    assert parse_engine_options(("a=1", "b=0.5", "c=true", "d=x=y")) == {"a": 1, "b": 0.5, "c": True, "d": "x=y"}
    with pytest.raises(click.BadParameter, match="not KEY=VALUE"):
        parse_engine_options(("a",))


def test_standard_input_that_is_no_picture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from trifocal.cli.ask import read_picture
    from trifocal.errors import BadImage

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    with pytest.raises(BadImage, match="standard input: this is no picture"):
        read_picture("-")
