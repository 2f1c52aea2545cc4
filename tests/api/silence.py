"""How long a server is silent: `/livez` is asked without pause from a process of its own, and the longest wait is told.

A wait counts as what it cost the server, if that is less than the clock says: a busy machine is silent, too, but then
the server does not work meanwhile. Run as a program, this file is the one that asks.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time

__all__ = ["Listener", "longest"]

Asked = tuple[float, float]  # seconds of the clock, and of the server's own work, until it answered
PAUSE = 0.003
ASK = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def longest(waits: list[Asked]) -> float:
    """The longest silence of the server's own making."""
    return max((min(each) for each in waits), default=0.0)


class Listener:
    """Asks one server, whenever it is told to."""

    def __init__(self, process: int, port: int) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-I", "-S", __file__, str(process), str(port)]
        self._asking = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]

    def begin(self) -> None:
        """From now on; the first answer is there."""
        self._tell("begin")

    def end(self) -> list[Asked]:
        """How long each answer took since."""
        return [(float(wall), float(work)) for wall, work in (each.split(":") for each in self._tell("end").split())]

    def close(self) -> None:
        """Asks no more."""
        self._asking.kill()
        self._asking.communicate()

    def _tell(self, word: str) -> str:
        self._asking.stdin.write(word + "\n")
        self._asking.stdin.flush()
        from waiting import line_of  # not where this file is a program of its own

        said = line_of(self._asking)
        assert said, "the server did not answer /livez"
        return str(said)


def work_of(process: int) -> float:
    """Seconds that all threads of a process worked, as Linux counts them."""
    return time.clock_gettime((~process << 3) | 2)


def _asked(process: int, port: int) -> Asked:
    clock, work = time.monotonic(), work_of(process)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(ASK)
        assert client.recv(12) == b"HTTP/1.1 200"
    return time.monotonic() - clock, work_of(process) - work


def _main(process: int, port: int) -> None:
    waits: list[Asked] = []
    asking = False
    while True:
        if select.select([sys.stdin], [], [], 0 if asking else None)[0]:
            told = sys.stdin.readline()
            if not told:
                return  # nobody is there to be told
            asking = told == "begin\n"
            if not asking:
                print(" ".join(f"{wall:.4f}:{work:.4f}" for wall, work in waits), flush=True)
            else:
                waits = [_asked(process, port)]
                print("asked", flush=True)
        if asking:
            waits.append(_asked(process, port))
            time.sleep(PAUSE)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
