"""Every command that returns a code, in a process of its own: what a script sees of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from processes import trifocal


def test_a_check_with_open_todos_leaves_with_1(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    for name in ("server.py", "modules/extensions.py"):
        (tmp_path / name).write_text("")
    done = trifocal("extension", "check", "--webui", str(tmp_path))
    assert b"todo" in done.stdout
    assert done.returncode == 1


def test_captions_that_were_refused_leave_with_1(tmp_path: Path) -> None:
    done = trifocal("caption", str(tmp_path))
    assert done.returncode == 0
    (tmp_path / "broken.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert trifocal("caption", str(tmp_path)).returncode == 0
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = trifocal("caption", str(tmp_path), "--out", str(tmp_path / "out.csv"))
    assert b"0 captions written, 0 were there, 1 file refused" in done.stdout
    assert b"refused: " in done.stderr
    assert done.returncode == 1


def test_nothing_to_take_off_and_nothing_to_remove(tmp_path: Path) -> None:
    assert trifocal("rm", "nobody/nothing", "--yes").returncode == 2
    assert trifocal("log", "1", XDG_DATA_HOME=str(tmp_path)).returncode == 2
    assert trifocal("log", XDG_DATA_HOME=str(tmp_path)).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ask red.png what? -e kv=fp8 --engine native", b"kv=fp8: the engine native expects exact or int8"),
        ("ask red.png what? -m nonsense", b"'nonsense' is no file or folder here and no hub id"),
        ("chat --tower toaster", b"unknown device or dtype 'toaster'"),
        ("chat --url-host https://a.example/", b"a host's name alone was expected"),
        ("caption . --engine nonsense", b"unknown engine 'nonsense'"),
        ("bench --json none/bench.json", b"there is no folder none"),
        ("deploy --write none/serve.yaml", b"there is no folder none"),
        ("deploy --write .", b"this is a folder"),
        ("deploy --write serve.yaml --engine native -e threads=many", b"threads=many: the engine native expects"),
        ("serve --memory nan", b"'nan' is no number that can be counted with"),
        ("serve --deadline nan", b"deadline: nan is not above 0"),
        ("log -n 99999999999999999999", b"is not in the range"),
    ],
)
def test_a_wrong_value_of_an_option_leaves_with_2(words: str, said: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    done = trifocal(*words.split(), folder=tmp_path, XDG_DATA_HOME=str(tmp_path))
    assert said in done.stderr
    assert done.returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"red.png"}


@pytest.mark.parametrize("words", ["--template warp", "-m nowhere", "--engine warp"])
def test_a_wrong_name_is_told_without_torch(words: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    imports = ("-X", "importtime")
    done = trifocal("ask", "red.png", "what?", *words.split(), folder=tmp_path, python=imports)
    assert done.returncode == 2
    assert b"torch" not in done.stderr
    assert b"trifocal.model.finding" in done.stderr  # imports are told
