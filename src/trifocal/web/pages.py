"""The page's own files: read once, each at its own address, so that no other path is ever public."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from trifocal.api.needs import needs
from trifocal.errors import UsageError

__all__ = ["SAMPLES", "STATIC", "PageFile", "page_files", "routes", "samples"]

STATIC = Path(__file__).parent / "static"
SAMPLES = Path(__file__).parent / "samples"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page: its address, its bytes and what they are."""

    path: str
    data: bytes
    kind: str

    @property
    def etag(self) -> str:
        """Names these very bytes."""
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


def page_files(static: Path = STATIC, pictures: Path = SAMPLES) -> list[PageFile]:
    """The page itself at ``/``, its other files below ``/page/``, the samples below ``/page/samples/``.

    Raises:
        UsageError: there is no page, or a file in it that a browser has no use for.
    """
    if not (static / "index.html").is_file():
        raise UsageError(f"{static}: the page is not built; run 'make page', or serve without it: --no-page")
    files = [_file(path, f"/page/{path.relative_to(static).as_posix()}") for path in _all(static)]
    shown = [_file(path, f"/page/samples/{path.name}") for path in _all(pictures) if path.suffix == ".png"]
    index = next(file for file in files if file.path == "/page/index.html")
    return [PageFile("/", index.data, index.kind), *files, *shown]


def routes(static: Path = STATIC, pictures: Path = SAMPLES) -> list[BaseRoute]:
    """A route a file, GET and HEAD only, which needs no key."""
    return [
        Route(file.path, needs(key=False)(_Answer(file)), methods=["GET"], name="page", include_in_schema=False)
        for file in page_files(static, pictures)
    ]


def samples(pictures: Path = SAMPLES) -> list[dict[str, Any]]:
    """The sample pictures: title, address and a question that the bundled model answers truthfully."""
    listed = json.loads((pictures / "samples.json").read_text("utf-8"))
    return [{**sample, "picture": f"/page/samples/{sample['picture']}"} for sample in listed]


class _Answer:
    """Answers with a file, or says that the browser has it already."""

    def __init__(self, file: PageFile) -> None:
        self._file = file
        self._headers = {"content-type": file.kind, "cache-control": "no-cache", "etag": file.etag}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The answer as an ASGI application."""
        known = Request(scope).headers.get("if-none-match", "")
        if self._file.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            response = Response(status_code=304, headers={"cache-control": "no-cache", "etag": self._file.etag})
        else:
            response = Response(self._file.data, headers=self._headers)
        await response(scope, receive, send)


def _all(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _file(path: Path, address: str) -> PageFile:
    if path.suffix not in TYPES:
        raise UsageError(f"{path}: a page has no files of this kind; known: {', '.join(TYPES)}")
    return PageFile(address, path.read_bytes(), TYPES[path.suffix])
