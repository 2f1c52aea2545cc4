"""Which models a server offers and which of them are loaded: on demand, and put away when another needs the room."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, Protocol, Self, TypeVar

from trifocal.api.errors import Refusal, explain, server_busy
from trifocal.api.loading import Loading
from trifocal.errors import UsageError
from trifocal.model.opening import Opened
from trifocal.model.settings import Settings

__all__ = ["Models", "Offered", "Phase", "Speaker", "offers_of"]

log = logging.getLogger("trifocal.api")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
LOOK_AGAIN = 0.02  # seconds between two looks at what is under way
Phase = Literal["away", "loading", "ready"]


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that may be asked for: its name for clients, and how it is opened."""

    name: str
    settings: Settings


class Speaker(Protocol):
    """What speaks for one model: `trifocal.api.serving.Server`."""

    @property
    def bytes(self) -> int:
        """Of its weights; 0 before they were ever loaded."""
        ...

    @property
    def answering(self) -> bool:
        """Whether a request to it is under way."""
        ...

    def take(self, llava: Opened, /) -> None:
        """Speaks for this one."""
        ...

    def put_away(self) -> None:
        """Speaks for none."""
        ...

    def beside(self, name: str, /) -> Self:
        """Another one, for the model of this name."""
        ...


Server = TypeVar("Server", bound=Speaker)


@dataclass(slots=True, eq=False)
class _Entry(Generic[Server]):
    """One model: the server that speaks for it, and who uses it or waits for it."""

    offer: Offered
    server: Server
    llava: Opened | None = None
    loading: bool = False
    uses: int = 0
    used: int = 0  # a clock that counts uses
    turns: list[asyncio.Future[None]] = field(default_factory=list)
    since: int = 0  # by that clock, when the first of them came

    @property
    def idle(self) -> bool:
        return not self.uses and not self.server.answering

    @property
    def bytes(self) -> int | None:
        """What it takes: as it did, or else as large as its files are; None where nobody knows."""
        return self.server.bytes or _bytes_of_files(Path(self.offer.settings.checkpoint).expanduser())


