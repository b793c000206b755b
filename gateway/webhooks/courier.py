"""Sends one endpoint what is in its queue: of many users at once, and of each user one event after the other."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import StoreUnavailableError
from gateway.runtime.measures import Histogram
from gateway.webhooks.outbox import BEGIN, Letter
from gateway.webhooks.post import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.runtime.timers import Scheduler
    from gateway.webhooks.outbox import Outbox, Waiting
    from gateway.webhooks.post import Poster

_log = structlog.get_logger(__name__)

PAGE = 500
"""Events that are read at once."""

FIRST_RETRY = 1.0
"""Seconds until a failed event is sent again; they double with each failure."""

LONGEST_RETRY = 60.0
"""Seconds between two attempts at the most, unless the endpoint asks for more by ``Retry-After``."""

RESCAN = 30.0
"""Seconds after which the queue is compared with the courier's copy of it: a failover may have changed it."""

PAUSE = 0.5
"""Seconds until a command that the outbox could not be given is repeated."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How events are sent to an endpoint."""

    timeout: float = 10.0
    """Seconds that one attempt may take."""
    retry_for: float = 900.0
    """Seconds after its first attempt in which an event is tried again; then it becomes a dead letter."""
    concurrency: int = 8
    """Requests at the same time."""


class Counts:
    """Counts what this node has sent to one endpoint. All begin at 0, so that Prometheus sees their first rise."""

    def __init__(self) -> None:
        self.sent = 0
        """Events that the endpoint has accepted."""
        self.failed = 0
        """Attempts that it did not answer with 2xx."""
        self.retried = 0
        """Attempts that were not an event's first."""
        self.dead = 0
        """Events that became dead letters."""
        self.dropped = 0
        """Dead letters that were dropped to make room for newer ones."""
        self.seconds = Histogram()
        """Seconds that an attempt took."""


class _Lane:
    """The events of one user (more exactly, of one `Message.key`), which are sent one after the other."""

    __slots__ = ("attempts", "events", "in_flight", "key", "since")

    def __init__(self, key: str) -> None:
        self.key = key
        self.events: deque[Waiting] = deque()
        """Never empty: a lane is deleted with its last event."""
        self.attempts = 0
        """How often the first event has been sent."""
        self.since = 0.0
        """When the first event was first sent, by `Courier._elapsed`."""
        self.in_flight = False
        """Whether the first event is being sent now."""


