"""What may stand nowhere in the package, or in one named place alone (T-37)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "trifocal"
CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "os.system", "os.popen", "torch.load"}
MODULES = {"pickle", "marshal", "dill", "shelve", "urllib3", "requests"}
ALLOWED = {  # where one of them stands all the same, and is held to its terms there
    ("weights/pickles.py", "torch.load"): "weights_only=True, behind --allow-pickle",
}


def offences(tree: ast.AST) -> Iterator[str]:
    """What a module does that is banned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if (node.module or "").partition(".")[0] in MODULES and node.module else []
        elif isinstance(node, ast.Call):
            yield from _call(ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords})


def _call(name: str, given: dict[str | None, str]) -> Iterator[str]:
    if name in CALLS and not (name == "torch.load" and given.get("weights_only") != "True"):
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only"
    if given.get("shell") == "True":
        yield "shell=True"
    if given.get("verify") == "False":
        yield "verify=False"
    if given.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if name.endswith("b64decode") and given.get("validate") != "True":
        yield "base64 that drops letters"
    if name in ("Image.open", "Pictures.open") and "formats" not in given:
        yield "pictures of any format"


def test_the_package_does_nothing_that_is_banned() -> None:
    found = [
        (str(file.relative_to(SOURCE)), offence)
        for file in SOURCE.rglob("*.py")
        for offence in offences(ast.parse(file.read_text()))
    ]
    assert sorted(set(found) - set(ALLOWED)) == []
    assert set(ALLOWED) <= set(found)


TWINS = [
    "import pickle",
    "from marshal import loads",
    "eval(text)",
    "torch.load(file)",
    "torch.load(file, weights_only=False)",
    "subprocess.run(command, shell=True)",
    "httpx.get(url, verify=False)",
    "base64.b64decode(text)",
    "Image.open(file)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
]


@pytest.mark.parametrize("text", TWINS)
def test_its_twins_are_found(text: str) -> None:
    assert list(offences(ast.parse(text)))


TESTS = Path(__file__).parent
CLOCKS = {"monotonic", "perf_counter", "sleep", "select"}  # by which every event loop and thread of the process goes


def shared_clocks(tree: ast.AST) -> Iterator[str]:
    """Where a test replaces what tells the time to all threads, and not the name that one module of ours has for it.

    The loop of a server that tests share looks at it in that very moment, finds years until its next turn, and sleeps.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr") and node.args:
            first, second = node.args[0], node.args[1] if len(node.args) > 1 else node.args[0]
            owner, _, name = (
                first.value.rpartition(".")
                if isinstance(first, ast.Constant) and isinstance(first.value, str)
                else (ast.unparse(first), ".", second.value if isinstance(second, ast.Constant) else "")
            )
            if owner.rpartition(".")[2] in ("time", "asyncio", "selectors") and name in CLOCKS:
                yield ast.unparse(node)


def test_no_test_replaces_a_clock_that_all_threads_share() -> None:
    files = list(TESTS.rglob("*.py"))
    assert [(file.name, each) for file in files for each in shared_clocks(ast.parse(file.read_text()))] == []


@pytest.mark.parametrize(
    "text",
    [
        'monkeypatch.setattr("trifocal.engines.roster.time.monotonic", lambda: 0)',
        'monkeypatch.setattr(time, "monotonic", lambda: 0)',
        'patch.setattr(echo.time, "sleep", waited.append)',
        'patch.setattr("time.perf_counter", lambda: 0)',
    ],
)
def test_its_twins_are_found_too(text: str) -> None:
    assert list(shared_clocks(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        'monkeypatch.setattr("trifocal.api.fetch.monotonic", lambda: 0)',
        'monkeypatch.setattr("trifocal.engines.roster.time", own)',
        'patch.setattr(time, "time", lambda: 0)',  # the clock on the wall, by which no loop goes
    ],
)
def test_a_name_of_ones_own_is_no_shared_clock(text: str) -> None:
    assert not list(shared_clocks(ast.parse(text)))
