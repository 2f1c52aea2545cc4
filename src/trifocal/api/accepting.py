"""Taking connections without ever running out of file descriptors.

asyncio logs every connection that it can't take, thousands a second. Here no more are taken than there are descriptors
for: those over the limit of connections are told so and closed, and while they are, the rest wait in the kernel.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from trifocal.api.settings import ServerSettings

__all__ = ["SPARE", "LimitedListener", "room_for_connections"]

SPARE = 16  # connections that are being told that there are too many
_KEPT = 48  # descriptors for files, threads and processes
_FEWEST = 8


def room_for_connections(settings: ServerSettings) -> int:
    """How many connections may be open: as many as the settings say, but no more than this process has room for."""
    try:
        import resource
    except ImportError:
        return settings.connections
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return settings.connections
    return min(settings.connections, max(_FEWEST, allowed - _open_files() - _KEPT))


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _KEPT


class LimitedListener(socket.socket):
    """A listening socket that takes a connection only where fewer than ``most`` of its own are open."""

    most = 0
    open_now = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or no room; asyncio asks again in its next turn.
        """
        if self.open_now >= self.most:
            raise BlockingIOError
        taken, address = super().accept()
        connection = _Connection(self.family, self.type, self.proto, fileno=taken.detach())
        connection.listener = self
        self.open_now += 1
        return connection, address


class _Connection(socket.socket):
    """A connection that tells its listener when it is closed."""

    listener: LimitedListener | None = None

    def close(self) -> None:
        """Closes it and makes room."""
        super().close()
        if self.listener is not None:
            self.listener.open_now -= 1
            self.listener = None
