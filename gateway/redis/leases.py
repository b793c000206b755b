"""Leases over Redis: one key each, with its holder's name, which runs out by itself."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from gateway.redis.connection import Client

_TAKE = Script((files("gateway.redis") / "take.lua").read_text())
_GIVE_BACK = Script((files("gateway.redis") / "give_back.lua").read_text())


class RedisLeases:
    """Leases that any number of nodes share.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        node: this node's name, new with each start.
    """

    def __init__(self, client: Client, prefix: str, node: str) -> None:
        self._commands = Commands(client)
        self._base = f"{base_of(prefix)}duty:"
        self._node = node

    async def take(self, name: str, ttl: float) -> bool:
        """Hold a lease, or renew it; see the port."""
        call = self._commands.start(_TAKE, [self._base + name], [self._node, round(ttl * 1000)])
        return bool(await self._commands.answer(call))

    async def give_back(self, name: str) -> None:
        """Let a lease go; see the port."""
        await self._commands.answer(self._commands.start(_GIVE_BACK, [self._base + name], [self._node]))

    async def close(self) -> None:
        """Send no more."""
        await self._commands.close()
