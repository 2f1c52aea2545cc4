"""Python programs forked from a process that has imported torch, not started: about two seconds of CPU time less each.

`Forked` is a `subprocess.Popen` whose programs of ``-m trifocal`` and ``-c`` come from a nursery: they are children of
whoever asked, with the pipes, the folder, the environment and the session that it said, and end as others do. All else,
programs with options of Python's own among it, is started as ever. Only Linux gives away children.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from waiting import PATIENCE

__all__ = ["Forked", "Nursery"]

LONGEST = 1 << 17  # bytes of an order
IMPORTED = ("torch", "trifocal.api.server", "trifocal.cli.serve", "trifocal.engines.native", "trifocal.web")
_SUBREAPER = 36  # of prctl: orphans below come to whoever has it


class Nursery:
    """A process that forks others when told to, and gives them away to this one."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(PATIENCE)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def start(self, order: dict[str, Any], ends: Sequence[int]) -> int:
        """The number of a new child of this process, which has these for its input, output and errors."""
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            prctl(_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._orders, [json.dumps(order).encode()], ends)
                return int(self._orders.recv(100))
            finally:
                prctl(_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """Ends it, not those that it gave away."""
        self._orders.close()
        self._process.wait(PATIENCE)


class Forked(subprocess.Popen[Any]):
    """A process that a nursery forks where it can."""

    nursery: Nursery

    def _execute_child(self, args: Any, *given: Any) -> None:
        _, preexec, _, passed, cwd, env, _, _, shell, *ends = given
        environment = dict(os.environ if env is None else env)
        ours = isinstance(args, list) and args[:1] == [sys.executable] and args[1:2] in (["-m"], ["-c"])
        if not ours or preexec or passed or shell or _options(environment) != _options(os.environ):
            super()._execute_child(args, *given)  # type: ignore[misc]
            return
        order = {
            "words": [os.fsdecode(word) for word in args[1:]],
            "environment": environment,
            "folder": os.path.abspath(cwd or "."),
            "session": ends[-2],
        }
        into, _, _, out, _, errors = ends[:6]
        given_ends = [own if end == -1 else end for own, end in enumerate((into, out, errors))]
        self.pid = self.nursery.start(order, given_ends)
        self._child_created = True
        self._close_pipe_fds(*ends[:6])  # type: ignore[attr-defined]


def _options(environment: Any) -> dict[str, str]:
    """What tells Python itself how to run."""
    return {name: value for name, value in environment.items() if name.startswith("PYTHON") and name != "PYTHONPATH"}


def main() -> None:
    """Forks what is ordered until nobody can order any more; in the child, runs it."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        __import__(name)
    gc.collect()
    gc.freeze()
    while True:
        order, ends, _, _ = socket.recv_fds(orders, LONGEST, 3)
        if not order:
            return
        hold, go = os.pipe()
        tell, told = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork():
                os._exit(0)  # and its child is given away
            os.close(go)
            said = json.loads(order)
            if said["session"]:
                os.setsid()  # before anybody knows it, and kills its group
            os.write(told, str(os.getpid()).encode())
            if not os.read(hold, 1):  # whoever forked it is gone
                os._exit(1)
            orders.detach()
            _run(said, ends)
            return
        os.waitpid(between, 0)
        with suppress(BrokenPipeError):
            orders.send(os.read(tell, 100))
        os.write(go, b"!")
        for end in (*ends, hold, go, tell, told):
            os.close(end)


def _run(order: dict[str, Any], ends: Sequence[int]) -> None:
    """Becomes what was ordered."""
    for number, end in enumerate(ends):
        os.dup2(end, number)
    os.closerange(3, 1 << 16)
    # anew, for what they are now: pipes, where nobody can go back
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = ["", *(path for path in more if path not in sys.path)]
    kind, what, *words = order["words"]
    if kind == "-m":
        sys.argv = [what, *words]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    sys.argv = [kind, *words]
    sys.modules["__main__"] = program = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), program.__dict__)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
