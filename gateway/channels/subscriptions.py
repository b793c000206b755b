"""How many connections are in a channel, on all nodes, as of a second ago.

The store of channels cannot tell: it counts a channel once for each node. So each node shares its own counts here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import structlog

from gateway.channels.names import parse_scope, scope_of
from gateway.errors import StoreUnavailableError
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.channels.membership import Membership
    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds between two exchanges of counts."""

RETRY_REFUSED = 5.0
"""Seconds to wait after Redis has answered with an error."""

CHUNK = 500
"""Channels in one step of an exchange."""

_COUNT = Script((files("gateway.channels") / "lua" / "count.lua").read_text())


class Subscriptions:
    """The counts of a single node; `RedisSubscriptions` adds those of other nodes.

    Args:
        membership: counts this node's connections.
    """

    def __init__(self, membership: Membership) -> None:
        self.listeners: list[Callable[[str, str, int], object]] = []
        """Called with a tenant, a channel and its count when that has changed, once a second. They must not block."""
        self._membership = membership
        self._elsewhere: dict[str, int] = {}
        """Connections to other nodes, by scope of the channel; without those that are 0."""
        self._told: dict[str, int] = {}
        """What listeners were told last, by scope; without those that are 0."""

    def count(self, tenant: str, channel: str) -> int:
        """How many connections are in a channel."""
        return self._elsewhere.get(scope_of(tenant, channel), 0) + self._membership.here(tenant, channel)

    async def run(self) -> None:
        """Exchange counts, until cancelled."""
        while True:
            try:
                await self.exchange()
            except StoreUnavailableError as error:
                _log.debug("the subscription counts of other nodes cannot be read", error=str(error))
            except Exception:
                _log.exception("the subscription counts of other nodes cannot be read; trying again")
                await asyncio.sleep(RETRY_REFUSED)
            await asyncio.sleep(INTERVAL)

    async def exchange(self) -> None:
        """Tell the listeners what has changed."""
        self._tell(self._membership.take_changed())

    async def close(self) -> None:
        """Count no more."""

    def _tell(self, scopes: Iterable[str]) -> None:
        for scope in scopes:
            tenant, channel = parse_scope(scope)
            count = self.count(tenant, channel)
            if count == self._told.get(scope, 0):
                continue
            if count:
                self._told[scope] = count
            else:
                del self._told[scope]
            for listener in self.listeners:
                try:
                    listener(tenant, channel, count)
                except Exception:
                    _log.exception("a listener failed", channel=channel)


class RedisSubscriptions(Subscriptions):
    """The counts of all nodes: each writes its own changes to Redis, and reads which sums have changed.

    Args:
        membership: counts this node's connections.
        client: how to reach Redis.
        prefix: what its keys begin with.
        node: this node's name, new with each start.
        keep: seconds after which the counts of a node are dropped that is not heard of any more; at least three times
            `INTERVAL`.
        clock: the time, in Unix milliseconds.
    """

    def __init__(
        self, membership: Membership, client: Client, prefix: str, node: str, *, keep: float, clock: Callable[[], int]
    ) -> None:
        super().__init__(membership)
        self._commands = Commands(client)
        self._base = f"{base_of(prefix)}said:counts"
        self._node = node
        self._keep = round(max(keep, 3 * INTERVAL) * 1000)
        self._clock = clock
        self._position = b""
        """The position of the last change that was read; empty to read all sums."""
        self._sums: dict[str, int] = {}
        """The sums over all nodes in Redis, by scope; without those that are 0."""
        self._mine: dict[str, int] = {}
        """This node's counts in Redis, by scope; without those that are 0."""
        self._untold: set[str] = set()
        """The scopes whose counts on this node have to be written to Redis."""
        self._touched: set[str] = set()
        """The scopes whose counts may have changed."""

    async def exchange(self) -> None:
        """Write this node's changes, read those of the sums, and tell the listeners.

        Raises:
            StoreUnavailableError: the counts of other nodes stay as they were; this node's changes are written later.
        """
        changed = self._membership.take_changed()
        self._untold |= changed
        self._touched |= changed
        while await self._round(list(self._untold)) or self._untold:
            pass
        touched, self._touched = self._touched, set()
        _update(self._elsewhere, {each: self._sums.get(each, 0) - self._mine.get(each, 0) for each in touched})
        self._tell(touched)

    async def close(self) -> None:
        """Take this node's counts out of Redis, where they would otherwise expire only after `keep`."""
        with suppress(Exception):
            while (await self._run(0, [], []))[1]:
                pass
        await self._commands.close()

    async def _round(self, scopes: list[str]) -> bool:
        """Do one step of an exchange; return whether counts of expired nodes are left to be removed."""
        counts = {scope: self._membership.here(*parse_scope(scope)) for scope in scopes[:CHUNK]}
        names = await self._commands.send("ZRANGEBYSCORE", f"{self._base}:nodes", "-inf", self._clock())
        out = [name.decode() for name in names if name != self._node.encode()]
        told = [part for scope, count in counts.items() for part in (scope, count)]
        known, left, position, is_all, found = await self._run(self._keep, out, told)
        if not known:  # this node's counts had expired, so that the sums are without them: write all of them again
            self._untold |= {scope_of(tenant, channel) for tenant, channel, _count in self._membership.all_here()}
            self._touched |= set(self._mine)
            self._mine.clear()
        self._untold.difference_update(counts)
        _update(self._mine, counts)
        sums = {scope.decode(): int(count) for scope, count in zip(found[::2], found[1::2], strict=True)}
        self._touched |= set(sums)
        if is_all:
            self._touched |= set(self._sums)
            self._sums.clear()
        _update(self._sums, sums)
        self._position = position
        return bool(left)

    async def _run(self, keep: int, out: list[str], told: list[Any]) -> Any:
        keys = [f"{self._base}:nodes", f"{self._base}:all", f"{self._base}:changes"]
        keys += [f"{self._base}:node:{node}" for node in (self._node, *out)]
        arguments = [self._node, self._clock(), keep, self._position, len(out), *out, *told]
        return await self._commands.answer(self._commands.start(_COUNT, keys, arguments))


def _update(counts: dict[str, int], changes: dict[str, int]) -> None:
    for scope, count in changes.items():
        if count > 0:
            counts[scope] = count
        else:
            counts.pop(scope, None)
