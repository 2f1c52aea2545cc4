"""``chat``, ``log`` and ``rm``: odd names, several lines, what is kept and gone on with; in a real terminal too."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image as Pictures
from processes import echoing, environment

from checkpoint_maker import V0
from trifocal.cli.ask import ask
from trifocal.cli.chat import chat
from trifocal.cli.log import log
from trifocal.cli.pull import remove_held
from trifocal.cli.reading import names_in
from trifocal.errors import BadImage, UsageError
from trifocal.images import from_pil
from trifocal.messages import Message
from trifocal.tools.conversations import Log, read_conversation, turns_from, turns_of, write_conversation
from waiting import PATIENCE

ODD = ["Tom's cat.png", 'a "b".png', "zwei Katzen.png", "back\\slash.png", "-dash.png", "#1.png"]


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for at, name in enumerate(["red.png", "blue.png", *ODD]):
        Pictures.new("RGB", (60, 40), (30 * at, 255 - 30 * at, 9)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def echo(v0: V0, album: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values = {**echoing(v0), "TRIFOCAL_LOG": "yes"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def run(command: Any, *words: str, stdin: str | bytes | None = None) -> Any:
    shown = CliRunner().invoke(command, list(words), input=stdin, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown


def test_names_as_they_are_typed_and_dragged_in(album: Path) -> None:
    for name in ODD:
        assert names_in(f" {name} ") == [name]
        assert names_in(str(album / name)) == [str(album / name)]
    assert names_in("red.png blue.png") == ["red.png", "blue.png"]
    assert names_in("'zwei Katzen.png' red.png") == ["zwei Katzen.png", "red.png"]
    assert names_in("zwei\\ Katzen.png red.png") == ["zwei Katzen.png", "red.png"]
    assert names_in("Tom's dog.png") == ["Tom's dog.png"]
    assert names_in("  ") == []


@pytest.mark.usefixtures("echo")
def test_a_chat_with_odd_names_and_all_commands(album: Path) -> None:
    typed = ["/again", *(f"/image {name}" for name in ODD), "/image ~/red.png", "/image Tom's dog.png", "/image"]
    typed += [
        "/image red.png gone.png",
        "first",
        "/system",
        "/system be short",
        "one \\",
        "two",
        '"""three',
        "",
        'four"""',
    ]
    typed += [
        "/save a talk.json",
        '/save "a talk.json"',
        "/clear",
        "/load a talk.json",
        "/again",
        "/save /",
        "/load none",
    ]
    shown = run(chat, stdin="\n".join(typed))
    told = shown.stderr
    assert told.count("goes with your next question") == len(ODD) + 1
    for each in ["Tom's dog.png: there is no such file", "/image needs a path", "nothing was asked yet"]:
        assert f"error: {each}" in told
    assert "gone.png: there is no such file" in told
    assert "[system: be short]" in told
    assert shown.stdout.count("[picture: 16 positions") >= len(ODD) + 1
    assert "a talk.json: 3 questions and answers" in told
    kept = read_conversation(album / "a talk.json")
    assert [turn.role for turn in kept] == ["system", *["user", "assistant"] * 3]
    assert len(kept[1].images) == len(ODD) + 1
    assert [turn.text for turn in kept[3::2]] == ["one \ntwo", "three\n\nfour"]
    assert "error: none:" in told


@pytest.mark.usefixtures("echo")
def test_what_is_no_text_is_not_asked() -> None:
    shown = run(chat, stdin=b"caf\xe9\nhello\n")
    assert "error: that was no text in UTF-8" in shown.stderr
    assert "hello" in shown.stdout


def test_conversations_are_kept_whole(album: Path) -> None:
    image = from_pil(Pictures.new("RGBA", (5, 5), (1, 2, 3, 4)), name="clipboard")
    messages = [Message("system", "s"), Message("user", ["a\u2028", image, "b"]), Message("assistant", "c")]
    write_conversation(album / "kept.json", messages)
    assert read_conversation(album / "kept.json") == messages
    assert turns_from(turns_of(messages, whole=False), "log") == messages
    write_conversation(album / "kept.json", messages[:1])
    (album / "notes").write_text("mine")
    with pytest.raises(UsageError, match="is no conversation; name another file"):
        write_conversation(album / "notes", messages)
    for text in ("", "[]", '{"turns": 3}', '{"turns": [{"role": "user"}]}', '{"turns": [1]}'):
        (album / "odd.json").write_text(text)
        with pytest.raises(UsageError, match="no conversation that trifocal wrote"):
            read_conversation(album / "odd.json")


