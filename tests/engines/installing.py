"""Engines of other packages, where Python finds installed ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["installed"]


@contextmanager
def installed(site: Path, engine: str, module: Path) -> Iterator[None]:
    """A package whose one module is that file, and its engine of that name, for as long as the block lasts."""
    package = f"{engine}_engine"
    (site / f"{package}.py").write_text(module.read_text("utf-8"))
    facts = site / f"{package}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[trifocal.engines]\n{engine} = {package}:load\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield
    sys.modules.pop(package, None)
