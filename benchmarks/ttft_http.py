"""What HTTP adds: seconds until the first token through the server, minus the same call in this process.

    python benchmarks/ttft_http.py [--rounds 100]

Calls alternate between the two ways, so that both meet the same machine; the picture's features and the prompt's
prefix are warm in both, which is the hardest case for the server: nothing hides behind the model.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image as Pictures

import trifocal
from trifocal.images import from_data_uri
from trifocal.messages import Sampling
from trifocal.model.llava import Llava

QUESTION = "What colour is the picture?"


def picture() -> str:
    """A photograph-sized JPEG as a data URI."""
    file = BytesIO()
    Pictures.effect_noise((640, 480), 40).convert("RGB").save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def in_process(llava: Llava, uri: str) -> float:
    """Seconds until the first piece of text, decoding of the picture included."""
    started = time.perf_counter()
    stream = llava.stream([llava.question(QUESTION, [from_data_uri(uri)])], Sampling(max_tokens=2))
    next(stream)
    seconds = time.perf_counter() - started
    stream.close()
    return seconds


def through_http(connection: http.client.HTTPConnection, uri: str) -> float:
    """Seconds until the first event that holds text, on a connection that is open already."""
    part = {"type": "image_url", "image_url": {"url": uri}}
    content = [{"type": "text", "text": QUESTION}, part]
    body = json.dumps({"messages": [{"role": "user", "content": content}], "stream": True, "max_tokens": 2})
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    while True:
        line = response.readline()
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            break
    seconds = time.perf_counter() - started
    response.read()
    return seconds


@contextmanager
def server() -> Iterator[http.client.HTTPConnection]:
    """A connection to ``trifocal serve`` in a process of its own, as every client has it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trifocal", "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while process.poll() is None:
            try:
                connection.connect()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield connection
        connection.close()
        process.send_signal(signal.SIGTERM)


def measure(rounds: int) -> tuple[list[float], list[float]]:
    """Both series, in seconds, after ten rounds to warm up."""
    direct, served = [], []
    uri = picture()
    with trifocal.load() as llava, server() as connection:
        for at in range(rounds + 10):
            pair = in_process(llava, uri), through_http(connection, uri)
            if at >= 10:
                direct.append(pair[0])
                served.append(pair[1])
    return direct, served


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    direct, served = measure(rounds)
    extra = [after - before for before, after in zip(direct, served, strict=True)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds\n")
    print("| time to first token | median ms | p90 ms |\n|---|---|---|")
    for name, series in (("in process", direct), ("through HTTP", served), ("difference", extra)):
        p90 = statistics.quantiles(series, n=10)[-1]
        print(f"| {name} | {1e3 * statistics.median(series):.2f} | {1e3 * p90:.2f} |")


if __name__ == "__main__":
    main()
