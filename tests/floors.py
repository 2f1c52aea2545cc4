"""The plan: which room stands on which floor. ``python tests/floors.py`` draws it into ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "trifocal"
PAGE = ROOT / "ARCHITECTURE.md"

# from the ground up; a module imports only from floors below its own, or from its own room
FLOORS = [
    ["errors", "timing", "quiet", "cancelling"],
    ["encoded", "connection", "cuda"],
    ["files", "images", "prompt", "placement", "peer"],
    ["messages", "tokens", "hub", "embedded"],
    ["gguf"],
    ["source"],
    ["conversation", "weights"],
    ["engines"],
    ["checkpoints"],
    ["vision"],
    ["model"],
    ["tools", "webui"],
    ["api"],
    ["web"],
    ["deploy"],
    ["cli"],
    ["__main__"],
]


def floor(module: str) -> int:
    """The floor of a module's room (the first word of its name), counted from the ground."""
    room = module.split(".")[0]
    for level, rooms in enumerate(FLOORS):
        if room in rooms:
            return level
    raise AssertionError(f"{module} is on no floor: draw it into the plan")


def table() -> str:
    """The floors from the top down, each room with the sentence in which it says what it owns."""
    rows = [
        f"| {level} | `{room}{'/' if (SOURCE / room).is_dir() else ''}` | {_owns(room)} |"
        for level, rooms in reversed(list(enumerate(FLOORS)))
        for room in rooms
    ]
    return "\n".join(["| floor | room | owns |", "|---|---|---|", *rows])


def _owns(room: str) -> str:
    path = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"\| floor \|.+?\n\n", lambda _: table() + "\n\n", page, flags=re.DOTALL), "utf-8")
