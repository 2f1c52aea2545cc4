"""How many bytes of decoded pictures all requests together may hold, and who waits for room."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trifocal.api.errors import server_busy

__all__ = ["Lease", "Room"]


class Lease:
    """What one request holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.held = 0

    def take(self, size: int) -> None:
        """Takes ``size`` bytes before they are made.

        Who holds nothing yet waits until there is room, or nobody else holds any; who holds some already does not, or
        two could wait for each other for ever.

        Raises:
            Refusal: there is no room for one more picture, or none came in time.
        """
        self._room._take(self, size)


class Room:
    """Bytes that worker threads share."""

    def __init__(self, size: int, patience: float) -> None:
        self._size, self._patience = size, patience
        self._changed = threading.Condition()
        self.used = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """A lease for as long as a request is worked on."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            with self._changed:
                self.used -= lease.held
                self._changed.notify_all()

    def _take(self, lease: Lease, size: int) -> None:
        def fits() -> bool:
            return self.used + size <= self._size or self.used == lease.held

        with self._changed:
            if not (fits() or (not lease.held and self._changed.wait_for(fits, self._patience))):
                raise server_busy("decoder_overloaded", "other requests hold too many pictures; come back in a moment")
            self.used += size
            lease.held += size
