"""Mixed load on a server for minutes: whether memory, descriptors, threads and latency stay where they are.

``python benchmarks/soak.py --minutes 10``: `trifocal serve` with the bundled model in a process of its own, asked by
callers with a key each. Of the requests a third has pictures, a tenth leaves early, a twentieth is nothing that can be
answered. Prints one row for RESULTS.md and draws docs/soak.svg.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image as Pictures

CHAT = "/v1/chat/completions"
WARM = 2 / 10  # of the time, which is not counted: caches fill, allocators find their size
PICTURES = 10
EVERY = 2.0  # seconds between samples
PAUSE = 0.05  # seconds of a caller between two requests


@dataclass
class Sample:
    """The server at one time: seconds since the beginning, megabytes, descriptors, threads."""

    at: float
    memory: float
    files: int
    threads: int


@dataclass
class Log:
    """What the callers saw."""

    latencies: list[tuple[float, float]] = field(default_factory=list)  # when, and seconds until the answer was whole
    answered: Counter[int] = field(default_factory=Counter)  # by caller
    statuses: Counter[str] = field(default_factory=Counter)


def picture(dice: random.Random) -> dict[str, object]:
    """A part with one of ten pictures: with new ones for ever, the cache of 256 MB takes longer to fill than this."""
    file = io.BytesIO()
    number = dice.randrange(PICTURES)
    side = (40, 300, 900)[number % 3]
    Pictures.new("RGB", (side, side), (20 * number, 99, 7)).save(file, ("PNG", "JPEG")[number % 2])
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(file.getvalue()).decode()}"}}


def call(client: httpx.Client, number: int, dice: random.Random, log: Log, begun: float) -> None:
    """One request of a caller."""
    content: list[object] = [{"type": "text", "text": f"What is {dice.random()}?"}]
    if dice.random() < 0.3:
        content.append(picture(dice))
    body: dict[str, object] = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    kind = dice.random()
    if kind < 0.1:
        with client.stream("POST", CHAT, json={**body, "stream": True, "max_tokens": 200}) as answer:
            for _ in zip(range(dice.randrange(4)), answer.iter_lines(), strict=False):
                pass
        log.statuses["left early"] += 1
        return
    if kind < 0.15:
        bad = dice.choice([b"{", b'{"messages": 1}', b'{"messages": [], "x": 1}', b"\xff" * 100_000])
        answered = client.post(CHAT, content=bad, headers={"Content-Type": "application/json"})
        log.statuses[f"bad: {answered.status_code}"] += 1
        return
    asked = time.monotonic()
    answered = client.post(CHAT, json=body)
    log.statuses[str(answered.status_code)] += 1
    if answered.status_code == 200:
        log.answered[number] += 1
        log.latencies.append((asked - begun, time.monotonic() - asked))


def caller(url: str, key: str, number: int, log: Log, begun: float, end: float) -> None:
    """Asks until the end."""
    dice = random.Random(number)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers=headers) as client:
        while time.monotonic() < end:
            try:
                call(client, number, dice, log, begun)
            except httpx.HTTPError as error:
                log.statuses[type(error).__name__] += 1
            time.sleep(PAUSE)


def sample(process: int, begun: float) -> Sample:
    """The server's process and its children."""
    found = [process]
    for each in found:
        tasks = Path(f"/proc/{each}/task")
        found += [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    memory = threads = files = 0
    for each in found:
        try:
            status = Path(f"/proc/{each}/status").read_text()
            files += len(os.listdir(f"/proc/{each}/fd"))
        except OSError:
            continue  # a process that tried a schema, gone meanwhile
        memory += int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
        threads += int(re.findall(r"Threads:\s+(\d+)", status)[0])
    return Sample(time.monotonic() - begun, memory / 1024, files, threads)


def slope(samples: list[Sample], name: str) -> tuple[float, float]:
    """Of a line through the samples, a minute, and half its 95 % interval (neighbours hang together: blocks of ten)."""
    blocks = [samples[at : at + 10] for at in range(0, len(samples), 10)]
    xs = [statistics.fmean(each.at for each in block) / 60 for block in blocks]
    ys = [statistics.fmean(float(getattr(each, name)) for each in block) for block in blocks]
    line = statistics.linear_regression(xs, ys)
    left = [y - line.intercept - line.slope * x for x, y in zip(xs, ys, strict=True)]
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs) or 1.0
    error = (sum(each * each for each in left) / max(len(xs) - 2, 1) / spread) ** 0.5
    return line.slope, 1.96 * error


