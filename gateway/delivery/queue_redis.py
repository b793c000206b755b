"""Queues in Redis, for any number of nodes: one Lua script per command, under ``lua/``."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.delivery.queue import AWAITED, REMEMBERED, Found, Limits, Put, Queued, Queues, read_item, size_of
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import SEPARATOR, base_of, queue_key, user_key, user_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

CHUNK = 500
"""Queues that a sweep looks into in one step, with one short script for each."""

SWEEPS = 20
"""Such steps in one sweep at the most; the rest waits for the next sweep."""

_encode = msgspec.json.encode


def _script(name: str) -> Script:
    folder = files("gateway.delivery") / "lua"
    return Script((folder / "queue.lua").read_text() + (folder / f"{name}.lua").read_text())


class RedisQueues(Queues):
    """Queues that any number of nodes share.

    Whether something waits for a user who connects is said by the store, in the same round trip: `Commit.queued`.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the same as the store's.
        limits: how much is kept, the same on every node.
    """

    near = False

    def __init__(self, client: Client, prefix: str, limits: Limits) -> None:
        self._commands = Commands(client)
        self._limits = limits
        self._base = base_of(prefix)
        self._queues_key, self._depths_key = f"{self._base}queues", f"{self._base}queues:depths"
        self._aside_key = f"{self._queues_key}:unreadable"
        self._scripts = {name: _script(name) for name in ("put", "read", "acknowledge", "aside")}

    def waits(self, tenant: str, user_id: str) -> bool:  # noqa: ARG002 - the port's
        """Not known here; see the port."""
        return False

    async def put(
        self,
        tenant: str,
        user_id: str,
        item: Queued,
        now: int,
        *,
        node: str = "",
        unless_connected: bool = False,
    ) -> Put:
        """Put an item at the end of a user's queue; see the port."""
        user, limits = user_of(tenant, user_id), self._limits
        bounds = [now + limits.ttl, limits.size, limits.bytes]
        arguments = [node, int(unless_connected), *bounds, item.id, size_of(item), _encode(item)]
        answer = await self._run("put", user, now, arguments, [user_key(self._base, user)])
        queued, nodes, dropped, expired, put_aside = answer
        self._note(put_aside, user)
        return Put(queued=bool(queued), nodes=tuple(node.decode() for node in nodes), dropped=dropped, expired=expired)

    async def read(self, tenant: str, user_id: str, now: int) -> Found:
        """Read what waits for a user; see the port."""
        # Other nodes' settings may allow for more than this one's.
        user = user_of(tenant, user_id)
        expired, put_aside, ids, bodies = await self._run("read", user, now, [2 * self._limits.size])
        items = [None if body is None else read_item(body.split(b" ", 2)[-1]) for body in bodies]
        if unreadable := [item_id for item_id, item in zip(ids, items, strict=True) if item is None]:
            put_aside += await self._run("aside", user, now, unreadable)
        self._note(put_aside, user)
        return Found([item for item in items if item is not None], expired)

    async def acknowledge(self, tenant: str, user_id: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Take what a client has acknowledged out; see the port."""
        keys = [self._acknowledged_key(item_id) for item_id in ids]
        arguments = [AWAITED, REMEMBERED, *ids]
        user = user_of(tenant, user_id)
        removed, put_aside = await self._run("acknowledge", user, now, arguments, keys)
        self._note(put_aside, user)
        return [item_id.decode() for item_id in removed]

    async def was_acknowledged(self, item_id: str) -> bool:
        """Whether an item was acknowledged; see the port."""
        return bool(await self._commands.send("EXISTS", self._acknowledged_key(item_id)))

    async def sweep(self, now: int) -> int:
        """Delete expired items; see the port."""
        expired = 0
        for _ in range(SWEEPS):
            due = await self._commands.send("ZRANGEBYSCORE", self._queues_key, 0, now, "LIMIT", 0, CHUNK)
            if not due:
                break
            for user, call in [(user, self._start("read", user.decode(), now, [0])) for user in due]:
                found, put_aside, *_items = await self._commands.answer(call)
                self._note(put_aside, user.decode())
                expired += found
        return expired

    async def depth(self) -> int:
        """How many items wait."""
        return int(await self._commands.send("HGET", self._depths_key, "") or 0)

    async def close(self) -> None:
        """Send no more; the client is the store's to close."""
        await self._commands.close()

    def _note(self, put_aside: int, user: str) -> None:
        if put_aside:
            self.unreadable += put_aside
            tenant, user_id = user.split(SEPARATOR)
            _log.error(
                "notifications in a queue cannot be read; they are put aside",
                count=put_aside,
                user=user_id,
                tenant=tenant,
                key=self._aside_key,
            )

    def _acknowledged_key(self, item_id: str) -> str:
        return f"{self._base}acknowledged:{item_id}"

    def _start(self, name: str, user: str, now: int, arguments: Sequence[Any], keys: Sequence[str] = ()) -> Any:
        order = queue_key(self._base, user)
        mine = [order, f"{order}{SEPARATOR}bodies", self._queues_key, self._depths_key, self._aside_key]
        return self._commands.start(self._scripts[name], [*mine, *keys], [now, user, *arguments])

    async def _run(self, name: str, user: str, now: int, arguments: Sequence[Any], keys: Sequence[str] = ()) -> Any:
        return await self._commands.answer(self._start(name, user, now, arguments, keys))
