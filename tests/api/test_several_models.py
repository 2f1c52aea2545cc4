"""Several models behind one server: each loaded when it is asked for, put away for another, never while it answers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live import Gated, Live, error_of, make_llava, running

from trifocal.api.models import Offered, _Entry, offers_of
from trifocal.errors import CheckpointError, UsageError
from trifocal.model.llava import Llava
from trifocal.model.settings import Settings
from trifocal.placement import Part
from twins import is_found
from waiting import PATIENCE, until

SIZE = 100  # bytes of each model here
NAMES = ("first", "second", "third")


class Sized(Llava):
    """A model that takes so many bytes, and says when it was closed."""

    closed = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part of that size."""
        return (Part("language", "echo", "cpu", "float32", SIZE),)

    def close(self) -> None:
        """Remembers it."""
        self.closed = True


class Shop:
    """Opens models by their names, and knows each that it opened. Their files are as large as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in NAMES:
            (folder / name).mkdir()
            (folder / name / "model.safetensors").write_bytes(bytes(SIZE))
        self.opened: list[tuple[str, Sized]] = []
        self.gates: dict[str, threading.Event] = {}
        self.broken: set[str] = set()

    def open(self, settings: Settings, *_: object) -> Sized:
        name = Path(settings.checkpoint).name
        if gate := self.gates.get(name):
            assert gate.wait(PATIENCE)
        if name in self.broken:
            raise CheckpointError(f"{name}: there are no weights")
        made = make_llava(Gated(hidden=8))
        sized = Sized(made.checkpoint, made.composer, made.engine, made.template)
        self.opened.append((name, sized))
        return sized

    def last(self, name: str) -> Sized:
        """The one that was opened last under a name."""
        return [llava for opened, llava in self.opened if opened == name][-1]

    def engine(self, name: str) -> Gated:
        """Its engine."""
        engine = self.last(name).engine
        assert isinstance(engine, Gated)
        return engine

    @property
    def loads(self) -> Counter[str]:
        """How often each was opened."""
        return Counter(name for name, _ in self.opened)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    monkeypatch.setattr("trifocal.api.serving.open_model", shop.open)
    return shop


@contextmanager
def offering(shop: Shop, names: tuple[str, ...] = NAMES[:2], room: int = 1, **settings: Any) -> Iterator[Live]:
    """A server with these models, of which as many as there is room for are loaded together."""
    offers = [Offered(name, Settings(checkpoint=str(shop.folder / name))) for name in names]
    first = shop.open(offers[0].settings)
    settings = {"slots": 4, **settings}
    with running(first, offers=offers, memory_bytes=SIZE * room if room > 1 else 0, **settings) as live:
        yield live


def ask(live: Live, model: str | None, words: str = "hello there") -> Any:
    body = {"messages": [{"role": "user", "content": words}], **({"model": model} if model else {})}
    with live.client() as client:
        return client.post("/v1/chat/completions", json=body)


def answered(live: Live, model: str | None) -> str:
    """Who answered."""
    answer = ask(live, model)
    assert answer.status_code == 200, answer.text
    assert "hello there" in answer.json()["choices"][0]["message"]["content"]
    return str(answer.json()["model"])


def test_all_are_listed_and_only_what_is_asked_for_is_loaded(shop: Shop) -> None:
    with offering(shop, NAMES, aliases=("nick",)) as live, live.client() as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [*NAMES, "nick"]
        assert client.get("/v1/models/third").json()["id"] == "third"
        assert [each["name"] for each in client.get("/api/tags").json()["models"]] == [*NAMES, "nick"]
        assert [each["name"] for each in client.get("/api/ps").json()["models"]] == ["first", "nick"]
        assert client.get("/v1/internal/model/list").json()["model_names"] == [*NAMES, "nick"]
        assert client.post("/api/show", json={"model": "second"}).status_code == 200
        assert client.get("/readyz").status_code == 200
        told = error_of(ask(live, "fourth"), 404)["message"]
        assert all(name in told for name in NAMES)
        assert shop.loads == {"first": 1}
        assert [answered(live, name) for name in ("nick", None, "first")] == ["first"] * 3
        assert shop.loads == {"first": 1}


def test_one_makes_room_for_another(shop: Shop) -> None:
    with offering(shop) as live:
        first = shop.last("first")
        assert answered(live, "second") == "second"
        assert first.closed
        assert answered(live, "second:latest") == "second"
        assert answered(live, "first") == "first"
        assert shop.loads == {"first": 2, "second": 1}
        with live.client() as client:
            assert [each["name"] for each in client.get("/api/ps").json()["models"]] == ["first"]
            sizes = {each["name"]: each["size"] for each in client.get("/api/tags").json()["models"]}
        assert sizes == {"first": SIZE, "second": SIZE}


def test_as_many_stay_as_fit_and_the_longest_unused_goes(shop: Shop) -> None:
    with offering(shop, NAMES, room=2) as live:
        for name in ("second", "first", "third", "first", "third"):
            assert answered(live, name) == name
        assert shop.loads == {"first": 1, "second": 1, "third": 1}
        assert shop.last("second").closed


def test_what_nobody_knows_the_size_of_comes_alone_at_first(shop: Shop) -> None:
    (shop.folder / "second" / "model.safetensors").unlink()
    (shop.folder / "second").rmdir()
    with offering(shop, room=2) as live:
        first = shop.last("first")
        assert answered(live, "second") == "second"
        assert first.closed
        assert [answered(live, name) for name in ("first", "second")] == ["first", "second"]
        assert shop.loads == {"first": 2, "second": 1}  # now it is known


def test_none_is_put_away_while_it_answers_and_none_waits_for_ever(shop: Shop) -> None:
    with offering(shop) as live, ThreadPoolExecutor(4) as pool:
        first, engine = shop.last("first"), shop.engine("first")
        engine.gate.clear()
        running_one = pool.submit(answered, live, "first")
        until(lambda: engine.open, "the answer")
        other = pool.submit(answered, live, "second")
        until(lambda: live.server.models.phases["second"] == "loading", "the wait")
        later = pool.submit(answered, live, "first")  # must not go on before the one that waits
        until(lambda: live.server.models.phases["first"] == "ready", "the first")
        assert not first.closed
        assert not other.done()
        engine.gate.set()
        assert [each.result(PATIENCE) for each in (running_one, other, later)] == ["first", "second", "first"]
        assert first.closed


def is_kept_while_it_answers(shop: Shop) -> None:
    """One that answers is there until it has, whoever wants another meanwhile."""
    with offering(shop) as live, ThreadPoolExecutor(2) as pool:
        first, engine, before = shop.last("first"), shop.engine("first"), shop.loads["second"]
        engine.gate.clear()
        running_one = pool.submit(answered, live, "first")
        until(lambda: engine.open, "the answer")
        other = pool.submit(answered, live, "second")
        models = live.server.models
        waits = lambda: models._crowded and not models._entries["first"].idle  # noqa: E731
        until(lambda: waits() or shop.loads["second"] > before, "the wish for the other")
        kept = not first.closed
        engine.gate.set()
        told = [each.exception(PATIENCE) for each in (running_one, other)]
        assert (kept, told) == (True, [None, None])


def test_its_twin_that_puts_away_what_answers_is_found(shop: Shop) -> None:
    is_found(lambda: is_kept_while_it_answers(shop), _Entry, "idle", property(lambda entry: True))


def test_a_stream_is_never_cut_by_a_switch(shop: Shop) -> None:
    words = "word " * 40
    body = {"messages": [{"role": "user", "content": words}], "model": "first", "stream": True}
    with offering(shop) as live, ThreadPoolExecutor(1) as pool, live.client() as client:
        engine, permits = shop.engine("first"), threading.Semaphore(20)
        engine.gate.wait = lambda timeout: permits.acquire(timeout=timeout)  # type: ignore[method-assign,misc]
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            other = pool.submit(answered, live, "second")
            until(lambda: live.server.models.phases["second"] == "loading", "the wait")
            permits.release(1000)
            assert "[DONE]" in "\n".join(lines)
        assert other.result(PATIENCE) == "second"


def test_a_client_that_leaves_holds_nothing(shop: Shop) -> None:
    body = {"messages": [{"role": "user", "content": "one two three"}], "stream": True}
    with offering(shop) as live, live.client() as client:
        for name in ("first", "second") * 3:
            with client.stream("POST", "/v1/chat/completions", json={**body, "model": name}) as stream:
                next(stream.iter_lines())
        assert answered(live, "first") == "first"
        assert live.settled()


def test_a_crowd_that_wants_both_is_served_in_groups(shop: Shop) -> None:
    wanted = [NAMES[at % 2] for at in range(24)]
    with offering(shop, queue=64) as live, ThreadPoolExecutor(len(wanted)) as pool:
        assert list(pool.map(lambda name: answered(live, name), wanted)) == wanted
        assert sum(shop.loads.values()) < len(wanted)
        assert sum(not llava.closed for _, llava in shop.opened) == 1


def test_what_loads_too_long_is_told_and_comes_nevertheless(shop: Shop) -> None:
    shop.gates["second"] = threading.Event()
    with offering(shop, room=2, queue_wait=0.2) as live:
        error = error_of(ask(live, "second"), 503)
        assert error["code"] == "model_loading"
        assert "second is loading" in error["message"]
        assert answered(live, "first") == "first"  # there is room for both: it goes on meanwhile
        shop.gates["second"].set()
        until(lambda: live.server.models.phases["second"] == "ready", "the second")
        assert answered(live, "second") == "second"
        assert shop.loads["second"] == 1


def test_one_that_cannot_be_loaded_says_so_and_hurts_no_other(shop: Shop) -> None:
    shop.broken.add("second")
    with offering(shop) as live:
        for _ in range(2):
            error = error_of(ask(live, "second"), 503)
            assert error["code"] == "model_failed"
            assert "second can't be loaded" in error["message"]
        assert answered(live, "first") == "first"
        shop.broken.clear()
        assert answered(live, "second") == "second"


def test_too_many_who_wait_are_sent_away(shop: Shop) -> None:
    shop.gates["second"] = threading.Event()
    with offering(shop, queue=1, room=2) as live, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(answered, live, "second") for _ in range(2)]
        until(lambda: live.server.models.waiting == 2, "both")
        assert error_of(ask(live, "second"), 503)["code"] == "server_busy"
        shop.gates["second"].set()
        assert [each.result(PATIENCE) for each in waiting] == ["second"] * 2


def test_the_legacy_socket_asks_the_first(shop: Shop) -> None:
    with offering(shop) as live:
        assert answered(live, "second") == "second"
        with live.client() as client:
            told = client.post("/api/v1/generate", json={"prompt": "hello there"}).json()
        assert "hello there" in told["results"][0]["text"]
        assert shop.loads["first"] == 2


def test_offers_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    for folder in ("a/same", "b/same"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UsageError, match="two models are called same"):
        offers_of(Settings(), [str(tmp_path / "a/same"), str(tmp_path / "b/same")])
    with pytest.raises(UsageError, match="--tower-from takes a part of one model"):
        offers_of(Settings(tower_from="x"), ["one", "two"])
    assert [each.name for each in offers_of(Settings(), [str(tmp_path / "a/same"), "org/name"])] == ["same", "org/name"]
