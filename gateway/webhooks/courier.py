"""Sends one endpoint its queue: many users at once, each user's events one after the other."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import StoreUnavailableError
from gateway.runtime.measures import Histogram
from gateway.webhooks.outbox import BEGIN, Letter
from gateway.webhooks.post import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.runtime.timers import Scheduler
    from gateway.webhooks.outbox import Outbox, Waiting
    from gateway.webhooks.post import Poster

_log = structlog.get_logger(__name__)

PAGE = 500
"""Events that are read at once."""

FIRST_RETRY = 1.0
"""Seconds until an event is sent again; they double with each failure."""

LONGEST_RETRY = 60.0
"""Seconds between two attempts at the most, but for an endpoint that asks for more."""

RESCAN = 30.0
"""Seconds after which a queue is compared with what is known of it: a failover may have changed it."""

PAUSE = 0.5
"""Seconds until what the outbox could not be told is told again."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is sent to."""

    timeout: float = 10.0
    """Seconds that one attempt may take."""
    retry_for: float = 900.0
    """Seconds from its first attempt on in which an event is sent again."""
    concurrency: int = 8
    """Requests at once."""


class Counts:
    """What was sent to one endpoint by this node; each begins at 0, so that its first rise is seen as one."""

    def __init__(self) -> None:
        self.sent = 0
        """Events that the endpoint has taken."""
        self.failed = 0
        """Attempts that it did not answer with 2xx."""
        self.retried = 0
        """Attempts that were not an event's first."""
        self.dead = 0
        """Events that became dead letters."""
        self.dropped = 0
        """Dead letters that had to go for newer ones."""
        self.seconds = Histogram()
        """Seconds that an attempt took."""


class _Lane:
    """One user's events."""

    __slots__ = ("attempts", "events", "in_flight", "key", "since")

    def __init__(self, key: str) -> None:
        self.key = key
        self.events: deque[Waiting] = deque()
        """Never none: a lane without events is let go."""
        self.attempts = 0
        """How often the first has been sent."""
        self.since = 0.0
        """When it was first sent, as `Courier._elapsed` counts."""
        self.in_flight = False
        """Whether it is being sent now."""


