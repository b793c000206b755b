"""What webhooks tell that no store commits: client events, caches that were missed, and how many are in channels.

It is told as well as can be. Here it waits for the outbox, for some milliseconds, or while Redis is away; what waits
when the process ends is lost, and so is the oldest of more than `MOST`. The outbox takes it while it has room: what
must not be lost comes first. From there on it is an event as any other. Nothing is written that no endpoint names.
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
    from gateway.webhooks.outbox import Outbox

_log = structlog.get_logger(__name__)

MOST = 1000
"""Events that wait for the outbox, of some ten kilobytes at the most."""

AT_ONCE = 100
"""Events that are written in one step."""

RETRY = 0.5
"""Seconds until the outbox is asked again that could not be reached."""

LARGE = 100
"""Subscriptions past which a channel's count is told once in `INTERVAL`: as Pusher has it, as the next is."""

INTERVAL = 5.0
"""Seconds between two counts of a large channel, of which the last is told in the end."""

MISS_INTERVAL = 1.0
"""Seconds in which a channel's missed cache is told once by a node, however many came."""


class Notes:
    """Takes what happens, and writes what of it an endpoint wants into the outbox.

    Args:
        outbox: where webhooks wait.
        wanted: the types that endpoints want.
        clock: the time, in Unix milliseconds.
        scheduler: the event loop.
        is_sender: whether this node is the one that sends now: what all nodes know alike, it tells alone.
        wake: called when there is something in the outbox.
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
        """The large channels whose count was told just now, with a newer one that waits; None where there is none."""
        self._missed: set[tuple[str, str]] = set()
        """The channels whose missed cache was told just now."""
        self._losing = False

    # What happens

    def client_event(self, said: Said, member: str | None) -> None:
        """Take what a client told the others in a channel.

        Args:
            said: what; its source is the connection.
            member: as whom, in a presence channel; None in another.
        """
        if CLIENT_EVENT not in self._wanted or said.source is None:
            return
        data = {"event": said.event, "data": said.data, "socketId": said.source}
        if member is not None:
            data["userId"] = member
        # In the order of each connection, not of the channel: one that fails does not hold back its occupants'.
        self._note(CLIENT_EVENT, said.tenant, said.channel, data, of=said.source)

    def cache_miss(self, tenant: str, channel: str) -> None:
        """Take that somebody came into a cache channel of which nothing is kept."""
        key = (tenant, channel)
        if CACHE_MISS not in self._wanted or key in self._missed:
            return
        self._missed.add(key)
        self._scheduler.call_at(self._scheduler.time() + MISS_INTERVAL, partial(self._missed.discard, key))
        self._note(CACHE_MISS, tenant, channel, {})

    def count(self, tenant: str, channel: str, count: int) -> None:
        """Take that another number of connections than before is in a channel, on all nodes.

        Of a presence channel its members are told instead.
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
        if len(self._waiting) >= MOST:
            self._waiting.popitem(last=False)
            self._lose(1)
        self._waiting[made.id] = made
        self._there.set()

    # What becomes of it

    async def run(self) -> None:
        """Write what there is, until cancelled."""
        while True:
            await self._there.wait()
            try:
                await self.write()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)

    async def write(self) -> None:
        """Write all that waits.

        Raises:
            StoreUnavailableError: the outbox cannot be reached; what is not known to be written waits.
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
            _log.warning("client events, missed caches or counts come faster than webhooks can be sent; some are lost")
