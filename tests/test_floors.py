"""The plan of the house: imports run down, there is no circle, and `import trifocal` stays cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import trifocal
from floors import PAGE, SOURCE, floor, table
from long_files import LONG, TESTS
from waiting import PATIENCE


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def modules() -> dict[str, Path]:
    paths = (path for path in SOURCE.rglob("*.py") if "thimble" not in path.parts and path.name != "script.py")
    return {module_name(path): path for path in paths if module_name(path)}


@cache
def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, late and type-only imports included."""
    found: set[str] = set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trifocal":
            base = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                found.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("trifocal").strip(".") for alias in node.names if "trifocal" in alias.name
            }
    return {name for name in found if name}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_down(name: str) -> None:
    for other in imports(modules()[name]):
        if room(other) != room(name):
            assert floor(other) < floor(name), f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"


def test_there_is_no_circle() -> None:
    graph = {name: imports(path) - {name} for name, path in modules().items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_the_plan_is_drawn_as_it_is() -> None:
    assert table() in PAGE.read_text("utf-8"), "draw it anew: python tests/floors.py"


def test_engines_know_neither_vision_nor_checkpoints() -> None:
    for name, path in modules().items():
        if name.split(".")[0] == "engines":
            allowed = {"errors", "files", "messages", "placement", "prompt", "quiet", "source", "timing", "tokens"}
            allowed |= {"cancelling", "cuda", "engines", "gguf", "peer", "weights"}
            assert {room(other) for other in imports(path)} <= allowed, name


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_a_module_exports_is_there_and_sorted(name: str) -> None:
    if name == "__main__":
        return
    module = importlib.import_module(f"trifocal.{name}")
    exported = getattr(module, "__all__", None)
    if exported is None:
        assert name == "__main__", f"{name} has no __all__"
        return
    assert all(hasattr(module, public) for public in exported)
    assert module.__doc__, f"{name} does not say what it owns"


def test_the_public_names_are_those_of_the_front_door() -> None:
    assert all(getattr(trifocal, name) is not None for name in trifocal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trifocal.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "PIL", "numpy", "click", "rich", "fastapi"]
    program = f"import sys, trifocal; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert shown.stdout.strip() == "[]"


def test_loading_the_bundled_model_imports_neither_transformers_nor_a_compiler() -> None:
    program = (
        "import sys, trifocal; trifocal.load().close()\n"
        "print([name for name in ('transformers', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert shown.stdout.strip() == "[]"


def test_the_help_imports_no_model() -> None:
    program = (
        "import sys; sys.argv = ['trifocal', '--help']\n"
        "from trifocal.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert shown.stdout.strip().endswith("[]")


def test_the_files_that_workers_take_first_are_there() -> None:
    assert len(set(LONG)) == len(LONG)
    assert [name for name in LONG if not (TESTS / name).is_file()] == []
