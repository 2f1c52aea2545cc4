"""The scheduler with lists alone: who runs, with how much, in which blocks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifocal.engines.base import Token
from trifocal.engines.blocks import Blocks
from trifocal.engines.scheduler import Request, Run, Said, Scheduler
from trifocal.engines.speculation import Costs
from trifocal.errors import EngineError
from trifocal.prompt import Prompt, TokenSpan
from twins import is_found
from waiting import PATIENCE

END = 0


class Ledger:
    """A pool in which every position holds what stands there, and the truth about what each request has.

    The next id of a request is the sum of its positions so far: it is right only where every block is.
    """

    def __init__(self, scheduler: Scheduler[None]) -> None:
        self.scheduler = scheduler
        self.memory: dict[tuple[int, int], object] = {}
        self.steps: list[dict[Request[None], int]] = []

    def step(self) -> list[Run[None]]:
        runs = self.scheduler.next()
        size = self.scheduler.blocks.size
        self.steps.append({run.request: run.count for run in runs})
        tokens = []
        for run in runs:
            keys = [*run.request.keys[: run.start + run.count - len(run.draft)], *run.draft]
            assert len(run.part) == run.count
            assert run.ids is None or list(run.ids) == keys[run.start :]
            for at in range(run.start, run.start + run.count):
                self.memory[run.blocks[at // size], at % size] = keys[at]
        for run in runs:
            keys, last = run.request.keys, run.start + run.count - len(run.draft)
            held = [self.memory[run.blocks[at // size], at % size] for at in range(last + len(run.draft))]
            assert held[:last] == keys[:last]
            assert run.logits == (last == len(keys))
            if run.logits:
                own = [following(held[: last + at]) for at in range(1 + len(run.draft))]
                came = next((at for at, key in enumerate(run.draft) if key != own[at]), len(run.draft))
                tokens.append([Token(key) for key in own[: came + 1]])
        self.scheduler.took(tokens)
        return runs

    def overlapped(self) -> int:
        """All steps to the end, each begun before the one in front of it is read, wherever it can be; how many were."""
        scheduler, count = self.scheduler, 0
        runs = scheduler.next()
        while runs:
            told = [(run, self.tell(run)) for run in runs]
            before = [token for run, token in told if run.logits]
            behind = scheduler.following() if not any(run.draft for run in runs) else []
            for run, token in zip(behind, before, strict=bool(behind)):  # whose key is not in the request yet
                self.memory[run.blocks[run.start // scheduler.blocks.size], run.start % scheduler.blocks.size] = token
            scheduler.took([[Token(token)] for token in before])
            count += len(behind)
            runs = behind if scheduler.under_way else scheduler.next()
        return count

    def tell(self, run: Run[None]) -> int:
        """What follows the positions of a run, which are written first where their keys are known."""
        if not run.blocks:
            return -1  # it ended in the step before
        size = self.scheduler.blocks.size
        for at, key in enumerate(run.request.keys[run.start : run.start + run.count], run.start):
            self.memory[run.blocks[at // size], at % size] = key
        return following([self.memory[run.blocks[at // size], at % size] for at in range(run.start + run.count)])

    def finish(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.busy:
                return
            self.step()
        raise AssertionError("it never ends")


def following(keys: Sequence[object]) -> int:
    return 1 + sum(key for key in keys if isinstance(key, int)) % 97


class Client:
    """Somebody who asked: the request and what came of it."""

    def __init__(
        self, ids: Sequence[int], limit: int = 5, ends: frozenset[int] = frozenset(), scope: str | None = ""
    ) -> None:
        self.got: list[int] = []
        self.done = 0
        self.error: Exception | None = None
        self.request: Request[None] = Request(Prompt([TokenSpan(tuple(ids))], scope), limit, ends, self.give, None)

    def give(self, said: Said) -> None:
        assert not self.done
        if isinstance(said, Token):
            self.got.append(said.id)
            return
        self.done += 1
        self.error = said

    @property
    def wanted(self) -> list[int]:
        keys, said = list(self.request.prompt.token_ids), []
        for _ in range(self.request.limit):
            token = following(keys)
            if token in self.request.end_ids:
                break
            said.append(token)
            keys.append(token)
        return said


def ask(scheduler: Scheduler[None], *clients: Client) -> Ledger:
    for client in clients:
        scheduler.add(client.request)
    return Ledger(scheduler)


def test_requests_join_and_leave_between_steps() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4))
    one, two = Client(range(1, 10), limit=6), Client(range(20, 30), limit=3)
    ledger = ask(scheduler, one)
    ledger.step()
    ledger.step()
    scheduler.add(two.request)
    ledger.finish()
    assert (one.got, two.got) == (one.wanted, two.wanted)
    assert [len(step) for step in ledger.steps] == [1, 1, 2, 2, 2, 1]
    assert scheduler.blocks.free == 20


@pytest.mark.parametrize("size", [1, 4, 16])
def test_steps_that_are_begun_ahead_tell_the_same(size: int) -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(400 // size, size), piece=8, whole=16)
    ends = frozenset(following([*range(1, 20), *Client(range(1, 20), limit=at).wanted]) for at in (7,))
    clients = [Client(range(1, 20), limit=12, ends=ends), Client(range(30, 41), limit=9), Client([5], limit=1)]
    ledger = ask(scheduler, *clients)
    assert ledger.overlapped() > 5
    assert [client.got for client in clients] == [client.wanted for client in clients]
    assert len(clients[0].got) == 7  # it came to its end while the step behind it was under way
    assert [client.done for client in clients] == [1, 1, 1]
    assert scheduler.blocks.free == scheduler.blocks.count
    again = Client([*range(1, 20), *clients[0].got, 70], limit=4)  # what is kept of them is sound
    scheduler.add(again.request)
    ledger.finish()
    assert again.got == again.wanted


def test_a_step_is_begun_ahead_only_where_it_is_certain() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4), piece=8, whole=8)
    client, late = Client(range(1, 10), limit=5), Client(range(20, 24), limit=2)
    ledger = ask(scheduler, client)
    scheduler.next()
    assert scheduler.following() == []  # the prompt is not through
    ledger.tell(Run(client.request, 0, 8, logits=False))
    scheduler.took([])
    [run] = scheduler.next()
    assert [(one.start, one.count) for one in scheduler.following()] == [(9, 1)]
    scheduler.add(late.request)
    assert scheduler.following() == []  # somebody waits
    scheduler.waiting.clear()
    client.request.left = True
    assert scheduler.following() == []  # nobody wants it
    client.request.left = False
    client.request.limit = 1
    assert scheduler.following() == []  # its last token is under way
    assert run.request is client.request


def test_a_step_ahead_takes_nobodys_blocks() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(4, 4))
    clients = [Client(range(1, 8), limit=9), Client(range(20, 27), limit=9)]
    ledger = ask(scheduler, *clients)
    ledger.overlapped()
    assert [client.got for client in clients] == [client.wanted for client in clients]
    assert scheduler.blocks.free == 4


def test_an_end_ends_without_being_told() -> None:
    first = following(range(1, 10))
    client = Client(range(1, 10), ends=frozenset({first}))
    ask(Scheduler(Blocks(20, 4)), client).finish()
    assert client.got == []
    assert client.done == 1


def test_who_left_is_gone_before_the_next_step() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4), rows=1)
    running, waiting, last = (Client(range(start, start + 9)) for start in (1, 20, 40))
    ledger = ask(scheduler, running, waiting, last)
    ledger.step()
    running.request.left = waiting.request.left = True
    [run] = ledger.step()
    assert run.request is last.request
    assert running.done == waiting.done == 1


def test_a_long_prompt_is_cut_so_that_streams_go_on() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(100, 4), piece=8, whole=50)
    stream, long = Client([1, 2, 3], limit=20), Client(range(1, 101), limit=2)
    ledger = ask(scheduler, stream)
    ledger.step()
    scheduler.add(long.request)
    while not long.got:
        ledger.step()
    beside = ledger.steps[1:]
    assert all(step[stream.request] == 1 for step in beside)
    assert [step[long.request] for step in beside] == [8] * 12 + [4]
    alone = Client(range(200, 300), limit=2)
    counts = ask(Scheduler(Blocks(100, 4), piece=8, whole=50), alone)
    counts.finish()
    assert [step[alone.request] for step in counts.steps] == [50, 50, 1]


def test_a_second_turn_runs_only_over_what_is_new() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(100, 4))
    first = Client(range(1, 31), limit=6)
    ledger = ask(scheduler, first)
    ledger.finish()
    second = Client([*range(1, 31), *first.got, 70, 71])
    scheduler.add(second.request)
    ledger.finish()
    assert second.got == second.wanted
    ran = next(step[second.request] for step in ledger.steps if second.request in step)
    assert ran == 38 - 35  # the last id of an answer is told, never computed


def positions(ledger: Ledger, client: Client) -> int:
    """How many positions a request runs over before its first id is told, alone."""
    ledger.scheduler.add(client.request)
    ledger.finish()
    assert client.got == client.wanted
    assert ledger.scheduler.blocks.free == ledger.scheduler.blocks.count
    return sum(step.get(client.request, 0) for step in ledger.steps) - client.request.limit + 1


def test_a_block_that_was_begun_is_gone_on_with_by_one_and_only_where_all_of_it_is_meant() -> None:
    ledger = Ledger(Scheduler(Blocks(100, 4)))
    first = Client(range(1, 8), limit=4)  # ten positions are computed: two blocks and a half
    assert positions(ledger, first) == 7
    whole = [*range(1, 8), *first.got]
    assert positions(ledger, Client([*whole[:9], 90, 91])) == 3  # another answer: full blocks alone
    assert positions(ledger, Client([*whole[:10], 92])) == 1
    assert positions(ledger, Client([*whole[:10], 93])) == 3  # who came before has gone on in it
    assert positions(ledger, Client([*whole[:10], 92, 94])) == 4  # and it is full by now: shared whole or not at all


def test_for_room_ahead_of_an_answer_nobody_gives_way() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(100, 4))
    stream, big, late = Client(range(1, 173), limit=12), Client(range(200, 411), limit=40), Client([5], limit=2)
    ledger = ask(scheduler, stream)
    ledger.step()
    assert scheduler.blocks.free == scheduler.blocks.empty == 54  # 53 hold the prompt, not what may come
    for client in (big, late):
        scheduler.add(client.request)
    ledger.step()
    assert scheduler.running[:2] == [stream.request, big.request]
    ledger.finish()
    assert [client.got for client in (stream, big, late)] == [client.wanted for client in (stream, big, late)]


def test_for_room_ahead_of_an_answer_nothing_known_is_forgotten() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(100, 4))
    first = Client(range(1, 81), limit=4)
    ledger = ask(scheduler, first)
    ledger.finish()
    scheduler.add(Client(range(100, 100 + 4 * 74), limit=60).request)  # of 79 blocks that were never used
    ledger.step()
    assert scheduler.blocks.empty == 0
    assert scheduler.blocks.free == 21  # all of the first one's, the begun one too


@pytest.mark.parametrize(("share", "counts"), [(True, [2, 4, 4, 1]), (False, [2, 4, 4, 4])])
def test_a_block_that_was_begun_is_found_in_its_scope_alone(share: bool, counts: list[int]) -> None:
    ledger = Ledger(Scheduler(Blocks(100, 4), share=share))
    first = Client([5, 6], limit=2, scope="a")
    others = [Client([5, 6, following([5, 6]), 9], scope=scope) for scope in (None, "b", "a")]
    assert [positions(ledger, client) for client in (first, *others)] == counts


@pytest.mark.parametrize("whole", [16, 60, 400])  # less than a prompt at once, more than one, all of them
def test_prompts_that_come_together_are_computed_once(whole: int) -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(100, 4), piece=8, whole=whole)
    clients = [Client(range(1, 41), limit=3) for _ in range(4)]
    other = Client(range(50, 60), limit=3)
    ledger = ask(scheduler, *clients, other)
    ledger.finish()
    assert all(client.got == client.wanted for client in (*clients, other))
    prompts = [sum(step.get(client.request, 0) for step in ledger.steps) - 2 for client in clients]
    assert prompts == [40, 4, 4, 4]  # one position is always computed, and blocks are shared whole
    assert scheduler.blocks.free == 100


def test_a_pool_that_is_full_takes_from_the_youngest_and_nobody_starves() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(10, 2))
    clients = [Client(range(10 * at, 10 * at + 5), limit=12) for at in range(1, 6)]
    ledger = ask(scheduler, *clients)
    ledger.finish()
    assert [client.got for client in clients] == [client.wanted for client in clients]
    ends = [max(at for at, step in enumerate(ledger.steps) if client.request in step) for client in clients]
    assert ends == sorted(ends)
    assert scheduler.blocks.free == 10


def test_no_more_than_the_rows_run() -> None:
    ledger = ask(Scheduler(Blocks(100, 4), rows=3), *(Client(range(9 * at, 9 * at + 9)) for at in range(8)))
    ledger.finish()
    assert max(len(step) for step in ledger.steps) == 3


def test_a_request_for_which_there_is_no_room_is_not_overtaken() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(8, 2))
    small, large, late = Client(range(1, 7), limit=6), Client(range(20, 32), limit=2), Client(range(40, 42), limit=2)
    ledger = ask(scheduler, small, large, late)
    ledger.finish()
    begins = [min(at for at, step in enumerate(ledger.steps) if one.request in step) for one in (small, large, late)]
    assert begins == sorted(begins)
    assert [one.got for one in (small, large, late)] == [one.wanted for one in (small, large, late)]


def test_an_error_ends_one_or_all() -> None:
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4))
    one, two = Client(range(1, 9)), Client(range(20, 29))
    ask(scheduler, one, two)
    scheduler.next()
    scheduler.took([[EngineError("no number")], [Token(5)]])
    assert isinstance(one.error, EngineError)
    assert two.got == [5]
    scheduler.fail(lambda: EngineError("all"))
    assert isinstance(two.error, EngineError)
    assert scheduler.blocks.free == 20
    assert not scheduler.busy


@pytest.mark.parametrize("what", ["name", "release"])
def test_who_could_not_be_ended_is_still_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody knows of it any more: it waits for ever, and its blocks with it."""
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4))
    client = Client(range(1, 6), limit=2)
    ledger = ask(scheduler, client)
    ledger.step()
    whole = getattr(Blocks, what)
    failures = [MemoryError()]

    def failing(blocks: Blocks, *given: object) -> object:
        if failures:
            raise failures.pop()
        return whole(blocks, *given)

    monkeypatch.setattr(Blocks, what, failing)
    with pytest.raises(MemoryError):
        ledger.step()
    scheduler.fail(lambda: EngineError("all"))
    assert isinstance(client.error, EngineError)
    assert scheduler.blocks.free == 20


