"""Only one place tells a folder from a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from floors import SOURCE
from trifocal.source import FolderSource, GgufSource, source_of

LOOKS = re.compile(r"""suffix\s*(?:==|!=|in)[^\n]*\.gguf|endswith\([^)]*\.gguf""")


def test_nobody_else_looks_at_the_suffix() -> None:
    looking = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if LOOKS.search(path.read_text())}
    # the second asks whether anything in a folder is a file of weights, of whatever kind
    assert looking == {"source.py", "cli/inspect.py"}


def test_what_a_path_is() -> None:
    assert isinstance(source_of(Path("model.gguf")), GgufSource)
    assert isinstance(source_of(Path("folder")), FolderSource)
    assert (source_of(Path("model.gguf")).container, source_of(Path("folder")).container) == ("GGUF", "")
