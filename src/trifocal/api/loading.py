"""A model that is loaded in a thread of its own, while its server answers already what needs none."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trifocal.model.opening import Opened

__all__ = ["Loading"]


class Loading:
    """A model on its way. ``came`` gets it, in whichever thread asks `arrived`."""

    def __init__(self, load: Callable[[], Opened], came: Callable[[Opened], None]) -> None:
        self._load, self._came = load, came
        self._llava: Opened | None = None
        self._told = False
        self.error: BaseException | None = None  # why it never comes
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def arrived(self) -> bool:
        """Hands the model over where it has come; False where it never will."""
        if self._llava is not None and not self._told:
            self._told = True
            self._came(self._llava)
        return self.error is None

    def close(self) -> None:
        """Frees the model.

        Raises:
            TrifocalError: it could not be loaded.
        """
        if self.error is not None:
            raise self.error
        if self._llava is not None:
            self._llava.close()

    def _run(self) -> None:
        try:
            self._llava = self._load()
        except BaseException as error:  # is raised where the server ends
            self.error = error