class Courier:
    """Sends what is in one endpoint's queue.

    A failing event holds back later events of the same user, and nobody else's. An endpoint that says that it is busy
    (429 or 503, with ``Retry-After``) is sent nothing for that time. One that says that it is gone (410) is sent
    nothing until an operator resumes it.

    Args:
        name: the endpoint's name.
        outbox: where its queue is.
        post: sends one event.
        policy: how often, and for how long.
        clock: the time, in Unix milliseconds.
        counts: counts what becomes of the events.
        scheduler: the event loop.
        jitter: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        post: Poster,
        policy: Policy,
        clock: Callable[[], int],
        counts: Counts,
        scheduler: Scheduler,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.stopped: str | None = None
        """Why nothing is sent; None if events are sent."""
        self.dead = 0
        """How many dead letters are kept, as of the last `look`."""
        self._outbox = outbox
        self._post = post
        self._policy = policy
        self._clock = clock
        self._counts = counts
        self._scheduler = scheduler
        self._jitter = jitter
        self._failing = False
        """Whether the last attempt failed; the log says when that changes."""
        self._stopped_anew = False
        """Whether the endpoint was stopped here since the last `look`: its next argument may be older than that."""
        self._known: dict[str, Waiting] = {}
        """This courier's copy of the queue: the events by place, in order."""
        self._after = BEGIN
        """The place up to which the queue has been read."""
        self._scanned_at = scheduler.time()
        self._lanes: dict[str, _Lane] = {}
        """By key."""
        self._ready: asyncio.Queue[_Lane] = asyncio.Queue()
        """Lanes whose first event is to be sent now. One that was deleted meanwhile may still be among them."""
        self._paused_until = 0.0
        """Until when, by the loop's clock, the endpoint has asked to be sent nothing."""
        self._idle = 0.0
        """Seconds of such pauses since the start."""
        self._open = asyncio.Event()
        """Set while events may be sent: the endpoint is neither stopped nor paused."""
        self._open.set()

    @property
    def waiting(self) -> int:
        """How many events wait, as far as this courier knows."""
        return len(self._known)

    @property
    def oldest_at(self) -> int | None:
        """When the first event in the queue was committed, in Unix milliseconds; None if the queue is empty."""
        first = next(iter(self._known.values()), None)
        return None if first is None else first.message.at

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._policy.concurrency):
                tasks.create_task(self._work())

    async def look(self, waiting: int, stopped: str | None, dead: int = 0) -> None:
        """Read what is new in the queue.

        Args:
            waiting: how many events the queue has.
            stopped: why the endpoint is stopped; None if it is not.
            dead: how many dead letters are kept.

        Raises:
            StoreUnavailableError: the queue cannot be read now.
        """
        self.dead = dead
        if stopped != self.stopped and not (stopped is None and self._stopped_anew):
            self._set_stopped(stopped)
        self._stopped_anew = False
        places: set[str] | None = None
        if self._scheduler.time() - self._scanned_at >= RESCAN:
            self._scanned_at = self._scheduler.time()
            if waiting != len(self._known):
                places, self._after = set(), BEGIN
        await self._read_on(places)
        if places is not None:  # it was full, or lost what it held
            self._let_go([place for place in self._known if place not in places])
        elif len(self._known) > waiting:
            await self._follow_head()

    async def _read_on(self, places: set[str] | None) -> None:
        """Read the queue to its end, and add to `places`, where they are wanted, what is there."""
        while found := await self._outbox.read(self.name, self._after, PAGE):
            for each in found:
                if each.place not in self._known:
                    self._add(each)
            if places is not None:
                places.update(each.place for each in found)
            self._after = found[-1].place
            if len(found) < PAGE:
                break

    def _add(self, each: Waiting) -> None:
        self._known[each.place] = each
        lane = self._lanes.get(each.message.key)
        if lane is None:
            lane = self._lanes[each.message.key] = _Lane(each.message.key)
            self._ready.put_nowait(lane)
        lane.events.append(each)

    async def _follow_head(self) -> None:
        """Let go of what was before the first in the queue: that was full, and its oldest are dead letters."""
        found = await self._outbox.read(self.name, BEGIN, 1)
        first = found[0].place if found else None
        if first is None or first in self._known:  # otherwise it was sent just now, and the next look has another
            self._let_go(takewhile(lambda place: place != first, tuple(self._known)))

    def _let_go(self, places: Iterable[str]) -> None:
        """Let go of what is in the queue no more, but for what is being sent."""
        gone: dict[str, set[str]] = {}
        for place in places:
            lane = self._lanes[self._known[place].message.key]
            if not lane.in_flight or place != lane.events[0].place:
                del self._known[place]
                gone.setdefault(lane.key, set()).add(place)
        for key, those in gone.items():
            lane = self._lanes[key]
            if lane.events[0].place in those:
                lane.attempts = 0
            lane.events = deque(each for each in lane.events if each.place not in those)
            if not lane.events:
                del self._lanes[key]

    async def _work(self) -> None:
        while True:
            lane = await self._ready.get()
            await self._open.wait()
            if self._lanes.get(lane.key) is lane:
                lane.in_flight = True
                await self._send(lane)
                lane.in_flight = False

    async def _send(self, lane: _Lane) -> None:
        """Send the first event of a lane once, and schedule what comes next."""
        first = lane.events[0]
        if lane.attempts:
            self._counts.retried += 1
        else:
            lane.since = self._elapsed()
        lane.attempts += 1
        began = self._scheduler.time()
        try:
            answer = await self._post(first.message, self._clock())
        except Exception:
            _log.exception("a webhook could not be sent", endpoint=self.name, id=first.message.id)
            answer = Answer("the gateway failed to send it; its log says why")
        self._counts.seconds.observe(self._scheduler.time() - began)
        self._note(answer)
        if answer.reason is None:
            self._counts.sent += 1
            await self._tell(partial(self._outbox.done, self.name, first.place))
            self._go_on(lane)
        else:
            self._counts.failed += 1
            await self._fail(lane, answer, answer.reason)

    def _note(self, answer: Answer) -> None:
        """Log when the endpoint begins to fail, and when it works again."""
        if (answer.reason is not None) == self._failing:
            return
        self._failing = answer.reason is not None
        if self._failing:
            _log.warning("a webhook failed; it will be sent again", endpoint=self.name, reason=answer.reason)
        else:
            _log.info("a webhook endpoint takes what it is sent again", endpoint=self.name)

    def _elapsed(self) -> float:
        """A clock, in seconds, that stands still while the endpoint has asked to be sent nothing."""
        return self._scheduler.time() - self._idle

    async def _fail(self, lane: _Lane, answer: Answer, reason: str) -> None:
        if answer.gone:
            lane.attempts = 0  # the endpoint is at fault, so the event has all its attempts left
            await self._tell(partial(self._outbox.stop, self.name, reason))
            if self.stopped is None:
                self._stopped_anew = True
                self._set_stopped(reason)
            self._ready.put_nowait(lane)
            return
        elapsed = self._elapsed() - lane.since
        if answer.busy and answer.retry_after is not None:
            self._pause(answer.retry_after)
        if elapsed >= self._policy.retry_for:
            await self._bury(lane, reason)
            self._go_on(lane)
            return
        wait = min(FIRST_RETRY * 2.0 ** min(lane.attempts - 1, 16), LONGEST_RETRY) * (0.5 + self._jitter() / 2)
        wait = max(wait, answer.retry_after or 0.0)
        self._scheduler.call_at(self._scheduler.time() + wait, partial(self._ready.put_nowait, lane))

    async def _bury(self, lane: _Lane, reason: str) -> None:
        first = lane.events[0]
        letter = Letter(message=first.message, reason=reason, attempts=lane.attempts, failed_at=self._clock())
        _log.warning(
            "a webhook was given up and is a dead letter now; `python -m gateway webhooks` lists and replays them",
            endpoint=self.name,
            id=first.message.id,
            attempts=lane.attempts,
            reason=reason,
        )
        dropped = 0

        async def bury() -> None:
            nonlocal dropped
            dropped = await self._outbox.bury(self.name, first.place, letter)

        await self._tell(bury)
        self._counts.dead += 1
        self._counts.dropped += dropped

    def _go_on(self, lane: _Lane) -> None:
        """Take the first event off a lane, and turn to the next."""
        self._known.pop(lane.events.popleft().place, None)
        lane.attempts = 0
        if lane.events:
            self._ready.put_nowait(lane)
        else:
            del self._lanes[lane.key]

    async def _tell(self, command: Callable[[], Awaitable[None]]) -> None:
        """Give the outbox a command, again until it succeeds: otherwise the event would be sent twice."""
        while True:
            try:
                return await command()
            except StoreUnavailableError:
                await asyncio.sleep(PAUSE)

    def _set_stopped(self, why: str | None) -> None:
        self.stopped = why
        if why is None:
            _log.info("a webhook endpoint was resumed", endpoint=self.name)
            for lane in self._lanes.values():  # the time to retry begins anew
                lane.attempts = 0
            self._open_if_due()
        else:
            self._open.clear()
            _log.error(
                "a webhook endpoint is gone, and is sent nothing more; its events wait until it is resumed by"
                " `python -m gateway webhooks resume` or POST /api/webhooks/resume",
                endpoint=self.name,
                reason=why,
            )

    def _pause(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
        now = self._scheduler.time()
        begin, until = max(now, self._paused_until), now + seconds
        if until > begin:
            self._idle += until - begin
            self._paused_until = until
            self._open.clear()
            self._scheduler.call_at(until, self._open_if_due)

    def _open_if_due(self) -> None:
        if self.stopped is None and self._scheduler.time() >= self._paused_until:
            self._open.set()
