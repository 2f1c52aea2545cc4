"""Every command that returns a code, in a process of its own: what a script sees of it."""

from __future__ import annotations

from pathlib import Path

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
    assert b"0 captions written, 0 were there, 1 files refused" in done.stdout
    assert b"refused: " in done.stderr
    assert done.returncode == 1


def test_nothing_to_take_off_and_nothing_to_remove(tmp_path: Path) -> None:
    assert trifocal("rm", "nobody/nothing", "--yes").returncode == 2
    assert trifocal("log", "1", XDG_DATA_HOME=str(tmp_path)).returncode == 2
    assert trifocal("log", XDG_DATA_HOME=str(tmp_path)).returncode == 0
