"""Up to where on a log something was done, by name, in Redis."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from gateway.redis.connection import Client

_ADVANCE = Script((files("gateway.redis") / "advance.lua").read_text())

_DIGITS = 20
"""Of a position, which has 64 bits at the most."""


class RedisPositions:
    """Positions that outlast every node.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._commands = Commands(client)
        self._base = f"{base_of(prefix)}position:"

    async def begin(self, name: str, position: int) -> int:
        """Read a position; see the port."""
        await self._commands.send("SET", self._base + name, _text(position), "NX")
        return int(await self._commands.send("GET", self._base + name))

    async def advance(self, name: str, position: int) -> None:
        """Go on to a position; see the port."""
        await self._commands.answer(self._commands.start(_ADVANCE, [self._base + name], [_text(position)]))

    async def reset(self, name: str, position: int) -> None:
        """Go on from a position; see the port."""
        await self._commands.send("SET", self._base + name, _text(position))

    async def close(self) -> None:
        """Send no more."""
        await self._commands.close()


def _text(position: int) -> str:
    return f"{position:0{_DIGITS}}"