class Courier:
    """Sends what is in one endpoint's queue.

    A failing event holds back those of its user behind it, and nobody else's. An endpoint that says that it is busy
    (429 or 503, with ``Retry-After``) is left alone for so long; one that is gone (410), until it is resumed.

    Args:
        name: whose queue.
        outbox: where it is.
        post: how an event is sent.
        policy: how often, and for how long.
        clock: the time, in Unix milliseconds.
        counts: what became of it.
        scheduler: the event loop.
        jitter: a number from 0 to 1, each time another.
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
        """Why nothing is sent; None where it is."""
        self.dead = 0
        """How many dead letters are kept, when last looked at."""
        self._outbox = outbox
        self._post = post
        self._policy = policy
        self._clock = clock
        self._counts = counts
        self._scheduler = scheduler
        self._jitter = jitter
        self._failing = False
        """Whether the last answer was none that takes an event; the log says when that changes."""
        self._stopped_anew = False
        """Whether it was stopped here since the last look, of which what was read before knows nothing."""
        self._known: dict[str, Waiting] = {}
        """What waits, by place, in order."""
        self._after = BEGIN
        self._scanned_at = scheduler.time()
        self._lanes: dict[str, _Lane] = {}
        self._ready: asyncio.Queue[_Lane] = asyncio.Queue()
        """Whose first event is to be sent; those that were let go of meanwhile are passed over."""
        self._paused_until = self._idle = 0.0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def waiting(self) -> int:
        """How many events are known to wait."""
        return len(self._known)

    @property
    def oldest_at(self) -> int | None:
        """When the oldest of them was committed, or what is sent again in its place, in Unix milliseconds."""
        first = next(iter(self._known.values()), None)
        return None if first is None else first.message.at

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._policy.concurrency):
                tasks.create_task(self._work())

    async def look(self, waiting: int, stopped: str | None, dead: int = 0) -> None:
        """Read what has come into the queue.

        Args:
            waiting: how many events it has.
            stopped: why nothing is to be sent; None where it is.
            dead: how many dead letters are kept.

        Raises:
            StoreUnavailableError: it cannot be read now.
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
        while found := await self._outbox.read(self.name, self._after, PAGE):
            for each in found:
                if each.place not in self._known:
                    self._add(each)
            if places is not None:
                places.update(each.place for each in found)
            self._after = found[-1].place
            if len(found) < PAGE:
                break
        if places is not None:
            self._keep_only(places)

    def _add(self, each: Waiting) -> None:
        self._known[each.place] = each
        lane = self._lanes.get(each.message.key)
        if lane is None:
            lane = self._lanes[each.message.key] = _Lane(each.message.key)
            self._ready.put_nowait(lane)
        lane.events.append(each)

    def _keep_only(self, places: set[str]) -> None:
        """Let go of what is in the queue no more: it was full, or lost what it held."""
        for lane in list(self._lanes.values()):
            first = lane.events[0]
            kept = [one for one in lane.events if one.place in places or (lane.in_flight and one is first)]
            if len(kept) < len(lane.events):
                for one in lane.events:
                    self._known.pop(one.place, None)
                self._known.update((one.place, one) for one in kept)
                lane.events = deque(kept)
                if not kept:
                    del self._lanes[lane.key]
                elif kept[0] is not first:
                    lane.attempts = 0

    async def _work(self) -> None:
        while True:
            lane = await self._ready.get()
            await self._open.wait()
            if self._lanes.get(lane.key) is lane:
                lane.in_flight = True
                await self._send(lane)
                lane.in_flight = False

    async def _send(self, lane: _Lane) -> None:
        """Send a user's first event once, and see to what comes next."""
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
            answer = Answer("it could not be sent; the gateway's log says why")
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
        """Say when an endpoint begins to fail, and when that is over."""
        if (answer.reason is not None) == self._failing:
            return
        self._failing = answer.reason is not None
        if self._failing:
            _log.warning("a webhook failed; it is sent again", endpoint=self.name, reason=answer.reason)
        else:
            _log.info("a webhook endpoint takes what it is sent again", endpoint=self.name)

    def _elapsed(self) -> float:
        """Seconds in which the endpoint was to be sent to: not those for which it had asked for patience."""
        return self._scheduler.time() - self._idle

    async def _fail(self, lane: _Lane, answer: Answer, reason: str) -> None:
        if answer.gone:
            lane.attempts = 0  # it is the endpoint that ended, and no fault of the event's
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
            "a webhook is a dead letter now; `python -m gateway webhooks` lists them and sends them again",
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
        """Let a user's first event go, and turn to the next."""
        self._known.pop(lane.events.popleft().place, None)
        lane.attempts = 0
        if lane.events:
            self._ready.put_nowait(lane)
        else:
            del self._lanes[lane.key]

    async def _tell(self, command: Callable[[], Awaitable[None]]) -> None:
        """Tell the outbox, as often as it takes: what it is not told is sent again."""
        while True:
            try:
                return await command()
            except StoreUnavailableError:
                await asyncio.sleep(PAUSE)

    def _set_stopped(self, why: str | None) -> None:
        self.stopped = why
        if why is None:
            _log.info("a webhook endpoint is sent to again", endpoint=self.name)
            for lane in self._lanes.values():  # each has its whole time anew
                lane.attempts = 0
            self._open_if_due()
        else:
            self._open.clear()
            _log.error(
                "nothing more is sent to a webhook endpoint, because it is gone; what is for it waits until"
                " `python -m gateway webhooks resume`, or POST /api/webhooks/resume, says that it is back",
                endpoint=self.name,
                reason=why,
            )

    def _pause(self, seconds: float) -> None:
        """Send nothing for so long."""
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
