"""The modules that guard the server, each with one thing about it changed: nearly every change is noticed by a test.

What is not run at all is not noticed either. A sample is tried in every run, everything at full size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mutants
from waiting import PATIENCE, until

HERE = Path(__file__).parent
FULL = os.environ.get("TRIFOCAL_FULL") == "1"
LEAST = 0.5  # of all mutants, of which a quarter change nothing that can be seen, or only how fast it is
MODULES = {
    "encoded": "test_encoded.py",
    "images": "test_images.py test_encoded.py",
    "conversation.markup": "conversation/test_markup.py",
    "api.strict_json": "api/test_strict_json.py",
    "api.fetch": "api/test_fetch.py",
    "api.guard": "api/test_doors.py api/test_bounds.py",
    "api.errors": "api/test_bounds.py api/test_doors.py api/test_openai.py",
}


def noticed(module: str, *tests: Path, share: int = 1, path: Path | None = None) -> float:
    """The share of a module's mutants that its tests notice; told, which they do not."""
    command = [sys.executable, mutants.__file__, module, *map(str, tests), "--share", str(share)]
    places = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, *sys.path])}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=HERE.parent)
    assert not ended.returncode, ended.stdout[-2000:] + ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    print(f"{module}: {len(found['missed'])} of {found['tried']} live: {'; '.join(found['missed'])}")
    assert found["tried"]
    return 1 - len(found["missed"]) / found["tried"]


@pytest.mark.parametrize("module", MODULES if FULL else ["encoded"])
def test_nearly_every_change_of_a_guard_is_noticed(module: str) -> None:
    tests = [HERE / each for each in MODULES[module].split()]
    assert noticed(f"trifocal.{module}", *tests, share=1 if FULL else 24) >= LEAST


GUARD = """
def opened(key, keys):
    if key not in keys:
        raise ValueError("no such key")
    return key == keys[0]
"""
TRIED = """
import pytest
from guard_of_a_test import opened

def test_it(tmp_path):
    assert opened("a", ["a", "b"]) is True
    assert opened("b", ["a", "b"]) is False
    with pytest.raises(ValueError):
        opened("c", ["a"])
"""
IDLE = """
from contextlib import suppress
from guard_of_a_test import opened

def test_it():
    for key in "abc":
        with suppress(Exception):
            opened(key, ["a", "b"])
"""


def test_its_twin_whose_tests_assert_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a module is run, and nothing of what it does is looked at. No fork leaves a folder of its own behind."""
    (left := tmp_path / "left").mkdir()
    monkeypatch.setenv("TMPDIR", str(left))
    (tmp_path / "guard_of_a_test.py").write_text(GUARD)
    shares = []
    for name, text in (("test_tried.py", TRIED), ("test_idle.py", IDLE)):
        (tmp_path / name).write_text(text)
        shares.append(noticed("guard_of_a_test", tmp_path / name, path=tmp_path))
    assert shares == [1, 0]
    assert list(left.iterdir()) == []


def test_nothing_that_a_mutant_started_outlives_it() -> None:
    started = "subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid"
    program = f"import subprocess, mutants; print(mutants._forked(lambda: {started}, 60))"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HERE, timeout=PATIENCE
    )
    until(lambda: not _runs(int(told.stdout)), "its end")


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
