"""What the pages say is so: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trifocal.cli import COMMANDS
from trifocal.conversation.templates import ALIASES, TEMPLATES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "training").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if not target.startswith(("http", "#", "data:", "/")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    for line in re.findall(r"^(?:\$ )?trifocal (.+)$", page.read_text("utf-8"), re.MULTILINE):
        word = shlex.split(line.split("#")[0].rstrip("\\ "))[0]
        assert word in COMMANDS or word.startswith("-"), f"{page.name} shows: trifocal {line}"


def test_the_make_targets_that_are_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"^make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} shows: make {target}"


def test_the_readmes_program_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (program,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out == "The dog is in the bottom right."


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text("utf-8").split("## The tree")[1]
    for name in re.findall(r"([a-z_]+(?:\.py|/))", text):
        found = [ROOT / name, ROOT / "src" / "trifocal" / name, ROOT / "src" / name]
        assert name in ("src/", "trifocal/") or any(path.exists() for path in found), name


def test_every_template_that_a_page_names_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`(llava_v\w+|chatml_\w+|mistral_\w+|qwen_\w+)`", page.read_text("utf-8")):
            assert name in TEMPLATES or name in ALIASES, f"{page.name} names the template {name}"


def test_every_template_is_on_its_page() -> None:
    page = (ROOT / "docs" / "templates.md").read_text("utf-8")
    assert {name for name in (*TEMPLATES, *ALIASES) if f"`{name}`" not in page} == set()


def test_nothing_speaks_of_where_it_was_made() -> None:
    words = ("/work" + "/", "sub" + "agent", "../" + "shared")
    for path in [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text("utf-8")
        assert not any(word in text for word in words), path


def promises() -> list[list[str]]:
    """The rows of the table of docs/security.md: number, property, what was reached, tests, twins."""
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in re.findall(r"^\| (T-.+) \|$", text, re.M)]


def test_every_promise_is_in_the_table_once() -> None:
    assert [row[0] for row in promises()] == [f"T-{at:02}" for at in range(1, 41)]


@pytest.mark.parametrize("row", promises(), ids=lambda row: row[0])
def test_every_promise_has_a_test_and_a_twin_that_fails(row: list[str]) -> None:
    _, _, _, tests, twins = row
    if tests.startswith("none: "):
        assert twins == "none"
        return
    safety = (ROOT / "Makefile").read_text("utf-8").partition("SAFETY = ")[2].partition("\n\n")[0]
    for file in re.findall(r"`([\w/]+\.py)`", tests):
        assert (ROOT / file if "/" in file and (ROOT / file).exists() else ROOT / "tests" / file).exists(), file
        where = re.sub(r"^api/test_", "", file)
        assert where in safety or file in ("web/test_page_browser.py", "benchmarks/soak.py"), (
            f"make test-safety: {file}"
        )
    found = re.findall(r"`([\w/]+\.py)::(\w+)`", twins)
    assert found
    for file, name in found:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{name}"
