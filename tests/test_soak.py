"""What ten minutes of load are judged by: benchmarks/soak.py finds what grows, and nothing where nothing does."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

import pytest

SOAK: dict[str, Any] = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "soak.py"))


def samples(**growth: float) -> list[Any]:
    """Ten minutes of a server at 1,300 MB that trembles by a few, and grows by so much a minute."""
    dice = random.Random(3)
    rates = {"memory": 0.0, "files": 0.0, "threads": 0.0, **growth}
    return [
        SOAK["Sample"](
            at,
            1300 + dice.gauss(0, 3) + rates["memory"] * at / 60,
            int(40 + rates["files"] * at / 60),
            int(12 + rates["threads"] * at / 60),
        )
        for at in range(0, 600, 2)
    ]


def test_what_stays_where_it_is_passes() -> None:
    assert SOAK["growing"](SOAK["counted"](samples(), 10)) == []


@pytest.mark.parametrize(("what", "a_minute"), [("memory", 2.0), ("files", 0.5), ("threads", 0.5)])
def test_its_twins_that_grow_are_found(what: str, a_minute: float) -> None:
    assert SOAK["growing"](SOAK["counted"](samples(**{what: a_minute}), 10)) == [what]
