"""Taking connections without ever running out of file descriptors.

asyncio logs every connection that it can't take, thousands a second. Here no more are taken than there are descriptors
for: those over the limit of connections are told so and closed, and while they are, the rest wait in the kernel.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from trifocal.api.settings import ServerSettings

__all__ = ["SPARE", "Door", "room_for_connections"]

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


class Door(socket.socket):
    """A listening socket that takes a connection only where fewer than ``most`` of its own are open."""

    most = 0
    inside = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or no room; asyncio asks again in its next turn.
        """
        if self.inside >= self.most:
            raise BlockingIOError
        taken, address = super().accept()
        visitor = _Visitor(self.family, self.type, self.proto, fileno=taken.detach())
        visitor.door = self
        self.inside += 1
        return visitor, address


class _Visitor(socket.socket):
    """A connection that tells its door when it is closed."""

    door: Door | None = None

    def close(self) -> None:
        """Closes it and makes room."""
        super().close()
        if self.door is not None:
            self.door.inside -= 1
            self.door = None
