"""Writes the parts of docs/api.md that repeat the app: ``python tests/api/api_docs.py``; a test holds them current."""

from __future__ import annotations

import re
from pathlib import Path

from live import make_llava

from trifocal.api.app import create_app
from trifocal.api.serving import SLOTS
from trifocal.api.settings import ServerSettings
from trifocal.images import LIMITS
from trifocal.web import routes as page_routes

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def routes() -> str:
    """A table of all routes, by dialect."""
    app = create_app(make_llava(), ServerSettings(), page_routes())
    rows = ["| dialect | route | does |", "|---|---|---|"]
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            rows.append(f"| {operation['tags'][0]} | `{method.upper()} {path}` | {operation['summary']} |")
    app.state.server.close()
    return "\n".join(rows)


def limits() -> str:
    """A table of the default limits."""
    s = ServerSettings()
    rows = [
        ("body", f"{s.body_bytes >> 20} MiB"),
        ("headers", f"{s.header_count} of {s.header_bytes >> 10} KiB"),
        ("picture, encoded", f"{s.image_bytes >> 20} MiB"),
        ("picture, decoded", f"{LIMITS.pixels:,} pixels, sides up to {LIMITS.side:,}, {LIMITS.aspect}:1"),
        ("pictures in a request", f"{s.images}, together {s.decoded_bytes >> 20} MiB decoded"),
        ("formats", "JPEG, PNG, WebP, GIF (first frame)"),
        ("texts together", f"{s.text_bytes >> 10} KiB"),
        ("JSON", f"{s.json_depth} levels, {s.json_values:,} values"),
        ("answers (`n`)", f"{s.answers}"),
        ("stop strings", f"{s.stops} of {s.stop_characters} characters"),
        (
            "at once, waiting, per key",
            f"as fit, up to {SLOTS} (`--slots`), {s.queue} (`--queue`), {s.per_key} (`--per-key`)",
        ),
        ("seconds a request, of them waiting", f"{s.deadline:g} (`--deadline`), {s.queue_wait:g}"),
        ("seconds for the head, for the body", f"{s.header_seconds:g}, {s.body_seconds:g}"),
        ("seconds to drain", f"{s.drain:g} (`--drain`)"),
    ]
    return "\n".join(["| limit | default |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def current(text: str) -> str:
    """The page with its generated parts as they should be."""
    for name, content in (("routes", routes()), ("limits", limits())):
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(marks, lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text("utf-8")), "utf-8")
