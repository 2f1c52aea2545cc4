"""Mutants: one condition, comparison, refusal or answer of a module changed, at which one of its tests must fail.

Run as a program with a module and its tests, it collects these once, sees which of them call which function, and tries
every mutant in a fork of its own: the changed code takes the place of the old in every function that is there, whoever
imported it. What is written on the last line is how many there were, and where those are that no test noticed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

WHOLE = 300  # seconds of work for all tests as they are; many a mutant never ends and has three times what they took
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
Key = tuple[str, int]  # a function's name, and its first line


@dataclass(frozen=True)
class Mutant:
    """One change: in which function of a module, on which line, to what, and the module as it is then."""

    function: Key
    line: int
    told: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.function[0]}:{self.line}: {self.told}"


def mutants(source: str) -> Iterator[Mutant]:
    """All of a module's functions; what a module does when it is imported is not changed."""
    tree = ast.parse(source)
    for function, path in _functions(tree, ""):
        nodes = [each for part in function.body for each in ast.walk(part)]
        for at, node in enumerate(nodes):
            for way, told in _ways(node):
                changed = copy.deepcopy(tree)
                twin = next(each for each, name in _functions(changed, "") if name == path and _same(each, function))
                way([each for part in twin.body for each in ast.walk(part)][at])
                key = (path, min([function.lineno, *(each.lineno for each in function.decorator_list)]))
                yield Mutant(key, node.lineno, told, ast.fix_missing_locations(changed))  # type: ignore[attr-defined]


def _same(one: ast.FunctionDef, other: ast.FunctionDef) -> bool:
    return one.lineno == other.lineno


def _functions(within: ast.AST, path: str) -> Iterator[tuple[ast.FunctionDef, str]]:
    """The outermost functions and methods, with their qualified names."""
    for node in ast.iter_child_nodes(within):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{path}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, path + node.name  # type: ignore[misc]
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _functions(node, path)


def _ways(node: Any) -> Iterator[tuple[Callable[[Any], None], str]]:
    """What can be changed about it, and in words."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        text = ast.unparse(node.test)
        if not isinstance(node, ast.While):  # one that never ends is noticed by anything
            yield (lambda twin: _put(twin, "test", ast.Constant(True))), f"always: {text}"
        yield (lambda twin: _put(twin, "test", ast.Constant(False))), f"never: {text}"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = OTHER[type(node.ops[0])]
        yield (lambda twin: _put(twin, "ops", [other()])), f"{other.__name__}: {ast.unparse(node)}"
    elif isinstance(node, ast.BoolOp):
        joined = OTHER[type(node.op)]
        yield (lambda twin: _put(twin, "op", joined())), f"{joined.__name__}: {ast.unparse(node)}"
    elif isinstance(node, ast.Raise):
        yield _passed, f"not raised: {ast.unparse(node)}"
    elif isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
        yield (lambda twin: _put(twin, "value", ast.Constant(None))), f"nothing for: {ast.unparse(node.value)}"


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _put(node: Any, field: str, value: Any) -> None:
    old = getattr(node, field)
    for each in value if isinstance(value, list) else [value]:
        if isinstance(old, ast.AST) and hasattr(old, "lineno"):
            ast.copy_location(each, old)
    setattr(node, field, value)


def _passed(node: ast.Raise) -> None:
    """The statement becomes one that does nothing."""
    node.__class__ = ast.Expr  # type: ignore[assignment]
    node.value = ast.copy_location(ast.Constant(None), node)  # type: ignore[attr-defined]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _key(code: CodeType) -> Key:
    return code.co_qualname.partition(".<locals>")[0], code.co_firstlineno


def changes(mutant: Mutant, file: str) -> tuple[CodeType, list[FunctionType]]:
    """The changed code, and every function that has the old."""
    code = compile(mutant.tree, file, "exec", dont_inherit=True)
    changed = next(each for each in _codes(code) if _is(each, mutant.function))
    living = [each for each in gc.get_objects() if type(each) is FunctionType and each.__code__.co_filename == file]
    found = [each for each in living if _is(each.__code__, mutant.function)]
    assert found, f"no function {mutant.function} of {file}"
    assert all(each.__code__.co_freevars == changed.co_freevars for each in found), mutant
    return changed, found


def _is(code: CodeType, key: Key) -> bool:
    return _key(code) == key and "<locals>" not in code.co_qualname


class Trying:
    """Takes the place of pytest's own loop over the tests that it collected."""

    def __init__(self, file: str, share: int) -> None:
        self.file, self.share = file, share
        self.tried, self.missed = 0, []  # type: int, list[str]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.unfreeze()  # frozen objects are not found
        watched = _forked(lambda: self._watched(session.items), WHOLE)
        assert watched, "the tests do not pass as they are"
        calls, seconds = watched
        for at, mutant in enumerate(mutants(Path(self.file).read_text("utf-8"))):
            if at % self.share == 0:
                self.tried += 1
                tests = [session.items[number] for number, called in calls if mutant.function[0] in called]
                if not tests or self._lives(mutant, tests, 5 + int(3 * seconds)):
                    self.missed.append(str(mutant) if tests else f"{mutant} (no test calls it)")
        return True

    def _lives(self, mutant: Mutant, tests: list[pytest.Item], seconds: int) -> bool:
        """Whether no test notices."""
        changed, functions = changes(mutant, self.file)

        def lived() -> bool:
            for each in functions:
                each.__code__ = changed
            return all(_run(item) for item in tests)

        return _forked(lived, seconds) is True

    def _watched(self, items: list[pytest.Item]) -> tuple[list[tuple[int, set[str]]], float] | None:
        """For each test, the quickest first, which functions it calls, and the work of all; nothing where one fails."""
        called: set[str] = set()

        def watch(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == self.file:
                called.add(frame.f_code.co_qualname.partition(".<locals>")[0])

        threading.setprofile(watch)
        sys.setprofile(watch)
        told = []
        for at, item in enumerate(items):
            called.clear()
            begun = time.perf_counter()
            _run(item)
            told.append((time.perf_counter() - begun, at, set(called)))
            if item.session.testsfailed:
                return None
        return [(at, names) for _, at, names in sorted(told, key=lambda each: each[:2])], time.process_time()


def _run(item: pytest.Item) -> bool:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return not item.session.testsfailed


def _forked(work: Callable[[], Any], seconds: int) -> Any:
    """What it gives in a process of its own, or nothing where that ended otherwise, or not in time."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(10 * seconds)
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        try:
            os.write(writing, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started and could not end any more
    os.waitpid(child, 0)
    return pickle.loads(said) if said else None


def _main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("module")
    asked.add_argument("tests", nargs="+")
    asked.add_argument("--share", type=int, default=1, help="one in so many")
    options = asked.parse_args()
    file = importlib.import_module(options.module).__file__
    assert file
    trying = Trying(file, options.share)
    with tempfile.TemporaryDirectory() as folder:  # forks that are killed tidy nothing up
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        given = ["-p", "no:xdist", "-p", "no:cacheprovider", "--no-summary", f"--basetemp={folder}/tests"]
        code = pytest.main([*options.tests, *given], plugins=[trying])
    print(json.dumps({"module": options.module, "tried": trying.tried, "missed": trying.missed}))
    return int(code)


if __name__ == "__main__":
    sys.exit(_main())
