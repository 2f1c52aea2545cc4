"""The locks: everything has hashes and a licence that is permitted, and the bill of materials has everything."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ("torch", "run", "test")


@pytest.fixture(scope="module")
def supply() -> Any:
    return module("supply")


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def test_every_locked_package_has_hashes_and_a_permitted_licence(supply: Any) -> None:
    packages = supply.locked(*LOCKS)
    assert len(packages) > 80
    assert [each.name for each in packages if not each.hashes] == []
    assert supply.refused(packages) == []


def test_its_twins_are_found(supply: Any) -> None:
    assert not supply.permitted("GPL-3.0-only")
    assert not supply.permitted("MIT AND GPL-3.0-only")
    assert not supply.permitted("")
    assert supply.permitted("GPL-3.0-only OR MIT")
    assert supply.refused([supply.Package("nobody-has-this", "1", ())]) == ["nobody-has-this: no licence"]


def test_the_bill_names_all_that_is_installed_to_run(supply: Any) -> None:
    bill = supply.bill(supply.locked("torch", "run"))
    lines = [line for name in ("torch", "run") for line in (ROOT / f"requirements/{name}.lock").read_text().split("\n")]
    heads = [line.split(" ")[0] for line in lines if re.match(r"[a-zA-Z]", line)]
    assert sorted(each["purl"].removeprefix("pkg:pypi/").replace("@", "==") for each in bill["components"]) == sorted(
        set(heads)
    )
    assert all(each["licenses"][0]["expression"] for each in bill["components"])


def test_no_lock_has_what_a_card_needs() -> None:
    lock = module("lock")
    sample = "a==1 \\\n    --hash=1\nnvidia-x==2 \\\n    --hash=2\nb==3 \\\n    --hash=3\n"
    assert lock.without(sample, lock.CUDA) == "a==1 \\\n    --hash=1\nb==3 \\\n    --hash=3\n"
    for name in ("run", "test"):
        text = (ROOT / f"requirements/{name}.lock").read_text()
        assert lock.without(text, lock.CUDA) == text


def test_the_locks_know_other_systems() -> None:
    text = (ROOT / "requirements/run.lock").read_text()
    assert "sys_platform == 'win32'" in text
    numpy = text[text.index("\nnumpy==") :]
    assert numpy[: numpy.index("\nopentelemetry")].count("--hash") > 20  # the wheels of all systems and Pythons