def offers_of(settings: Settings, checkpoints: Sequence[str]) -> list[Offered]:
    """What is offered under these names of checkpoints, all opened in the same way.

    Raises:
        UsageError: two of one name, or parts from elsewhere, which fit one model alone.
    """
    offers = [Offered(_name_of(name), replace(settings, checkpoint=name)) for name in checkpoints]
    names = [offer.name for offer in offers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two models are called {twice[0]}: give the folders names that differ")
    for part in ("tower_from", "projector_from", "language_from"):
        if len(offers) > 1 and getattr(settings, part):
            raise UsageError(f"--{part.replace('_', '-')} takes a part of one model; with several models leave it out")
    return offers


def _name_of(checkpoint: str) -> str:
    """As `find_checkpoint` calls it, without a look at its files."""
    path = Path(checkpoint).expanduser()
    return path.resolve().name if path.exists() else checkpoint


class Models(Generic[Server]):
    """Several models behind one server, of which so many are loaded as ``memory`` bytes of weights allow.

    Who asks for one that is loaded has it at once. Otherwise it is loaded, after those that were used the longest ago
    were put away, never one that answers; who asks for others meanwhile, where room is being made, waits in line. The
    line is by models: whoever waits for the one that has come gets it. With no memory given one is loaded at a time.
    Belongs to one event loop.
    """

    def __init__(
        self,
        offers: Sequence[Offered],
        server: Server,
        load: Callable[[Settings], Opened],
        *,
        memory: int,
        queue: int,
        aliases: Sequence[str],
    ) -> None:
        self._load, self._memory, self._queue, self._aliases = load, memory, queue, aliases
        self._entries: dict[str, _Entry[Server]] = {}
        for offer in offers:
            self._entries[offer.name] = _Entry(offer, server.beside(offer.name) if self._entries else server)
        self._first = self._entries[offers[0].name]
        self._first.loading = True  # before anybody asks; `took` is told when it has come
        self._clock = 0
        self._crowded = False  # somebody waits until one can be put away
        self._line: asyncio.Task[None] | None = None

    @property
    def servers(self) -> list[Server]:
        """One for each model, in the order in which they were given."""
        return [entry.server for entry in self._entries.values()]

    @property
    def started(self) -> bool:
        """Whether the first one has come."""
        return self._first.llava is not None or not self._first.loading

    @property
    def phases(self) -> dict[str, Phase]:
        """How each is now."""
        return {
            name: "ready" if entry.llava is not None else "loading" if entry.loading or entry.turns else "away"
            for name, entry in self._entries.items()
        }

    @property
    def waiting(self) -> int:
        """How many requests wait for a model that is not there."""
        return sum(len(entry.turns) for entry in self._entries.values())

    @property
    def front(self) -> Server:
        """The server of the one that was used last, of those that are loaded; else the first."""
        loaded = [entry for entry in self._entries.values() if entry.llava is not None]
        return max(loaded, key=lambda entry: entry.used, default=self._first).server

    def named(self, name: str | None) -> Server:
        """The server that speaks for a model, loaded or not; where none has this name, one that says so."""
        entry = self._find(name)
        return entry.server if entry else self.front

    @asynccontextmanager
    async def using(self, name: str | None, patience: float) -> AsyncGenerator[Server, None]:
        """The server of a model that stays loaded meanwhile; without a name that of the first.

        Raises:
            Refusal: there is no room for more who wait, it did not come in ``patience`` seconds, or can't be loaded.
        """
        entry = self._find(name) if name else self._first
        if entry is None:
            yield self.front  # which refuses the name, and lists the known ones
            return
        await self._enter(entry, patience)
        try:
            yield entry.server
        finally:
            entry.uses -= 1
            entry.used = self._tick()

    def took(self, llava: Opened) -> None:
        """The first one has come; it was loaded before anybody asked."""
        self._first.loading = False
        self._take(self._first, llava)

    def close(self) -> None:
        """Frees those that are loaded."""
        for entry in self._entries.values():
            if entry.llava is not None:
                entry.llava.close()

    def _find(self, name: str | None) -> _Entry[Server] | None:
        for each in (name, (name or "").removesuffix(":latest")):
            if each in self._aliases:
                return self._first
            if each in self._entries:
                return self._entries[each]
        return None

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    async def _enter(self, entry: _Entry[Server], patience: float) -> None:
        if entry.llava is not None and not self._crowded:
            self._use(entry)
            return
        if self.waiting > self._queue:
            raise server_busy(message=f"too many requests wait for another model; {entry.offer.name} is not loaded")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not entry.turns:
            entry.since = self._tick()
        entry.turns.append(turn)
        if self._line is None or self._line.done():
            self._line = asyncio.ensure_future(self._serve_line())
        try:
            async with asyncio.timeout(patience):
                await turn
        except BaseException as error:
            if turn in entry.turns:
                entry.turns.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                entry.uses -= 1  # it came in the very moment in which we left
            if isinstance(error, TimeoutError):
                words = f"the model {entry.offer.name} is loading; come back in a moment"
                raise server_busy("model_loading", words) from error
            raise

    def _use(self, entry: _Entry[Server]) -> None:
        entry.uses += 1
        entry.used = self._tick()

    async def _serve_line(self) -> None:
        """Brings one model after the other to those who wait for it, the longest waiting first."""
        while waited := [entry for entry in self._entries.values() if entry.turns]:
            entry = min(waited, key=lambda each: each.since)
            refusal: Refusal | None = None
            try:
                if entry.llava is None:
                    await self._bring(entry)
            except Exception as error:
                log.exception("%s can't be loaded", entry.offer.name)
                told = explain(error)
                refusal = Refusal(503, "model_failed", f"the model {entry.offer.name} can't be loaded: {told.message}")
            turns, entry.turns = entry.turns, []
            for turn in turns:
                if turn.done():
                    continue
                if refusal is not None:
                    turn.set_exception(refusal)
                elif entry.llava is None:  # everybody had left, and these came since
                    entry.turns.append(turn)
                else:
                    self._use(entry)
                    turn.set_result(None)

    async def _bring(self, entry: _Entry[Server]) -> None:
        while self._first.loading:
            await asyncio.sleep(LOOK_AGAIN)
        if entry.llava is not None or not await self._make_room(entry):
            return
        entry.loading = True
        came: list[Opened] = []
        try:
            loading = Loading(lambda: self._load(entry.offer.settings), came.append)
            while loading.arrived() and not came:
                await asyncio.sleep(LOOK_AGAIN)
            if not came:
                loading.close()  # raises what it failed with
        finally:
            entry.loading = False
        self._take(entry, came[0])
        await self._put_away_what_is_too_much(entry)

    def _take(self, entry: _Entry[Server], llava: Opened) -> None:
        entry.llava = llava
        entry.used = self._tick()
        entry.server.take(llava)

    async def _make_room(self, entry: _Entry[Server]) -> bool:
        """Puts away what has to go for a model; False where nobody waits for it any more."""
        self._crowded = True
        try:
            while others := self._loaded(entry):
                needed = entry.bytes
                if needed is not None and needed + _bytes_of(others) <= self._memory:
                    return True
                if not entry.turns:
                    return False
                idle = [each for each in others if each.idle]
                if idle:
                    await self._put_away(min(idle, key=lambda each: each.used))
                else:
                    await asyncio.sleep(LOOK_AGAIN)
            return True
        finally:
            self._crowded = False

    async def _put_away_what_is_too_much(self, entry: _Entry[Server]) -> None:
        """What a model takes is known for sure once it is loaded."""
        while idle := [each for each in self._loaded(entry) if each.idle]:
            if _bytes_of(self._loaded()) <= self._memory:
                return
            await self._put_away(min(idle, key=lambda each: each.used))

    async def _put_away(self, entry: _Entry[Server]) -> None:
        llava, entry.llava = entry.llava, None
        assert llava is not None, "only what is loaded is put away"
        entry.server.put_away()
        log.info("%s is put away", entry.offer.name)
        await asyncio.get_running_loop().run_in_executor(None, _free, llava)

    def _loaded(self, but: _Entry[Server] | None = None) -> list[_Entry[Server]]:
        return [entry for entry in self._entries.values() if entry.llava is not None and entry is not but]


def _bytes_of(entries: Sequence[_Entry[Server]]) -> int:
    return sum(entry.server.bytes for entry in entries)


def _bytes_of_files(place: Path) -> int | None:
    try:
        files = [place] if place.is_file() else [file for file in place.iterdir() if file.suffix in WEIGHTS]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None


def _free(llava: Opened) -> None:
    llava.close()
    gc.collect()  # weights hang in circles: modules and their hooks
