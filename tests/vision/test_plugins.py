"""Plug-ins as their page shows them, installed as packages with entry points are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import trifocal
from seeing import rows_of
from trifocal.checkpoints import find_checkpoint
from trifocal.cli import cli
from trifocal.errors import MissingExtra, UnknownName, UsageError
from trifocal.images import Image
from trifocal.vision.plugged import plugged_names

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
Install = Callable[..., None]
Drawn = Callable[..., Image]


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a module with an entry point where Python finds installed packages."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    made: list[str] = []

    def put(module: str, code: str, group: str, name: str) -> None:
        (site / f"{module}.py").write_text(code)
        facts = site / f"{module}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:load\n")
        made.append(module)

    yield put
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def vicuna(hf15: Path, tmp_path: Path) -> Path:
    """A language model that is no LLaVA."""
    from trifocal.tools.convert import split

    split(find_checkpoint(str(hf15)), tmp_path / "parts")
    return tmp_path / "parts" / "language"


def test_the_vision_of_the_page_is_ten_lines_and_works(install: Install, vicuna: Path, drawn: Drawn) -> None:
    code = example("vision")
    body = code[code.index("class") : code.index("def load")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10
    install("mean_colour", code, "trifocal.visions", "mean-colour")
    assert "mean-colour" in plugged_names()
    with trifocal.load(checkpoint=str(vicuna), vision="mean-colour") as llava:
        one, other = drawn(1), drawn(2)
        reply = llava.complete([llava.question("Which colour?", [one, other])], trifocal.Sampling(max_tokens=3))
        assert reply.end.positions == (1, 1)
        assert llava.gallery.knows(*llava.gallery.looks([one]))
        first, second = rows_of(llava.gallery.vision, [one, other])
        assert first.shape == (1, llava.engine.hidden)
        assert not first.equal(second)


def test_it_is_asked_from_the_command_line(install: Install, vicuna: Path, tmp_path: Path, drawn: Drawn) -> None:
    install("mean_colour", example("vision"), "trifocal.visions", "mean-colour")
    picture = tmp_path / "picture.png"
    drawn(1).pixels.save(picture)
    asked = ["ask", str(picture), "What?", "-m", str(vicuna), "--vision", "mean-colour", "--max-tokens", "3"]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output


def test_a_vision_that_nobody_offers_is_told_with_those_there_are(install: Install, vicuna: Path) -> None:
    install("mean_colour", example("vision"), "trifocal.visions", "mean-colour")
    with pytest.raises(UnknownName, match="mean-colour"):
        trifocal.load(checkpoint=str(vicuna), vision="q-former")
    with pytest.raises(UnknownName, match="mean-colour"):
        trifocal.load(vision="q-former")  # whatever the checkpoint is
    result = CliRunner().invoke(cli, ["inspect", "thimble", "--vision", "q-former"])
    assert isinstance(result.exception, UnknownName)


def test_what_a_package_lacks_or_gets_wrong_is_told(install: Install, vicuna: Path, drawn: Drawn) -> None:
    install("lacking", "import lavis_that_is_not_here\ndef load(c, p): ...\n", "trifocal.visions", "lacking")
    with pytest.raises(MissingExtra, match="lavis_that_is_not_here"):
        trifocal.load(checkpoint=str(vicuna), vision="lacking")
    install("empty", "def load(checkpoint, placement):\n    return object()\n", "trifocal.visions", "empty")
    with pytest.raises(UsageError, match="has no hidden, identity"):
        trifocal.load(checkpoint=str(vicuna), vision="empty")
    wrong = example("vision").replace("return 1\n", "return 2\n")
    install("wrong", wrong, "trifocal.visions", "wrong")
    with (
        trifocal.load(checkpoint=str(vicuna), vision="wrong") as llava,
        pytest.raises(UsageError, match=r"made rows of \[1, 64\], \[2, 64\] were promised"),
    ):
        llava.complete([llava.question("What?", [drawn(1)])])


def test_the_engine_of_the_page(install: Install, drawn: Drawn) -> None:
    install("ruler", example("engine"), "trifocal.engines", "ruler")
    with trifocal.load(engine="ruler") as llava:
        messages = [llava.question("How long?", [drawn(1)])]
        assert llava.complete(messages).text == f"{llava.count(messages)} positions"