@pytest.mark.usefixtures("echo")
def test_answers_are_written_down_and_gone_on_with(album: Path) -> None:
    run(ask, "red.png", "what is it?")
    run(ask, "-", "from a pipe?", stdin=(album / "blue.png").read_bytes())
    run(ask, "-q", "not kept", "--no-log")
    listed = run(log).stdout.splitlines()
    assert ["from a pipe?" in listed[0], "what is it? [red.png]" in listed[1], len(listed)] == [True, True, 2]
    assert "user: [red.png]" in run(log, "1").stdout.replace(str(album) + "/", "")
    assert json.loads(run(log, "--json", "--search", "WHAT IS").stdout)["pictures"] == ["red.png"]
    gone_on = run(ask, "Colour?", "-c", "1").stdout
    assert "[picture: 16" in gone_on
    assert "what is it?" in gone_on
    assert "from a pipe?" in run(ask, "And this?", "-c", "2").stdout
    run(chat, "-c", "last", stdin="a\nb\n")
    assert len(run(log).stdout.splitlines()) == 4
    (album / "red.png").write_bytes((album / "blue.png").read_bytes())
    for words, error, match in [
        (["x?", "-c", "1"], BadImage, "another picture now"),
        (["x?", "-c", "99"], UsageError, "no entry 99"),
        (["x?", "-c", "first"], UsageError, "no entry of the log"),
    ]:
        with pytest.raises(error, match=match):
            run(ask, *words)
    mode = stat.S_IMODE((album / "data" / "trifocal" / "log.db").stat().st_mode)
    assert mode == 0o600
    assert "1 taken out" in run(log, "1", "--remove").stdout
    assert "3 taken out" in run(log, "--clear").stdout
    assert b"what is it?" not in (album / "data" / "trifocal" / "log.db").read_bytes()


@pytest.mark.usefixtures("echo")
def test_a_log_that_can_not_be_written_costs_no_answer(album: Path) -> None:
    (album / "broken.db").write_bytes(b"no database at all" * 100)
    (album / "file").write_text("")
    for place in ("broken.db", "file/log.db"):
        shown = run(ask, "red.png", "what?", "--log-file", place)
        assert "[picture: 16" in shown.stdout
        assert "not written down: the log" in shown.stderr


def test_one_setting_switches_it_off(album: Path, echo: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIFOCAL_LOG")
    (album / "trifocal.toml").write_text("log = false\n")
    run(ask, "red.png", "what?")
    run(chat, stdin="hello\n")
    assert not (album / "data").exists()
    assert not (album / "state").exists()


def test_two_processes_write_one_log(tmp_path: Path) -> None:
    logs = [Log(tmp_path / "log.db"), Log(tmp_path / "log.db")]
    messages = [Message("user", "q"), Message("assistant", "\ud800")]
    assert [each.put("m", messages) for each in logs * 3] == [1, 2, 3, 4, 5, 6]
    assert logs[0].put("m", messages, 3) == 3
    assert len(logs[1].last(10)) == 6


def test_a_checkpoint_is_taken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for owner in ("one", "two"):
        home = tmp_path / f"models--{owner}--model"
        (home / "blobs").mkdir(parents=True)
        (home / "blobs" / "aa").write_bytes(bytes(1000))
        (home / "snapshots" / ("a" * 40)).mkdir(parents=True)
        (home / "snapshots" / ("a" * 40) / "config.json").symlink_to("../../blobs/aa")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("a" * 40)
    with pytest.raises(UsageError, match="say --yes"):
        run(remove_held, "one/model")
    with pytest.raises(UsageError, match="did you mean one/model"):
        run(remove_held, "two/model", "one/modell", "--yes")
    assert "one/model: 0.0 MB freed" in run(remove_held, "one/model", "--yes").stdout
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == ["models--two--model"]


def test_in_a_terminal(album: Path, echo: dict[str, str]) -> None:
    """Typed into a real one: history between sessions, no colours where none are wanted."""

    def session(keys: list[bytes], **values: str) -> bytes:
        main, other = pty.openpty()
        env = environment(**echo, TERM="xterm", **values)
        command = [sys.executable, "-m", "trifocal", "chat"]
        process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=env)
        os.close(other)
        seen = b""
        for key in keys:
            start = len(seen)
            while b"> " not in seen[start:].rsplit(b"\n", 1)[-1]:
                seen += os.read(main, 4096)
            os.write(main, key)
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(main)
        assert process.wait(PATIENCE) == 0, seen
        return seen

    seen = session(
        [b"/image Tom's cat.png\n", b"/nonsense\n", b"/load none\n", b"remembered words\n", b"\x04"], NO_COLOR="1"
    )
    assert b"Tom's cat.png: 60 x 40" in seen
    assert b"error: none:" in seen
    assert b"\x1b[31m" not in seen
    seen = session([b"\x1b[A\n", b"/load none\n", b"\x04"])
    assert seen.count(b"remembered words") >= 2
    assert b"\x1b[31m" in seen
    assert stat.S_IMODE((album / "state" / "trifocal" / "history").stat().st_mode) == 0o600
