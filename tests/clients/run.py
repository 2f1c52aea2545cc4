"""Runs the checks of all clients against a live server and draws their table: ``python run.py CLIENTS_PYTHON``.

The server is `trifocal serve` of the Python that runs this, with the bundled model. With ``--write`` the table goes
into docs/clients.md; without it, the page must hold the very table.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "clients.md"
KINDS = ("text", "picture", "stream", "structured", "tools", "errors")
STARTING = 180.0


@contextmanager
def served() -> Iterator[str]:
    """The address of a server that lives as long as the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(Path(sys.executable).with_name("trifocal")), "serve", "--port", str(port), "--no-page"]
    server = subprocess.Popen(program)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + STARTING
        while not _answers(f"{url}/readyz"):
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server does not start")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def run(program: list[str]) -> list[dict[str, str]]:
    """What a program of checks told, one line a check."""
    environment = {**os.environ, "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "true", "DO_NOT_TRACK": "1"}
    ended = subprocess.run(program, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"client"')]
    if not lines or (ended.returncode and all(not json.loads(line)["problem"] for line in lines)):
        raise SystemExit(f"{program[0]} ended with {ended.returncode} after {len(lines)} checks")
    return [json.loads(line) for line in lines]


def table(told: list[dict[str, str]]) -> str:
    """A row a client: its version, and what was run of each kind."""
    rows = [f"| client | version | {' | '.join(KINDS)} |", f"|---|---|{'---|' * len(KINDS)}"]
    for client in dict.fromkeys(each["client"] for each in told):
        mine = {each["check"]: each for each in told if each["client"] == client}
        marks = ("–" if kind not in mine else "fails" if mine[kind]["problem"] else "yes" for kind in KINDS)
        rows.append(f"| {client} | {next(iter(mine.values()))['version']} | {' | '.join(marks)} |")
    return "\n".join(rows)


def main() -> int:
    """Runs all; 1 where a check failed or the page is of other versions."""
    python, write = sys.argv[1], "--write" in sys.argv
    with tempfile.TemporaryDirectory() as folder, served() as url:
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (64, 64), "red").save(picture)
        told = run([python, "checks.py", url, str(picture)])
        told += run(["node", "checks.mjs", url, str(picture)])
    failed = [each for each in told if each["problem"]]
    for each in failed:
        print(f"{each['client']} {each['version']}, {each['check']}: {each['problem']}", file=sys.stderr)
    drawn, page = table(told), PAGE.read_text("utf-8")
    print(drawn, f"\n{len(told)} checks, {len(failed)} failed")
    if write:
        day = datetime.now(UTC).date().isoformat()
        marked = f"<!-- ran -->\nRan on {day}:\n\n{drawn}\n<!-- /ran -->"
        PAGE.write_text(re.sub(r"<!-- ran -->.*?<!-- /ran -->", lambda _: marked, page, flags=re.DOTALL), "utf-8")
    elif drawn not in page:
        print("docs/clients.md has another table: run 'make test-clients WRITE=--write'", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
