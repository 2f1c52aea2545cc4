"""Who runs and who waits, counted in positions; no server is needed."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live import Gated, data_uri, error_of, make_llava, png, running, user

from trifocal.api.admission import Admission
from trifocal.api.errors import Refusal
from trifocal.api.settings import hash_key
from trifocal.engines.base import State
from trifocal.web import routes
from waiting import PATIENCE, until


def tried(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_positions_are_counted_and_nobody_overtakes() -> None:
    async def main() -> None:
        admission = Admission(8, 8, capacity=100)
        first, large, small = (admission.enter("-") for _ in range(3))
        await first.run(60, 1)
        waits = [asyncio.create_task(large.run(50, 5)), asyncio.create_task(small.run(10, 5))]
        await asyncio.sleep(0.01)
        assert (admission.running, admission.waiting, admission.positions) == (1, 2, 60)
        first.release()
        await asyncio.gather(*waits)
        assert (admission.running, admission.waiting, admission.positions) == (2, 0, 60)
        for place in (large, small, small):
            place.release()
        assert (admission.running, admission.waiting, admission.positions) == (0, 0, 0)

    tried(main())


def test_what_is_alone_too_much_runs_alone_and_slots_bound_all() -> None:
    async def main() -> None:
        admission = Admission(2, 8, capacity=100)
        whole = admission.enter("-")
        await whole.run(150, 1)
        other = admission.enter("-")
        with pytest.raises(Refusal, match="server_busy"):
            await other.run(1, 0.02)
        whole.release()
        await other.run(1, 1)
        await admission.enter("-").run(1, 1)
        with pytest.raises(Refusal, match="server_busy"):
            await admission.enter("-").run(1, 0.02)

    tried(main())


def test_who_leaves_while_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        admission = Admission(1, 2, capacity=100)
        first, second = admission.enter("a"), admission.enter("b")
        await first.run(10, 1)
        wait = asyncio.create_task(second.run(10, 5))
        await asyncio.sleep(0)
        first.release()  # its turn comes in the moment in which it leaves
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        second.release()
        assert (admission.running, admission.waiting, admission.positions) == (0, 0, 0)

    tried(main())


def test_a_place_is_taken_as_long_as_a_thread_works_for_it() -> None:
    async def main(threads: ThreadPoolExecutor) -> None:
        admission, gate = Admission(2, 2), threading.Event()
        first, second = admission.enter("a"), admission.enter("b")
        running = asyncio.create_task(first.during(threads, gate.wait, PATIENCE))
        waiting = asyncio.create_task(second.during(threads, gate.wait, PATIENCE))  # there is one thread
        await asyncio.sleep(0)
        for task, place in ((running, first), (waiting, second)):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            place.release()
            place.release()
        assert admission.waiting == 1  # what had not begun never will
        gate.set()
        while admission.waiting:
            await asyncio.sleep(0.001)
        assert (admission.running, admission.waiting) == (0, 0)

    with ThreadPoolExecutor(1) as threads:
        tried(asyncio.wait_for(main(threads), PATIENCE))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_many_all_places_come_back(seed: int) -> None:
    """Requests that leave, are refused, wait too long or give back twice, at odd moments."""
    dice = random.Random(seed)

    async def request(admission: Admission, caller: str) -> None:
        try:
            place = admission.enter(caller)
        except Refusal:
            return
        try:
            await place.run(dice.choice([0, 5, 40, 200]), dice.choice([0, 0, 0.001, 1]))
            assert admission.running <= admission.slots
            assert admission.running == 1 or admission.positions <= 100
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
        except Refusal:
            pass
        finally:
            place.release()
            if dice.random() < 0.5:
                place.release()

    async def main() -> None:
        admission = Admission(3, 40, per_caller=20, capacity=100)
        tasks = []
        for number in range(600):
            tasks.append(asyncio.create_task(request(admission, "ab"[number % 2])))
            if dice.random() < 0.3:
                dice.choice(tasks[-20:]).cancel()
            if dice.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]
        assert (admission.running, admission.waiting, admission.positions) == (0, 0, 0)

    tried(main())


def test_whoever_has_his_answer_can_ask_again_at_once() -> None:
    """With one request a key, a place that is given back behind the answer refuses the next question."""
    key = "k" * 20
    with running(keys=frozenset([hash_key(key)]), per_key=1) as live, live.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for _ in range(100):
            assert client.post("/v1/internal/token-count", json={"text": "Hi"}).status_code == 200
        for _ in range(20):
            answer = {"messages": [user("Hi")], "max_tokens": 1}
            assert client.post("/v1/chat/completions", json=answer).status_code == 200


def test_readyz_tells_the_engines_truth() -> None:
    engine = Gated(hidden=8)
    with running(make_llava(engine)) as live, live.client() as client:
        assert client.get("/readyz").status_code == 200
        state, engine.state = engine.state, lambda: State("failed", reason="no device")  # type: ignore[method-assign]
        assert "no device" in error_of(client.get("/readyz"), 503)["message"]
        engine.state = lambda: State("starting")  # type: ignore[method-assign]
        assert error_of(client.get("/readyz"), 503)["code"] == "engine_starting"
        engine.state = state  # type: ignore[method-assign]
        assert client.get("/readyz").status_code == 200
        engine.close()
        assert "closed" in error_of(client.get("/readyz"), 503)["message"]
        assert client.get("/livez").status_code == 200


def test_a_picture_is_seen_while_another_answer_has_the_only_place() -> None:
    engine = Gated(hidden=8)
    engine.gate.clear()
    llava = make_llava(engine)
    uri = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": uri}}]
    with running(llava, slots=1) as live, live.client() as client, live.client() as other:
        ask = lambda who, words: who.post("/v1/chat/completions", json={"messages": [user(*words)]})  # noqa: E731
        threads = [
            threading.Thread(target=ask, args=(client, ["Hold"])),
            threading.Thread(target=ask, args=(other, parts)),
        ]
        threads[0].start()
        until(lambda: engine.open == 1, "the first answer")
        threads[1].start()
        until(lambda: len(llava.gallery) == 1, "the picture is seen")
        assert (engine.open, live.server.admission.running, live.server.admission.waiting) == (1, 1, 1)
        engine.gate.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_who_leaves_the_head_of_the_line_lets_those_behind_in() -> None:
    async def main() -> None:
        admission = Admission(8, 8, capacity=100)
        first, large, small = (admission.enter("-") for _ in range(3))
        await first.run(60, 1)
        head, behind = asyncio.create_task(large.run(50, PATIENCE)), asyncio.create_task(small.run(10, PATIENCE))
        await asyncio.sleep(0)
        head.cancel()
        await asyncio.wait_for(behind, PATIENCE / 2)  # though the first one is not done
        assert (admission.running, admission.positions) == (2, 70)

    tried(main())


def test_an_error_that_nobody_waits_for_any_more_is_nobodys_surprise() -> None:
    """What fails in a thread after its request left is not logged by asyncio as an exception that nobody took."""

    async def main(threads: ThreadPoolExecutor) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        admission, gate = Admission(1, 1), threading.Event()

        def fails() -> None:
            assert gate.wait(PATIENCE)
            raise ValueError("a picture that is none")

        place = admission.enter("a")
        task = asyncio.create_task(place.during(threads, fails))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        place.release()
        gate.set()
        while admission.waiting:
            await asyncio.sleep(0.001)
        del place, task
        gc.collect()
        assert told == []

    with ThreadPoolExecutor(1) as threads:
        tried(asyncio.wait_for(main(threads), PATIENCE))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/page/api/count"])
def test_a_model_answers_until_the_thread_of_whoever_left_is_out(path: str) -> None:
    """A model that is asked for beside it must not put it away under that thread."""
    llava = make_llava()
    held, free = threading.Event(), threading.Event()
    looks = llava.gallery.vision.looks

    def slowly(*given: Any) -> Any:
        held.set()
        assert free.wait(PATIENCE)
        return looks(*given)

    llava.gallery.vision.looks = slowly  # type: ignore[method-assign]
    picture = {"type": "image_url", "image_url": {"url": data_uri()}}
    with running(llava, routes()) as live, live.client() as client:
        body = json.dumps({"messages": [user(picture)]}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", live.port), PATIENCE) as other:
            other.sendall(head + body)
            assert held.wait(PATIENCE)
        until(lambda: 'status="499"' in client.get("/metrics").text, "that it left")
        assert live.server.answering
        free.set()
        until(lambda: not live.server.answering, "the thread's end")
