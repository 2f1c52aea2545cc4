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
