"""Notes: the webhooks of what no store commits, which are client events, missed caches and subscription counts.

They are best effort, unlike the others. A note waits here until the outbox has it, which takes milliseconds unless
Redis is away. Those that wait when the process ends are lost, and so are the oldest of more than `MOST`. The outbox
takes notes only while it has room, since the other events must not be lost. From there on a note is an event like any
other. Only the types that an endpoint asks for by name are written at all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from gateway import wire
from gateway.channels.membership import is_presence
from gateway.channels.names import scope_of
from gateway.errors import StoreUnavailableError
from gateway.redis.keys import user_of
from gateway.webhooks.event import CACHE_MISS, CLIENT_EVENT, SUBSCRIPTION_COUNT, Message, message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.channels.model import Said
    from gateway.runtime.timers import Scheduler
    from gateway.runtime.traces import Tracer
    from gateway.webhooks.outbox import Outbox

_log = structlog.get_logger(__name__)

MOST = 1000
"""Notes that wait for the outbox at the most; each has some ten kilobytes at the most."""

AT_ONCE = 100
"""Notes that are written in one step."""

RETRY = 0.5
"""Seconds until the outbox is tried again after it could not be reached."""

LARGE = 100
"""Subscriptions above which a channel's count is told once per `INTERVAL`; both are Pusher's values."""

INTERVAL = 5.0
"""Seconds between two counts of a large channel. The last count is always told in the end."""

MISS_INTERVAL = 1.0
"""Seconds in which a node tells only once that a channel's cache was missed."""


class Notes:
    """Makes notes of what happens, if an endpoint wants them, and writes them into the outbox.

    Args:
        outbox: where webhooks wait.
        wanted: the types of events that endpoints want.
        clock: the time, in Unix milliseconds.
        scheduler: the event loop.
        is_sender: returns whether this node is the one that sends webhooks now. It alone tells what every node knows.
        wake: called when something was written into the outbox.
    """

    def __init__(
        self,
        outbox: Outbox,
        wanted: Collection[str],
        clock: Callable[[], int],
        scheduler: Scheduler,
        *,
        is_sender: Callable[[], bool],
        wake: Callable[[], object],
    ) -> None:
        self.lost = 0
        """Events that were not told: more came than could be written."""
        self.trace: Tracer | None = None
        """What trace something is part of; None traces nothing."""
        self._outbox = outbox
        self._wanted = frozenset(wanted)
        self._clock = clock
        self._scheduler = scheduler
        self._is_sender = is_sender
        self._wake = wake
        self._waiting: OrderedDict[str, Message] = OrderedDict()
        """By id, oldest first."""
        self._there = asyncio.Event()
        self._told: dict[tuple[str, str], int | None] = {}
        """By tenant and channel: large channels whose count was told less than `INTERVAL` ago, each with the newer
        count that waits, or None if it has not changed."""
        self._missed: set[tuple[str, str]] = set()
        """By tenant and channel: those whose missed cache was told less than `MISS_INTERVAL` ago."""
        self._losing = False
        """Whether notes are being dropped, which was logged."""

    # What happens

    def client_event(self, said: Said, member: str | None) -> None:
        """Note an event that a client sent to the others in a channel.

        Args:
            said: the event; its source is the connection.
            member: the user id as which it did, in a presence channel; None in another.
        """
        if CLIENT_EVENT not in self._wanted or said.source is None:
            return
        data = {"event": said.event, "data": said.data, "socketId": said.source}
        if member is not None:
            data["userId"] = member
        # Ordered by connection, not by channel, so that one that fails does not hold back the channel's other events.
        self._note(CLIENT_EVENT, said.tenant, said.channel, data, of=said.source)

    def cache_miss(self, tenant: str, channel: str) -> None:
        """Note that somebody came into a cache channel that has nothing cached."""
        key = (tenant, channel)
        if CACHE_MISS not in self._wanted or key in self._missed:
            return
        self._missed.add(key)
        self._scheduler.call_at(self._scheduler.time() + MISS_INTERVAL, partial(self._missed.discard, key))
        self._note(CACHE_MISS, tenant, channel, {})

    def count(self, tenant: str, channel: str, count: int) -> None:
        """Note that the number of connections in a channel, on all nodes, has changed.

        Not for presence channels: of those, webhooks tell the members.
        """
        key = (tenant, channel)
        if SUBSCRIPTION_COUNT not in self._wanted or not self._is_sender() or is_presence(channel):
            return
        if key in self._told and count > LARGE:
            self._told[key] = count
            return
        self._note(SUBSCRIPTION_COUNT, tenant, channel, {"subscriptionCount": count})
        if key in self._told:
            self._told[key] = None
        elif count > LARGE:
            self._told[key] = None
            self._scheduler.call_at(self._scheduler.time() + INTERVAL, partial(self._count_again, key))

    def _count_again(self, key: tuple[str, str]) -> None:
        count = self._told.pop(key)
        if count is not None:
            self.count(*key, count)

    def _note(self, kind: str, tenant: str, channel: str, data: dict[str, Any], of: str | None = None) -> None:
        at = self._clock()
        body = {"tenant": tenant, "channel": channel, **data, "timestamp": wire.timestamp(at)}
        key = user_of(scope_of(tenant), channel) if of is None else user_of(scope_of(tenant, channel), of)
        made = message(kind, key, at, body, uuid4().hex)
        if self.trace is not None and (trace := self.trace()) is not None:
            made = made.within(trace.traceparent, trace.tracestate)
        if len(self._waiting) >= MOST:
            self._waiting.popitem(last=False)
            self._lose(1)
        self._waiting[made.id] = made
        self._there.set()

    # What becomes of it

    async def run(self) -> None:
        """Write notes into the outbox, until cancelled."""
        while True:
            await self._there.wait()
            try:
                await self.write()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)

    async def write(self) -> None:
        """Write all that waits.

        Raises:
            StoreUnavailableError: the outbox cannot be reached; what may not have been written goes on waiting.
        """
        while some := list(self._waiting.values())[:AT_ONCE]:
            refused = await self._outbox.add(some)
            for each in some:
                self._waiting.pop(each.id, None)
            if refused:
                self._lose(refused)
            else:
                self._losing = False
            self._wake()
        self._there.clear()

    def _lose(self, number: int) -> None:
        self.lost += number
        if not self._losing:
            self._losing = True
            _log.warning(
                "client events, missed caches or counts come faster than webhooks can be sent; some are dropped"
            )
