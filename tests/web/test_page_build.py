"""The page in the package is the one that its sources make."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE, STATIC = ROOT / "page", ROOT / "src" / "trifocal" / "web" / "static"


def test_it_was_built_from_these_sources() -> None:
    digest = hashlib.sha256()
    for file in [*sorted((PAGE / "src").iterdir()), PAGE / "package-lock.json", PAGE / "build.mjs"]:
        digest.update(f"{file.relative_to(PAGE).as_posix()}\n".encode() + file.read_bytes())
    built = (STATIC / "BUILD.txt").read_text("utf-8").strip()
    assert built == digest.hexdigest(), "the page's sources changed: run 'make page' and commit what it built"


def test_it_asks_for_nothing_from_elsewhere() -> None:
    index = (STATIC / "index.html").read_text("utf-8")
    assert re.findall(r"(?:src|href)=\"([^\"]+)\"", index) == ["/page/icon.svg", "/page/app.css", "/page/main.js"]
    assert "style=" not in index
    assert "url(" not in (STATIC / "app.css").read_text("utf-8")
    loads = re.findall(r"(?:fetch|import|Worker)\(\s*[\"'`](https?:[^\"'`]+)", (STATIC / "main.js").read_text("utf-8"))
    assert loads == []
