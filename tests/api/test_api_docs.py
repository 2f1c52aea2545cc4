from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_docs import PAGE, current
from live import Live, png, running

import trifocal
from trifocal.api.serving import Server
from waiting import PATIENCE

TEXT = PAGE.read_text("utf-8")
EXAMPLES = re.findall(r"<!-- example: (\w+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def thimble() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava) as live:
        yield live


def test_the_page_says_what_the_app_has() -> None:
    assert current(TEXT) == TEXT, "run: python tests/api/api_docs.py"


@pytest.mark.parametrize("at", range(len(EXAMPLES)))
def test_the_examples_get_a_true_answer(thimble: Live, tmp_path: Path, at: int) -> None:
    """Run as they stand, but for the port."""
    kind, code = EXAMPLES[at]
    (tmp_path / "picture.png").write_bytes(png("red", (64, 64)))
    (tmp_path / "picture.jpg").write_bytes(png("red", (64, 64), "JPEG"))
    file = tmp_path / {"curl": "example.sh", "python": "example.py", "javascript": "example.mjs"}[kind]
    file.write_text(code.replace(":5000", f":{thimble.port}"))
    program = {"curl": "sh", "python": sys.executable, "javascript": "node"}[kind]
    environment = {**os.environ, "NO_PROXY": "*"}
    shown = subprocess.run(
        [program, str(file)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert shown.returncode == 0, shown.stderr
    assert "red" in shown.stdout


def test_there_is_an_example_of_each_kind() -> None:
    assert {kind for kind, _ in EXAMPLES} == {"curl", "python", "javascript"}


def test_every_code_that_is_used_is_on_the_page() -> None:
    folder = Path(sys.modules[Server.__module__].__file__ or "").parent
    source = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    used = set(re.findall(r'(?:refuse|server_busy|Refusal)\(\s*(?:\d+,\s*)?"([a-z_]+)"', source))
    assert len(used) > 15
    assert used <= set(re.findall(r"`([a-z_]+)`", TEXT))
