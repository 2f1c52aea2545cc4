"""The one use case behind all dialects: admit, decode, answer, and let go when the client leaves."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from trifocal.api import tracing
from trifocal.api.admission import Admission, Place
from trifocal.api.caller import caller_of, pool_of, while_connected
from trifocal.api.errors import Refusal, refuse, server_busy, shutting_down
from trifocal.api.facts import Facts
from trifocal.api.fetch import Fetcher
from trifocal.api.host import Host, WorkerPool
from trifocal.api.jobs import Answers, Job, Step, steps_of
from trifocal.api.model import Model
from trifocal.api.models import Models, Offered
from trifocal.api.parameters import drawn
from trifocal.api.pump import Pump
from trifocal.api.room import Lease, Room
from trifocal.api.settings import ServerSettings
from trifocal.api.stored import StoredResponses
from trifocal.api.together import together
from trifocal.api.wire import Draft, Picture, Rows, Tagged, check_signs, decode, too_long
from trifocal.engines.base import State
from trifocal.images import Limits
from trifocal.messages import Message, Sampling
from trifocal.model.opening import Apart, open_model
from trifocal.model.talking import Ready

__all__ = ["SLOTS", "Server", "Serving", "Uses"]

log = logging.getLogger("trifocal.api")
Result = TypeVar("Result")
Item = TypeVar("Item")
SLOTS = 32  # answers at once, where the engine counts positions
PREPARING = 2  # threads that decode pictures and have them seen
AHEAD = 8  # requests whose pictures are decoded or seen and that do not run: what they hold is bounded


@dataclass(slots=True, eq=False)
class _Run:
    """A request that has a place: whose it is, and how to end it early."""

    caller: str
    stoppable: bool
    pump: Pump[Any] | None = None
    stopped: bool = False
    wait: asyncio.Timeout | None = None


class Server(Host):
    """A model with its admission, its worker threads and its counters; without one while it loads.

    What needs the engine takes a slot, and of its positions as many as prompt and answer may have. Before that pictures
    are fetched, decoded and seen, by few threads and for few requests at once: an answer's place is not paid for it.
    What only reads and counts has one thread and a queue of its own, so that it neither waits for answers nor keeps
    them waiting.
    """

    def __init__(self, llava: Model | None, settings: ServerSettings) -> None:
        per_key = settings.per_key if settings.keys else None
        slots = settings.slots or SLOTS
        answers = Admission(slots, settings.queue, per_key)
        super().__init__(
            settings,
            {
                "answers": WorkerPool(answers, ThreadPoolExecutor(slots, thread_name_prefix="answer")),
                "light": WorkerPool(
                    Admission(1, settings.queue, per_key), ThreadPoolExecutor(1, thread_name_prefix="answer-light")
                ),
            },
        )
        self._llava: Model | None = None
        self._facts = Facts()
        self._called: str | None = None
        self._models: Models[Server] | None = None
        self._all: Sequence[Server] = (self,)
        self._first = self  # which knows whether all of them end
        self.fetcher = Fetcher(settings.url_hosts, settings.image_bytes)
        self.responses = StoredResponses(settings.responses, settings.responses_bytes)
        self.started = int(time.time())
        self.image_limits = Limits(bytes=settings.image_bytes)
        self._room = Room(settings.decoded_bytes, settings.deadline)
        self._preparing = ThreadPoolExecutor(PREPARING, thread_name_prefix="answer-prepare")
        self._ahead = asyncio.Semaphore(AHEAD)
        self._runs: set[_Run] = set()
        self._threads = 0  # that work for a run, or for one that has left
        if llava is not None:
            self.take(llava)

    def take(self, llava: Model) -> None:
        """Serves this model from now on; until then there is none. In the event loop, or before it runs."""
        state = llava.state()
        self.admission.capacity = state.positions
        self.admission.slots = self.settings.slots or (SLOTS if state.positions or state.several else 1)
        self._llava = llava
        self._facts = Facts.of(llava)

    def put_away(self) -> None:
        """Serves no model until it is given one again."""
        self._llava = None

    def beside(self, name: str) -> Server:
        """A server for another model of the same process: with answers of its own, and all else in common."""
        other = copy.copy(self)
        answers = self.pools["answers"]
        slots = answers.admission.slots
        mine = Admission(slots, answers.admission.queue, answers.admission.per_caller)
        pool = WorkerPool(mine, ThreadPoolExecutor(slots, thread_name_prefix="answer"))
        other.pools, other.admission = {**self.pools, "answers": pool}, mine
        other._called, other._runs, other._threads = name, set(), 0
        self.metrics.admissions.append(mine)
        return other

    def offer(self, offers: Sequence[Offered]) -> None:
        """Serves several models, of which this one speaks for the first."""
        settings = self.settings
        self._called = offers[0].name
        apart = Apart(settings.replicas, settings.step_limit)
        models = Models(
            offers,
            self,
            lambda wanted: open_model(wanted, apart),
            memory=settings.memory_bytes,
            queue=settings.queue,
            aliases=settings.aliases,
        )
        for server in models.servers:
            server._models, server._all, server._first = models, models.servers, self

    def state(self) -> State:
        """How the model's engine is; one that is put away is as good as ready.

        Raises:
            Refusal: none was loaded yet.
        """
        if self._llava is None and self._models is not None and self._models.started:
            return State("ready")
        return self.llava.state()

    @property
    def all(self) -> Sequence[Server]:
        """The servers of all models that are offered, in order."""
        return self._all

    @property
    def models(self) -> Models[Server] | None:
        """Where several are offered, which."""
        return self._models

    @property
    def names(self) -> list[str]:
        """All names that a request may ask for."""
        return [*(server.name for server in self._all), *self.settings.aliases]

    @property
    def is_loaded(self) -> bool:
        """Whether the model is there now."""
        return self._llava is not None

    @property
    def facts(self) -> Facts:
        """What is known of the model, even while it is put away.

        Raises:
            Refusal: the one model that is served is not loaded yet.
        """
        if self._models is None:
            assert self.llava is not None
        return self._facts

    @asynccontextmanager
    async def using(self, name: str | None) -> AsyncGenerator[Server, None]:
        """The server of the model that a request asks for, which stays loaded meanwhile; see `Models.using`."""
        if self._models is None:
            yield self
            return
        async with self._models.using(name, self._patience) as server:
            yield server

    @property
    def llava(self) -> Model:
        """The model that is served.

        Raises:
            Refusal: it is not loaded yet.
        """
        if self._llava is None:
            raise server_busy("model_loading", "the model is loading; come back in a moment")
        return self._llava

    @property
    def name(self) -> str:
        """The served model's name."""
        return self._called or self.llava.name

    @property
    def bytes(self) -> int:
        """Of the weights as they are loaded, or were when they last were."""
        return self.facts.bytes

    @property
    def gpu_bytes(self) -> int:
        """Those of them that are not in the main memory."""
        return self.facts.gpu_bytes

    @property
    def digest(self) -> str:
        """A name for the served model by what it is made of: the same at every start."""
        return hashlib.sha256("\n".join((self.name, *self.facts.made)).encode("utf-8", "replace")).hexdigest()

    @property
    def modified(self) -> float:
        """When the language model's files were last changed; the server's start where nobody knows."""
        return float(self.started) if self.facts.modified is None else self.facts.modified

    @property
    def _patience(self) -> float:
        """Seconds for which a request that is ready waits for its place."""
        return min(self.settings.queue_wait, self.settings.deadline)

    @property
    def busy(self) -> bool:
        """Whether a request is under way, whichever model it asks."""
        return any(server.answering for server in self._all)

    @property
    def answering(self) -> bool:
        """Whether a request to this one's model is under way, or a thread that works on for one that has left."""
        return bool(self._runs or self._threads or self.admission.running or self.admission.waiting)

    @property
    def all_pools(self) -> Iterable[WorkerPool]:
        """Those of all models."""
        return {id(pool): pool for server in self._all for pool in server.pools.values()}.values()

    def check_model(self, given: str | None) -> None:
        """Refuses a request for another model than the served ones."""
        known = set(self.names)
        if given is not None and given not in known and given.removesuffix(":latest") not in known:
            names = ", ".join(sorted(known))
            raise Refusal(404, "model_not_found", f"there is no such model here; known: {names}", param="model")

    def sampling(self, **options: Any) -> Sampling:
        """The sampling of a request, its stop strings bounded; see `trifocal.api.parameters.drawn`."""
        options = drawn(**options)
        stop = options["stop"]
        if len(stop) > self.settings.stops or any(len(text) > self.settings.stop_characters for text in stop):
            allowed = f"{self.settings.stops} stop strings of {self.settings.stop_characters} characters"
            raise refuse("invalid_value", f"at most {allowed} are taken", "stop")
        return Sampling(**options)

    async def answer(self, request: Request, job: Job) -> Answers:
        """The answers to a job, after the first piece is there: what is refused is refused here.

        Raises:
            Refusal: no room, a deadline, a URL that is not fetched.
            TrifocalError: the request can't be done as asked.
            ClientGone: nobody waits for it any more.
        """
        pool_of(request, "answers")
        steps = self.steps(job, caller_of(request))
        try:
            first = await while_connected(request, anext(steps))
        except BaseException:
            await steps.aclose()
            raise
        return Answers(steps, first, job.answers)

    async def collect(self, request: Request, job: Job) -> list[tuple[str, Step]]:
        """Whole answers: the text and the last step of each, which has all the log-probabilities."""
        pool_of(request, "answers")
        return await while_connected(request, self._collected(job, caller_of(request)))

    async def count(self, request: Request, draft: Draft) -> int:
        """How many positions a raw prompt takes; no picture is looked at."""

        return await self.work(request, [draft], lambda messages: len(self.llava.outline(messages[0].parts)))

    async def work(self, request: Request, drafts: Sequence[Draft], do: Callable[[list[Message]], Result]) -> Result:
        """What ``do`` makes of a conversation, in a worker thread of the pool that the request's route names.

        Raises:
            Refusal: too much was sent, there is no room, a deadline.
            TrifocalError: a picture is refused, or what ``do`` raises.
            ClientGone: nobody waits for it any more.
        """
        self._check(drafts)
        pool = self.pools[pool_of(request)]

        def done(fetched: Sequence[Draft]) -> Generator[Result, None, None]:
            with self._room.lease() as lease:
                yield do(self._decoded(fetched, lease))

        async def begin(place: Place) -> Callable[[], Generator[Result, None, None]]:
            await place.run(0, self._patience)
            fetched = await self._fetched(drafts)
            return lambda: done(fetched)

        async def working() -> Result:
            run = _Run(caller_of(request), stoppable=False)
            async with aclosing(self._run(run, begin, pool)) as results:
                found: list[Result] = [result async for result in results]  # to its end: then the place is free
                return found[0]

        return await while_connected(request, working())

    async def steps(self, job: Job, caller: str) -> AsyncGenerator[Step, None]:
        """The steps of all answers. Closing it ends the work after the token that is being made."""
        self._check(job.drafts, job.offer.octets)
        if job.total > self.settings.answers:
            param = "n" if job.answers > self.settings.answers else "prompt"
            raise refuse("invalid_value", f"{job.total} answers; allowed are {self.settings.answers}", param)
        run = _Run(caller, job.stoppable)

        async def begin(place: Place) -> Callable[[], Generator[Step, None, None]]:
            async with self._getting_ready() as patience:
                drafts = await self._fetched(job.drafts)
                prepared = await place.during(self._preparing, self._prepared, job, drafts, self.scope(caller))
                await place.run(sum(asked.positions(job.answers) for asked in prepared), patience)
            return lambda: self._told(job, prepared)

        with tracing.span("trifocal.answer", answers=job.answers) as span:
            async with aclosing(self._run(run, begin, self.pools["answers"])) as steps:
                async for step in steps:
                    if step.end:
                        self.metrics.answered(step.end)
                        tracing.describe(span, step.end)
                    yield step

    def stop(self, caller: str) -> int:
        """Ends the stoppable runs of one caller, as if they had met a stop string; how many there were."""
        mine = [run for server in self._all for run in server._runs if run.stoppable and run.caller == caller]
        for run in mine:
            run.stopped = True
            if run.pump:
                run.pump.stop()
        return len(mine)

    def waits(self) -> Iterable[asyncio.Timeout]:
        """Those of bodies and of requests."""
        return (*self.reading, *(run.wait for server in self._all for run in server._runs if run.wait))

    def close(self) -> None:
        """Frees the worker threads."""
        super().close()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def _collected(self, job: Job, caller: str) -> list[tuple[str, Step]]:
        texts: list[list[str]] = [[] for _ in range(job.total)]
        last = [Step(index, "") for index in range(job.total)]
        async with aclosing(self.steps(job, caller)) as steps:
            async for step in steps:
                texts[step.index].append(step.text)
                last[step.index] = replace(step, logprobs=(*last[step.index].logprobs, *step.logprobs))
        return [("".join(text), step) for text, step in zip(texts, last, strict=True)]

    async def _run(
        self,
        run: _Run,
        begin: Callable[[Place], Coroutine[Any, Any, Callable[[], Generator[Item, None, None]]]],
        pool: WorkerPool,
    ) -> AsyncGenerator[Item, None]:
        """Runs what ``begin`` gives, once it has its place, in a thread and gives its items; the place goes with it."""
        if self._first.draining:
            raise shutting_down()
        deadline = asyncio.get_running_loop().time() + self.settings.deadline
        self._runs.add(run)
        try:
            place = pool.admission.enter(run.caller)
            try:
                start = await self._until(deadline, run, begin(place))

                def ended() -> None:
                    place.release()
                    self._threads -= 1

                run.pump = pump = Pump(start, pool.threads, ended, self.settings.write_seconds)
                self._threads += 1
            except BaseException:
                place.release()
                raise
            if run.stopped:
                pump.stop()
            while (item := await self._until(deadline, run, pump.next())) is not None:
                yield item
        finally:
            self._runs.discard(run)
            if run.pump:
                run.pump.stop()

    @asynccontextmanager
    async def _getting_ready(self) -> AsyncGenerator[float, None]:
        """The right to be one of the few that get ready; gives how many seconds of waiting are left.

        Raises:
            Refusal: the wait was too long.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        try:
            async with asyncio.timeout_at(until):
                await self._ahead.acquire()
        except TimeoutError as error:
            raise server_busy(message=f"no slot came free within {self._patience:g} s") from error
        try:
            yield max(until - loop.time(), 0)
        finally:
            self._ahead.release()

    async def _until(self, deadline: float, run: _Run, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of ``work``, unless the request's deadline or the server's end comes first."""
        try:
            async with asyncio.timeout_at(0 if self._first.cut else deadline) as run.wait:
                return await work
        except TimeoutError as error:
            if self._first.cut:
                raise shutting_down("the server shut down before the answer was whole") from error
            raise
        finally:
            run.wait = None

    def _check(self, drafts: Sequence[Draft], offered: int = 0) -> None:
        """Refuses what needs no look at the pictures; ``offered`` are the bytes of functions that may be called."""
        limits = self.settings
        count = sum(len(draft.pictures) for draft in drafts)
        if count > limits.images:
            raise refuse("too_many_images", f"{count} pictures; allowed are {limits.images}")
        parts = [part for draft in drafts for part in draft.parts]
        rows = [part for part in parts if isinstance(part, Rows)]
        if rows and not limits.image_embeds:
            words = "embeddings are not taken here: the server was started without --image-embeds"
            raise refuse("unsupported_parameter", words, rows[0].name)
        if offered + sum(draft.octets for draft in drafts) > limits.text_bytes:
            raise too_long(limits.text_bytes, "messages")
        for part in parts:
            if isinstance(part, Tagged):
                check_signs(part.text, "prompt")

    async def _fetched(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The drafts with the pictures behind URLs fetched."""
        return [
            replace(draft, parts=tuple([await self._fetch(part) for part in draft.parts])) if draft.pictures else draft
            for draft in drafts
        ]

    async def _fetch(self, part: str | Picture | Tagged) -> str | Picture | Tagged:
        if isinstance(part, Picture) and part.is_url:
            assert isinstance(part.source, str)
            return Picture(await self.fetcher.fetch(part.source, part.name), part.name)
        return part

    def _prepared(self, job: Job, drafts: Sequence[Draft], scope: str) -> list[Ready]:
        """What is done before a request has its place: pictures decoded and seen, texts written down."""
        with self._room.lease() as lease:
            messages = self._decoded(drafts, lease)
            talks = [[message] for message in messages] if job.raw else [messages]
            return [self.llava.prepare(self._written(job, talk), job.sampling, scope=scope) for talk in talks]

    def _told(self, job: Job, prepared: Sequence[Ready]) -> Generator[Step, None, None]:
        """All answers together, from what was seen once; the engine shares what their prompts have in common."""
        seed, answers = job.sampling.seed, range(job.answers)
        asked = [
            each if not index else each.again(None if seed is None else seed + index)
            for each in prepared
            for index in answers
        ]
        return together([steps_of(index, self.llava.tell(each), job) for index, each in enumerate(asked)])

    def _decoded(self, drafts: Sequence[Draft], lease: Lease) -> list[Message]:
        limits, sides = self.settings, replace(self.image_limits, taking=lease.take)
        return decode(drafts, sides, limits.images, limits.decoded_bytes, limits.text_bytes)

    def _written(self, job: Job, messages: list[Message]) -> Any:
        """What will be asked: outlined once, whatever the number of answers."""
        if job.raw:
            return self.llava.raw(messages[0].parts, room=job.room)
        template = job.template or self.llava.template
        return self.llava.write(
            messages,
            job.sampling.max_tokens,
            images=job.images,
            template=job.template,
            tools=() if job.offer.forced and not template.has_tools else job.offer.tools,
            room=job.room,
        )


async def _server(request: Request) -> Server:  # async, or FastAPI would ask for it in a thread
    """The server of the model that a request names; one that works with it has it loaded until its answer is out."""
    server: Server = request.app.state.server
    if server.models is None:
        return server
    body = getattr(request, "_json", None)
    given = body.get("model") or body.get("name") if isinstance(body, dict) else None
    given = given if isinstance(given, str) else request.query_params.get("model")
    if request.scope["trifocal.needs"].pool is None and "model" not in request.query_params:
        return server.models.named(given)
    uses: AsyncExitStack = request.scope["trifocal.uses"]
    return await uses.enter_async_context(server.using(given))


class Uses:
    """ASGI: what a request uses is given back when its answer is out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes it on."""
        async with AsyncExitStack() as uses:
            await self._app({**scope, "trifocal.uses": uses}, receive, send)


Serving = Annotated[Server, Depends(_server)]
