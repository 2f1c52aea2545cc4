"""What each engine can, as a table. ``python tests/engine_table.py`` draws it into docs/engines.md."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

from trifocal.engines.base import Abilities

__all__ = ["PAGE", "SAID", "able", "table"]

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
COLUMNS = {
    "log-probabilities": "logprobs",
    "JSON schemas": "grammar",
    "tells where it looked": "explains",
    "guesses ahead": "speculates",
}
SEES = {"causal": "causal", "images": "pictures in both directions", "prompt": "prompts in both directions"}


# engine -> where it says what it can, with nothing switched off
SAID = {
    "llamacpp": "trifocal.engines.llamacpp:ABLE",
    "native": "trifocal.engines.native:ABLE",
    "transformers": "trifocal.engines.transformers:ABLE",
    "vllm": "trifocal.engines.vllm.local:Local.able",
    "vllm -e url=...": "trifocal.engines.vllm.served:Completions.able",
    "sglang": "trifocal.engines.sglang:Generate.able",
    "echo": "trifocal.engines.echo:ABLE",
}


def able(name: str) -> Abilities:
    """What an engine of ours can."""
    found = pkgutil.resolve_name(SAID[name])
    assert isinstance(found, Abilities)
    return found


def table() -> str:
    """A row an engine."""
    rows = [f"| engine | {' | '.join(COLUMNS)} | attends |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for name in SAID:
        can = able(name)
        marks = ["yes" if getattr(can, field) else "–" for field in COLUMNS.values()]
        rows.append(f"| `{name}` | {' | '.join(marks)} | {', '.join(SEES[kind] for kind in can.sees)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"\| engine \| log-prob.*?(?=\n\n)", lambda _: table(), page, flags=re.DOTALL), "utf-8")
