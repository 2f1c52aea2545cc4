"""A real deployment on this machine, asked by callers in a closed loop: requests and tokens a second, CPU by role.

    python benchmarks/deployed.py 1 2 4         these many language replicas, one after the other; needs trifocal[ray]

Every request is a new picture of one colour and a question. CPU is that of the processes of each role, a request.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import statistics
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from trifocal.deploy import Front, Language, Plan, Seeing

PORT = 18200
TICK = os.sysconf("SC_CLK_TCK")
QUESTION = "What colour is the picture?"


def body() -> bytes:
    """A request about a new picture."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), tuple(random.randrange(256) for _ in range(3))).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return json.dumps({"model": "thimble", "messages": [{"role": "user", "content": parts}]}).encode()


def asked(until: float, results: list[tuple[float, int]]) -> None:
    """Asks one after the other."""
    headers = {"content-type": "application/json"}
    while time.monotonic() < until:
        began = time.monotonic()
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", body(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            tokens = json.load(answer)["usage"]["completion_tokens"]
        results.append((time.monotonic() - began, tokens))


def cpu() -> Counter[str]:
    """CPU seconds of all processes of Ray, by role."""
    found: Counter[str] = Counter()
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            name = (process / "cmdline").read_text().replace("\0", " ").strip()
            role = next((role for role in ("front", "seeing", "language") if f"trifocal:{role}" in name), "")
            if role or any(word in name for word in ("ray::", "raylet", "gcs_server")):
                times = (process / "stat").read_text().rpartition(")")[2].split()
                found[role or "Ray itself"] += (int(times[11]) + int(times[12])) / TICK
    return found


def measured(replicas: int, seconds: float, callers: int) -> str:
    """A row: what a deployment with so many language replicas does."""
    import ray
    from ray import serve

    from trifocal.deploy import build

    share: dict[str, Any] = {"cpus": 0.1}
    plan = Plan(seeing=Seeing(**share), language=Language(least=replicas, most=replicas, **share), front=Front(**share))
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"port": PORT})
        serve.run(build(plan.args()), name="trifocal", route_prefix="/")
        asked(time.monotonic() + 5, [])  # warm
        results: list[tuple[float, int]] = []
        until, before, began = time.monotonic() + seconds, cpu(), time.monotonic()
        threads = [threading.Thread(target=asked, args=(until, results)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        span, spent = time.monotonic() - began, cpu() - before
    finally:
        serve.shutdown()
        ray.shutdown()
    tokens = sum(each for _, each in results)
    roles = " / ".join(
        f"{1000 * spent[role] / len(results):.0f}" for role in ("front", "seeing", "language", "Ray itself")
    )
    load = os.getloadavg()[0]
    return (
        f"| {replicas} | {len(results) / span:.2f} | {tokens / span:.1f} | {tokens / len(results):.1f} "
        f"| {statistics.median(took for took, _ in results):.2f} | {roles} | {spent.total() / span:.2f} | {load:.1f} |"
    )


def main() -> None:
    """Prints a row for each number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replicas", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--callers", type=int, default=8)
    options = parser.parse_args()
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"})
    for replicas in options.replicas:
        print(measured(replicas, options.seconds, options.callers), flush=True)


if __name__ == "__main__":
    main()
