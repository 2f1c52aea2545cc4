"""Who runs in the next step and with how much: requests, their blocks, and nobody who starves. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trifocal.engines.base import Token
from trifocal.engines.blocks import Blocks, beginning, chained, names_of
from trifocal.engines.prefixes import position_keys
from trifocal.engines.speculation import CROWD, LONGEST, Costs, Lookup, drafts
from trifocal.errors import TrifocalError
from trifocal.prompt import Prompt, TokenSpan

__all__ = ["Request", "Run", "Scheduler"]

Row = TypeVar("Row")
AHEAD = 256  # positions of an answer
Said = Token | TrifocalError | None


@dataclass(slots=True, eq=False)
class Request(Generic[Row]):
    """A prompt and its answer as it grows, in the scheduler's hands.

    At most ``limit`` ids are drawn, and one of ``end_ids`` ends the answer. ``give`` gets each token, then None, or
    the error that ended it. ``row`` is the sampler's affair. ``left`` may be set by any thread: nobody waits for the
    rest.
    """

    prompt: Prompt
    limit: int
    end_ids: frozenset[int]
    give: Callable[[Said], None]
    row: Row
    left: bool = False
    ids: list[int] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)  # one a position of prompt and answer
    names: list[bytes] = field(default_factory=list)  # one a full block of them
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # positions whose keys and values are in the blocks
    lookup: Lookup | None = None  # where guesses come from, while they are made

    def __post_init__(self) -> None:
        self.keys = position_keys(self.prompt)

    def leave(self) -> None:
        """Nobody waits for the rest; any thread may say so."""
        self.left = True

    @property
    def missing(self) -> int:
        """How many positions must be computed before the next id is told: 1 while the answer streams."""
        return len(self.keys) - self.computed


@dataclass(slots=True, eq=False)
class Run(Generic[Row]):
    """What a runner computes of one request in one step: ``count`` positions behind the first ``start``.

    The keys and values of position ``p`` stand, or go, in block ``blocks[p // size]`` at ``p % size``; ``blocks``
    reaches at least to the last position of the run. ``logits`` says whether those of the last position are wanted;
    where the last positions are a ``draft`` of ids that may come, those of the one before it and of all of it.
    """

    request: Request[Row]
    start: int
    count: int
    logits: bool
    draft: tuple[int, ...] = ()

    @property
    def wanted(self) -> int:
        """Of how many of its last positions the logits are wanted."""
        return 1 + len(self.draft) if self.logits else 0

    @property
    def blocks(self) -> list[int]:
        """The request's blocks, in order; not to be changed."""
        return self.request.blocks

    @property
    def prompt(self) -> Prompt:
        """The whole prompt of the request; positions behind it are its answer."""
        return self.request.prompt

    @property
    def ids(self) -> Sequence[int] | None:
        """The ids of the run's positions, or None where there are a picture's rows among them."""
        keys = self.request.keys
        if self.count == 1:
            return (key,) if isinstance(key := keys[self.start], int) else None
        ids = [key for key in (*keys[self.start : self.start + self.count], *self.draft) if isinstance(key, int)]
        return ids if len(ids) == self.count else None

    @property
    def part(self) -> Prompt:
        """The run's positions as spans."""
        behind = max(self.start, len(self.prompt)) - len(self.prompt)
        answer = self.request.ids[behind : max(0, self.start + self.count - len(self.prompt))]
        told = self.prompt.part(self.start, self.start + self.count - len(self.draft))
        return Prompt([*told.spans, TokenSpan((*answer, *self.draft))])


class Scheduler(Generic[Row]):
    """Requests that wait and requests that run, over one pool of blocks.

    In a step every streaming request runs its one position, at most ``rows`` requests run, and of prompts at most
    ``piece`` positions beside streams and ``whole`` where nothing streams: so a long prompt stalls nobody. Requests
    begin in the order in which they came. Full blocks are found again, also by requests that came together: those
    behind wait for the first to compute what they share; without ``share`` nothing is found again. Who goes on where an
    answer ended goes on in its last block, so that a second turn runs over what is new alone. Where the pool is
    full the youngest gives its blocks up and begins again later, where it was; the oldest never does, so that all come
    to an end. Where nothing but answers runs, up to ``ahead`` ids of each are guessed and computed with the next one,
    as far as the measured ``costs`` of steps say that it pays.

    Belongs to one thread, but for `Request.left`.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        rows: int = 64,
        piece: int = 512,
        whole: int | None = None,
        share: bool = True,
        ahead: int = 0,
    ) -> None:
        self.blocks, self.rows, self.share = blocks, rows, share
        self.piece, self.whole = piece, max(piece, whole or 4 * piece)
        self.running: list[Request[Row]] = []  # the oldest first
        self.waiting: deque[Request[Row]] = deque()
        self.ahead, self.costs = min(ahead, LONGEST), Costs()
        self.drafted = self.accepted = 0  # ids guessed, and those of them that came
        self._runs: dict[Request[Row], Run[Row]] = {}
        self._following: dict[Request[Row], Run[Row]] = {}

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    @property
    def under_way(self) -> bool:
        """Whether a step was begun that `took` did not end."""
        return bool(self._runs)

    def add(self, request: Request[Row]) -> None:
        """Takes a request, the last of those that wait. Alone in the pool it must fit."""
        size = self.blocks.size
        assert len(request.prompt) + request.limit <= self.blocks.count * size, "the engine limits what it takes"
        self.waiting.append(request)

    def next(self) -> list[Run[Row]]:
        """What is computed in this step; empty where there is nothing to do. `took` ends the step."""
        self._let_go()
        self._runs = {}
        for request in list(self.running):
            if request.missing == 1:
                self._run(request, 1)
        budget = self.piece if self._runs else self.whole
        for request in list(self.running):
            if request.missing > 1 and budget:
                budget -= self._run(request, budget)
        self._begin(budget)
        if self.ahead:
            self._guess()
        return list(self._runs.values())

    def following(self) -> list[Run[Row]]:
        """The step behind the one under way, where that can be said before the tokens of this one are known.

        One position more of every answer, whose id the runner has from the step before; empty where anything else may
        have to be done: somebody waits or left, a prompt is not through, an answer is at its limit, a guess would pay,
        or there is no room. An answer that ends in the step under way runs in this one in vain.
        """
        self._following = {}
        runs = list(self._runs.values())
        if self.waiting or len(runs) < len(self.running) or not all(self._goes_on(run) for run in runs):
            return []
        if any(self._guesses(runs)):
            return []
        behind = {run.request: Run(run.request, run.start + run.count, 1, logits=True) for run in runs}
        if not all(self._holds(request, run.start + 1) for request, run in behind.items()):
            return []
        self._following = behind
        return list(behind.values())

    def took(self, tokens: Sequence[Sequence[Token | TrifocalError]], seconds: float = 0.0) -> None:
        """Notes what was computed, how long it took, and the tokens of each run that wanted logits, in order.

        One token, and one more for each id of the run's draft that came.
        """
        runs = self._runs.values()
        if self.ahead and seconds and all(run.logits and run.count - len(run.draft) == 1 for run in runs):
            self.costs.add(len(runs), sum(run.count for run in runs), seconds)
        said = iter(tokens)
        for request, run in self._runs.items():
            told = next(said) if run.logits else ()
            if not request.blocks:
                continue  # it ended in the step before
            request.computed += run.count - len(run.draft)
            self._name(run)
            self._take_all(request, run, told)
        alive = any(request.blocks for request in self._following)
        self._runs, self._following = self._following if alive else {}, {}

    def fail(self, error: Callable[[], TrifocalError]) -> None:
        """Ends every request with an error of its own and forgets what the blocks hold."""
        for request in self.drop():
            request.give(error())

    def drop(self) -> list[Request[Row]]:
        """Every request, which is not ours any more and was told nothing; forgets what the blocks hold."""
        dropped = [*self.running, *self.waiting]
        for request in dropped:
            self.blocks.release(request.blocks)
            request.blocks = []
        self.running.clear()
        self.waiting.clear()
        self._runs, self._following = {}, {}
        self.blocks.clear()
        return dropped

    def _guess(self) -> None:
        """Makes the runs of answers longer by ids that may come, where that pays and they have the room."""
        runs = list(self._runs.values())
        for run, count in zip(runs, self._guesses(runs), strict=True):
            if count and run.request.lookup is not None:
                run.draft = run.request.lookup.guess(count, run.request.end_ids)
                run.count += len(run.draft)
                self.drafted += len(run.draft)

    def _guesses(self, runs: Sequence[Run[Row]]) -> list[int]:
        """How many ids to guess behind each run."""
        if not self.ahead or len(runs) >= CROWD or any(run.count > 1 or not run.logits for run in runs):
            return [0] * len(runs)
        lookups, most = [], []
        for run in runs:
            request = run.request
            if request.lookup is None:
                request.lookup = Lookup(request.keys)
            request.lookup.follow()
            lookups.append(request.lookup)
            room = len(request.blocks) * self.blocks.size - run.start - 1
            most.append(min(self.ahead, room, request.limit - len(request.ids) - 1))
        return drafts(lookups, self.costs, most)

    def _goes_on(self, run: Run[Row]) -> bool:
        """Whether an answer has another token behind the one that the run tells, unless that ends it."""
        request = run.request
        return run.logits and not run.draft and not request.left and len(request.ids) + 1 < request.limit

    def _holds(self, request: Request[Row], positions: int) -> bool:
        """Whether a request has blocks for so many positions, or gets one that is free."""
        if len(request.blocks) < self.blocks.needed(positions) and (block := self.blocks.take()) is not None:
            request.blocks.append(block)
        return len(request.blocks) >= self.blocks.needed(positions)

    def _let_go(self) -> None:
        """Drops the requests for which nobody waits any more."""
        for request in [request for request in self.running if request.left]:
            self._end(request, None)
        if any(request.left for request in self.waiting):
            for request in [request for request in self.waiting if request.left]:
                self.waiting.remove(request)
                request.give(None)

    def _begin(self, budget: int) -> None:
        """Lets requests begin while there is room for the whole prompt of the next one."""
        coming: set[bytes] | None = None
        for request in list(self.waiting):
            if not budget or len(self.running) >= self.rows:
                return
            names = self._names(request, len(request.keys) - 1)  # one position is always left to compute
            known = self.blocks.find(names)
            coming = self._coming() if coming is None else coming
            if len(known) < len(names) and names[len(known)] in coming:
                continue  # somebody computes it right now
            begun = self._begun(request, len(known))
            held = known if begun is None else [*known, begun[0]]
            if self.blocks.needed(len(request.keys) + 1) - len(held) > self.blocks.free - self.blocks.idle(held):
                return  # nobody overtakes a request that waits for room
            coming |= set(names[len(known) :])
            self.blocks.hold(known)
            request.blocks, request.computed = held, len(known) * self.blocks.size  # it grows from here on
            if begun is not None:
                self.blocks.resume(begun[0])
                request.computed += begun[1]
            self.waiting.remove(request)
            self.running.append(request)
            self._reserve(request)
            budget -= self._run(request, budget)

    def _coming(self) -> set[bytes]:
        """The names of blocks that running requests will have computed when their prompts are."""
        return {
            name
            for request in self.running
            if request.missing > 1
            for name in self._names(request, len(request.keys))[request.computed // self.blocks.size :]
        }

    def _run(self, request: Request[Row], most: int) -> int:
        """Adds a run of at most ``most`` positions, if room can be made for it; how many it has."""
        if request not in self.running:
            return 0  # it had to make room
        count = min(request.missing, most)
        if not self._make_room(request, request.computed + count):
            return 0
        self._runs[request] = Run(request, request.computed, count, count == request.missing)
        return count

    def _make_room(self, request: Request[Row], positions: int) -> bool:
        """Gives a request the blocks of so many positions; False where it is itself the one to give way."""
        while len(request.blocks) < self.blocks.needed(positions):
            block = self.blocks.take()
            if block is not None:
                request.blocks.append(block)
                continue
            youngest = self.running[-1]
            self._give_way(youngest)
            if youngest is request:
                return False
        return True

    def _reserve(self, request: Request[Row]) -> None:
        """Gives a request the blocks of its whole prompt, so that nobody else is promised them, and what lies together.

        Of its answer, too, while most of the pool was never used: what is one stretch of memory is read without a copy.
        For that nobody gives way, and nothing that is known is forgotten.
        """
        spare = self.blocks.empty > self.blocks.count // 2
        ahead = min(request.limit - len(request.ids), AHEAD) if spare else 0
        unused = (len(request.blocks) + self.blocks.empty) * self.blocks.size
        self._make_room(request, max(len(request.keys), min(len(request.keys) + ahead, unused)))

    def _give_way(self, request: Request[Row]) -> None:
        """Takes a request's blocks away; it is the next to begin again. Should that fail, it still runs."""
        self.blocks.release(request.blocks)
        request.blocks, request.computed = [], 0
        self._runs.pop(request, None)
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _take_all(self, request: Request[Row], run: Run[Row], tokens: Sequence[Token | TrifocalError]) -> None:
        for at, token in enumerate(tokens):
            if at:  # the guess before it came, so its position is computed already
                request.computed += 1
                self.accepted += 1
                self._name(run)
            self._take(request, token)
            if not request.blocks:
                return  # it ended

    def _take(self, request: Request[Row], token: Token | TrifocalError) -> None:
        if isinstance(token, TrifocalError):
            self._end(request, token)
        elif token.id in request.end_ids:
            self._end(request, None)
        else:
            request.ids.append(token.id)
            request.keys.append(token.id)
            request.give(token)
            if len(request.ids) == request.limit:
                self._end(request, None)

    def _begun(self, request: Request[Row], known: int) -> tuple[int, int] | None:
        """A block behind so many ``known`` ones that another request began as this one goes on, where there is one."""
        if not self._shares(request):
            return None
        keys = request.keys[known * self.blocks.size : -1]  # one position is always left to compute
        return self.blocks.begun(self._before(request, known), keys)

    def _before(self, request: Request[Row], blocks: int) -> bytes:
        """The name of all that so many first blocks of a request hold."""
        return request.names[blocks - 1] if blocks else beginning(request.prompt.scope or "")

    def _end(self, request: Request[Row], last: TrifocalError | None) -> None:
        """Tells it, when all else is done: should that fail, it is still one of those that are told of a failure."""
        whole, over = divmod(request.computed, self.blocks.size)
        if over and self._shares(request):  # who goes on with this conversation begins there
            begun = request.keys[request.computed - over : request.computed]
            self.blocks.name(request.blocks[whole], chained(self._before(request, whole), begun))
        self.blocks.release(request.blocks)
        request.blocks = []
        self.running.remove(request)
        request.give(last)

    def _name(self, run: Run[Row]) -> None:
        """Names the blocks that a run filled."""
        request, size = run.request, self.blocks.size
        names = self._names(request, request.computed)
        for at in range(run.start // size, len(names)):
            self.blocks.name(request.blocks[at], names[at])

    def _shares(self, request: Request[Row]) -> bool:
        """Whether what is computed of a request is found again."""
        return self.share and request.prompt.scope is not None

    def _names(self, request: Request[Row], positions: int) -> list[bytes]:
        """The names of the full blocks among the first positions of a request."""
        if not self._shares(request):
            return []
        names_of(request.keys, self.blocks.size, request.names, scope=request.prompt.scope or "")
        return request.names[: positions // self.blocks.size]
