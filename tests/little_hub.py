"""A hub of a few files on this machine, with faults: connections cut in the middle, and wrong bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from waiting import PATIENCE

COMMIT = "c" * 40
SPOILING = bytes(byte ^ 1 for byte in range(256))


@dataclass
class LittleHub:
    """Repositories by name, each a folder: ``cut`` files break off half way once, ``dead`` ever; ``spoilt`` lie."""

    repositories: dict[str, Path]
    url: str = ""
    cut: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    spoilt: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def listing(self, repository: str) -> dict[str, object]:
        siblings = []
        for file in sorted(path for path in self.repositories[repository].iterdir() if path.is_file()):
            data = file.read_bytes()
            entry: dict[str, object] = {"rfilename": file.name, "size": len(data), "blobId": git_sha(data)}
            if file.suffix in (".safetensors", ".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }

    def tree(self, repository: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": git_sha(file.read_bytes())}
            for file in sorted(self.repositories[repository].iterdir())
            if file.is_file()
        ]


def git_sha(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextlib.contextmanager
def running_hub(repositories: dict[str, Path]) -> Iterator[LittleHub]:
    hub = LittleHub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.tokens |= {self.headers["authorization"]} - {None}
            listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
            if listed and listed[1] in hub.repositories:
                self.answer(json.dumps(hub.listing(listed[1])).encode(), {"content-type": "application/json"})
                return
            tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?", path)
            if tree and tree[1] in hub.repositories:
                self.answer(json.dumps(hub.tree(tree[1])).encode(), {"content-type": "application/json"})
                return
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            place = hub.repositories.get(file[1], Path("/nowhere")) / file[2] if file else None
            if place is None or not place.is_file():
                self.send_response(404)
                self.send_header("x-error-code", "EntryNotFound" if place else "RepoNotFound")
                self.send_header("content-length", "0")
                self.end_headers()
                return
            self.file(place)

        def file(self, place: Path) -> None:
            data = place.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            asked = self.headers.get("range")
            if self.command == "GET":
                hub.asked.append((place.name, asked))
            if place.name in hub.spoilt:
                data = data.translate(SPOILING)
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            headers = {"etag": f'"{etag}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
            if asked:
                headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(data[start:], headers, 206 if asked else 200, cut=self.is_cut(place.name, asked))

        def is_cut(self, name: str, asked: str | None) -> bool:
            return name in hub.dead or (name in hub.cut and not asked)

        def answer(self, body: bytes, headers: dict[str, str], status: int = 200, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def trifocal(hub: LittleHub, home: Path, *words: str, code: int = 0) -> str:
    """The command line with that hub and a cache of its own; everything that it said."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": os.environ.get("TRIFOCAL_TEST_TOKEN", ""),
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "trifocal", *words]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr
