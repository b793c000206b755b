"""Queues in this process's memory: for one node."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.delivery.queue import AWAITED, REMEMBERED, Found, Limits, Put, Queued, Queues, read_item, size_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_log = structlog.get_logger(__name__)

_Key = tuple[str, str]


class _Queue:
    """One user's."""

    __slots__ = ("bytes", "items")

    def __init__(self) -> None:
        self.items: OrderedDict[str, tuple[int, Queued]] = OrderedDict()
        """By id, in order, each with the time at which it expires."""
        self.bytes = 0

    def remove(self, item_id: str) -> bool:
        found = self.items.pop(item_id, None)
        if found is not None:
            self.bytes -= size_of(found[1])
        return found is not None

    def remove_first(self) -> None:
        self.remove(next(iter(self.items)))


class MemoryQueues(Queues):
    """Queues that live and die with their process.

    Args:
        limits: how much is kept.
    """

    near = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[_Key, _Queue] = {}
        self._depth = 0
        self._due: list[tuple[int, _Key]] = []
        """A heap of the times at which to look into a queue for expired items; one entry for each queue."""
        self._scheduled: set[_Key] = set()
        """The queues in that heap."""
        self._acknowledged: OrderedDict[str, int] = OrderedDict()
        """The acknowledged ids that begin with `AWAITED`, with the time of the acknowledgement."""

    def waits(self, tenant: str, user_id: str) -> bool:
        """Whether something waits for a user; see the port."""
        return (tenant, user_id) in self._queues

    async def put(
        self,
        tenant: str,
        user_id: str,
        item: Queued,
        now: int,
        *,
        node: str = "",  # noqa: ARG002 - the port's: there is one node, which knows who is connected
        unless_connected: bool = False,  # noqa: ARG002 - likewise
    ) -> Put:
        """Put an item at the end of a user's queue; see the port."""
        key = (tenant, user_id)
        expired = self._expire(key, now)
        queue = self._queues.setdefault(key, _Queue())
        dropped = 0
        if item.id not in queue.items:
            until = now + self._limits.ttl
            queue.items[item.id] = (until, item)
            queue.bytes += size_of(item)
            self._depth += 1
            self._schedule(until, key)
            while len(queue.items) > self._limits.size or queue.bytes > self._limits.bytes:
                queue.remove_first()
                self._depth -= 1
                dropped += 1
        return Put(queued=True, dropped=dropped, expired=expired)

    async def read(self, tenant: str, user_id: str, now: int) -> Found:
        """Read what waits for a user; see the port."""
        key = (tenant, user_id)
        expired = self._expire(key, now)
        queue = self._queues.get(key)
        items = [] if queue is None else [item for _until, item in queue.items.values()]
        if unreadable := [item.id for item in items if read_item(msgspec.json.encode(item)) is None]:
            self._remove(key, unreadable)
            self.unreadable += len(unreadable)
            _log.error(
                "notifications in a queue cannot be read; they are let go of",
                count=len(unreadable),
                user=user_id,
                tenant=tenant,
            )
        return Found([item for item in items if item.id not in unreadable], expired)

    async def acknowledge(self, tenant: str, user_id: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Take what a client has acknowledged out; see the port."""
        while self._acknowledged and next(iter(self._acknowledged.values())) <= now - REMEMBERED:
            self._acknowledged.popitem(last=False)
        key = (tenant, user_id)
        removed = self._remove(key, ids)
        self._acknowledged.update((item_id, now) for item_id in removed if item_id.startswith(AWAITED))
        return removed

    async def was_acknowledged(self, item_id: str) -> bool:
        """Whether an item was acknowledged; see the port."""
        return item_id in self._acknowledged

    async def sweep(self, now: int) -> int:
        """Delete expired items; see the port."""
        expired = 0
        while self._due and self._due[0][0] <= now:
            key = heapq.heappop(self._due)[1]
            self._scheduled.remove(key)
            expired += self._expire(key, now)
            if (queue := self._queues.get(key)) is not None:
                self._schedule(next(iter(queue.items.values()))[0], key)
        return expired

    async def depth(self) -> int:
        """How many items wait."""
        return self._depth

    async def close(self) -> None:
        """Nothing to let go of."""

    def _remove(self, key: _Key, ids: Collection[str]) -> Sequence[str]:
        queue = self._queues.get(key)
        if queue is None:
            return []
        removed = [item_id for item_id in ids if queue.remove(item_id)]
        self._depth -= len(removed)
        if not queue.items:
            del self._queues[key]
        return removed

    def _schedule(self, until: int, key: _Key) -> None:
        if key not in self._scheduled:
            self._scheduled.add(key)
            heapq.heappush(self._due, (until, key))

    def _expire(self, key: _Key, now: int) -> int:
        queue = self._queues.get(key)
        if queue is None:
            return 0
        expired = 0
        while queue.items and next(iter(queue.items.values()))[0] <= now:
            queue.remove_first()
            expired += 1
        self._depth -= expired
        if not queue.items:
            del self._queues[key]
        return expired
