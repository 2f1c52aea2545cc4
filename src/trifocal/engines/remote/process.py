"""One life of an engine's process, from its front's side: started, spoken to, ended and buried."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from typing import Any

from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.wire import Frame, Kind, WireError, read_frame, write_frame

__all__ = ["Process"]

PATIENCE = 0.5  # seconds for a process that was killed to be gone
PATH = "TRIFOCAL_ENGINE_PATH"  # where it finds the modules that we have: what .pth files do is not done twice
BEGIN = f"""import os, sys
sys.path[:] = os.environ[{PATH!r}].split(os.pathsep)
from trifocal.engines.remote.child import main
main()"""


class Process:
    """A process that loads a recipe's engine, in a group of its own so that nothing it started outlives it.

    Must be made by a thread that lives as long as it: Linux ends it with that thread. One thread reads (`next`); any
    may say something, which waits for nobody.
    """

    def __init__(self, recipe: Recipe, environment: Mapping[str, str]) -> None:
        optimised = ["-O"] * sys.flags.optimize
        self._popen = subprocess.Popen(
            [sys.executable, *optimised, "-c", BEGIN, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, PATH: os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        assert isinstance(self._popen.stdin, BufferedWriter)
        assert isinstance(self._popen.stdout, BufferedReader)
        self._requests, self._answers = self._popen.stdin, self._popen.stdout
        self._outbox: queue.SimpleQueue[tuple[Kind, Mapping[str, Any], Sequence[memoryview]] | None] = (
            queue.SimpleQueue()
        )
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self.reason = ""  # why it was killed, where we did it
        try:
            self._writer.start()
        except RuntimeError:  # the system has no thread left
            self.kill()
            with self._popen:  # closes its pipes and waits for it
                raise
        self.heard = time.monotonic()  # when it last said anything
        self.say(Kind.LOAD, json.loads(recipe.to_json()))

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._popen.pid

    @property
    def gone(self) -> bool:
        """Whether it has ended; what it started may still hold its pipes."""
        if self._popen.returncode is None and hasattr(os, "waitid"):
            with suppress(OSError):
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._popen.returncode is not None

    def say(self, kind: Kind, head: Mapping[str, Any], parts: Sequence[memoryview] = ()) -> None:
        """Says a frame to it, after all that was said before."""
        self._outbox.put((kind, head, parts))

    def next(self) -> Frame | None:
        """What it says next; None where it says nothing any more."""
        try:
            frame = read_frame(self._answers)
        except (OSError, ValueError, WireError):
            return None
        self.heard = time.monotonic()
        return frame

    def kill(self, reason: str = "") -> None:
        """Ends it and all that it started, at once."""
        self.reason = self.reason or reason
        if self._popen.returncode is None:
            with suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._popen.pid, signal.SIGKILL)
                else:
                    self._popen.kill()

    def leave(self) -> None:
        """Tells it that nobody needs it any more."""
        self._outbox.put(None)

    def bury(self) -> str:
        """Kills what is left of it, frees what it took here, and says how it ended."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(PATIENCE)
        self._outbox.put(None)
        self._writer.join(PATIENCE)
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()
        return self.reason or self._ended

    @property
    def _ended(self) -> str:
        status = self._popen.returncode
        if status is None:
            return "can't be ended by the system"
        if status >= 0:
            return f"ended with status {status}"
        return f"was ended by {signal.Signals(-status).name}"

    def _write(self) -> None:
        with suppress(OSError, ValueError):
            while (said := self._outbox.get()) is not None:
                write_frame(self._requests.raw, *said)
            self._requests.close()
