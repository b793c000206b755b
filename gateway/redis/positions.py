"""Up to where on a log something was done, by name, in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from gateway.redis.connection import Client

_ADVANCE = Script("""
-- Let a position grow. They are compared as text of one length: a number of Lua's does not hold them.
--
-- KEYS[1] where it is, string
-- ARGV[1] the position
local at = redis.call('GET', KEYS[1])
if not at or at < ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
end
""")

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
        """Read a position; where there is none, it is this one from now on.

        Raises:
            StoreUnavailableError: there is no telling now.
        """
        await self._commands.send("SET", self._base + name, _text(position), "NX")
        return int(await self._commands.send("GET", self._base + name))

    async def advance(self, name: str, position: int) -> None:
        """Go on to a position. Going back changes nothing: others have been further.

        Raises:
            StoreUnavailableError: whether it was kept is not known.
        """
        await self._commands.answer(self._commands.start(_ADVANCE, [self._base + name], [_text(position)]))

    async def reset(self, name: str, position: int) -> None:
        """Go on from a position, be it behind or ahead.

        Raises:
            StoreUnavailableError: whether it was kept is not known.
        """
        await self._commands.send("SET", self._base + name, _text(position))

    async def close(self) -> None:
        """Send no more."""
        await self._commands.close()


def _text(position: int) -> str:
    return f"{position:0{_DIGITS}}"