def growing(samples: list[Sample]) -> list[str]:
    """What surely grows: memory by a megabyte a minute, descriptors or threads by one in ten minutes."""
    most = {"memory": 1.0, "files": 0.1, "threads": 0.1}
    lines = {name: slope(samples, name) for name in most}
    return [name for name, (line, unsure) in lines.items() if line - unsure > most[name]]


def drawn(samples: list[Sample], log: Log) -> str:
    """Memory, descriptors, threads and latency over time, as SVG."""
    rows = {
        "MB": [(each.at, each.memory) for each in samples],
        "descriptors": [(each.at, float(each.files)) for each in samples],
        "threads": [(each.at, float(each.threads)) for each in samples],
        "seconds an answer": log.latencies[:: max(1, len(log.latencies) // 600)],
    }
    most, parts = max(each.at for each in samples), []
    for at, (name, points) in enumerate(rows.items()):
        top, low = 20 + 110 * at, 90
        high = max(y for _, y in points) or 1.0
        line = " ".join(f"{60 + 700 * x / most:.1f},{top + low - low * y / high:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="#36c" points="{line}"/>')
        parts.append(f'<path stroke="#999" d="M60 {top + low}H760"/><text x="4" y="{top + 10}">{high:.3g}</text>')
        parts.append(f'<text x="4" y="{top + low}">0</text><text x="600" y="{top + 10}">{name}</text>')
    parts.append(f'<text x="600" y="475">{most / 60:.1f} minutes</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 480" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="780" height="480" fill="#fff"/>{"".join(parts)}</svg>\n'


def counted(samples: list[Sample], minutes: float) -> list[Sample]:
    """Those after the server has warmed up."""
    return [each for each in samples if each.at > 60 * minutes * WARM]


def told(samples: list[Sample], log: Log, minutes: float) -> str:
    """What came of it, in words and as a row."""
    late = counted(samples, minutes)
    (memory, unsure), (files, _), (threads, _) = (slope(late, name) for name in ("memory", "files", "threads"))
    halves = [
        [seconds for at, seconds in log.latencies if low < at / 60 / minutes <= high]
        for low, high in ((WARM, (1 + WARM) / 2), ((1 + WARM) / 2, 2.0))
    ]
    early, later = (statistics.quantiles(half, n=100) for half in halves)
    shares = list(log.answered.values())
    fair = sum(shares) ** 2 / len(shares) / sum(each * each for each in shares)
    print(json.dumps({"statuses": dict(log.statuses), "answered by caller": dict(log.answered)}))
    return (
        f"| {minutes:g} | {log.statuses.total()} | {memory:+.2f} ± {unsure:.2f} | {files:+.2f} | {threads:+.2f} "
        f"| {early[49]:.2f} → {later[49]:.2f} | {early[98]:.2f} → {later[98]:.2f} | {fair:.3f} |"
    )


def main() -> None:
    """Serves, asks, samples and tells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--svg", type=Path, default=Path("docs/soak.svg"))
    options = parser.parse_args()
    keys = [secrets.token_hex(16) for _ in range(options.callers)]
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("\n".join(keys))
        file.flush()
        command = [sys.executable, "-m", "trifocal", "serve", "--port", "0", "--api-key-file", file.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                samples, log = soak(server, keys, 60 * options.minutes)
            finally:
                server.terminate()
                threading.Timer(20, server.kill).start()
                server.communicate()
    print(told(samples, log, options.minutes))
    options.svg.write_text(drawn(samples, log))
    if found := growing(counted(samples, options.minutes)):
        sys.exit(f"what grows: {', '.join(found)}")


def soak(server: subprocess.Popen[str], keys: list[str], seconds: float) -> tuple[list[Sample], Log]:
    """Asks for so long; what was seen from outside and by the callers."""
    assert server.stderr is not None
    said = next(line for line in server.stderr if "http://" in line)
    url = re.findall(r"http://[^/\s,;]+", said)[0]
    threading.Thread(target=server.stderr.read, daemon=True).start()  # its log, which would fill the pipe
    while httpx.get(f"{url}/readyz", trust_env=False).status_code != 200:
        time.sleep(0.1)
    log, begun = Log(), time.monotonic()
    callers = [
        threading.Thread(target=caller, args=(url, key, number, log, begun, begun + seconds))
        for number, key in enumerate(keys)
    ]
    for each in callers:
        each.start()
    samples = []
    while time.monotonic() < begun + seconds:
        samples.append(sample(server.pid, begun))
        time.sleep(EVERY)
    for each in callers:
        each.join()
    return samples, log


if __name__ == "__main__":
    main()