def test_whose_blocks_could_not_be_taken_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one needs them: while they are taken it must be among those that run or among those that wait."""
    scheduler: Scheduler[None] = Scheduler(Blocks(10, 2))
    clients = [Client(range(10 * at, 10 * at + 5), limit=12) for at in range(1, 6)]
    ledger, whole = ask(scheduler, *clients), Scheduler._give_way

    def failing(blocks: Blocks, _: object) -> None:
        raise MemoryError

    def giving_way(scheduler: Scheduler[None], request: Request[None]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Blocks, "release", failing)
            whole(scheduler, request)

    monkeypatch.setattr(Scheduler, "_give_way", giving_way)
    with pytest.raises(MemoryError):
        ledger.finish()
    scheduler.fail(lambda: EngineError("all"))
    assert all(client.error or client.got == client.wanted for client in clients)
    assert scheduler.blocks.free == 10


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 14), st.integers(1, 8), st.integers(0, 30), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    count=st.integers(11, 24),
    piece=st.integers(1, 9),
    rows=st.integers(1, 5),
    ahead=st.integers(0, 6),
)
def test_whatever_comes_all_get_what_they_would_get_alone(
    asked: list[tuple[int, int, int, int, bool]], count: int, piece: int, rows: int, ahead: int
) -> None:
    all_get_what_they_would_get_alone(asked, count, piece, rows, ahead)


def all_get_what_they_would_get_alone(
    asked: Sequence[tuple[int, int, int, int, bool]], count: int, piece: int, rows: int, ahead: int
) -> None:
    """Of each: what its prompt repeats, how often, its limit, when it comes, and whether it leaves."""
    scheduler: Scheduler[None] = Scheduler(Blocks(count, 2), piece=piece, rows=rows, ahead=ahead)
    scheduler.costs = Free()
    ledger = Ledger(scheduler)
    clients = [(Client([start] * size, limit), when, leaves) for start, size, limit, when, leaves in asked]
    for step in range(2000):
        for client, when, leaves in clients:
            if when == step:
                scheduler.add(client.request)
            if leaves and when + 3 == step:
                client.request.left = True
        ledger.step()
        if step > 31 and not scheduler.busy:
            break
    for client, _, leaves in clients:
        assert client.done == 1
        assert client.got == client.wanted[: len(client.got)]
        assert leaves or client.got == client.wanted
    assert scheduler.blocks.free == count


def test_guesses_that_come_are_steps_less() -> None:
    """An answer that repeats its prompt, as far as the blocks show."""
    scheduler: Scheduler[None] = Scheduler(Blocks(20, 4), ahead=6)
    scheduler.costs = Free()
    got: list[int] = []
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    request: Request[None] = Request(
        Prompt([TokenSpan(tuple(ids))]), 14, frozenset({END}), lambda said: got.append(said.id) if said else None, None
    )
    scheduler.add(request)
    steps = 0
    while scheduler.busy:
        steps += 1
        tokens = []
        for run in scheduler.next():
            assert all(at // 4 < len(run.blocks) for at in range(run.start + run.count))
            tokens.append([Token(1 + (len(request.keys) + at) % 8) for at in range(1 + len(run.draft))])
        scheduler.took(tokens)
    assert got == [3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]
    assert steps == 3  # the prompt and one, one and six, five: one id is always left to draw
    assert (scheduler.drafted, scheduler.accepted) == (11, 11)


class Free(Costs):
    """Guessing costs nothing."""

    def rows(self, answers: int, chances: Sequence[float]) -> int:
        return len(chances)


@pytest.mark.parametrize("module", ["scheduler", "blocks", "speculation"])
def test_no_torch_is_imported(module: str) -> None:
    program = f"import sys, trifocal.engines.{module}; print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert shown.stdout.strip() == "False"


def test_its_twin_that_finds_others_blocks_is_found() -> None:
    crowd = [(1, 8, 4, 0, False), (2, 8, 4, 9, False), (3, 8, 4, 9, False)]
    anybodys = lambda blocks, names: list(blocks._named.values())[:1]  # noqa: E731
    is_found(lambda: all_get_what_they_would_get_alone(crowd, 24, 4, 5, 0), Blocks, "find", anybodys)
