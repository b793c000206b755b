"""What users have read, in Redis, for any number of nodes: one Lua script per command, under ``lua/``."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gateway.channels.receipts import MOST, Receipts, Unread
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import SEPARATOR, base_of, user_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gateway.redis.connection import Client


def _script(name: str) -> Script:
    folder = files("gateway.channels") / "lua"
    return Script((folder / "receipts.lua").read_text() + (folder / f"receipts_{name}.lua").read_text())


class RedisReceipts(Receipts):
    """Marks that any number of nodes share.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        ttl: milliseconds that a message is known.
        most: how many of one user are.
    """

    def __init__(self, client: Client, prefix: str, ttl: int, most: int = MOST) -> None:
        self._commands = Commands(client)
        self._base = base_of(prefix)
        self._ttl = ttl
        self._most = most
        self._scripts = {name: _script(name) for name in ("add", "forget", "unread", "mark", "read")}

    async def add(self, tenant: str, recipient: str, message: Unread, now: int) -> bool:
        """Take note of a message; see the port."""
        return bool(
            await self._run("add", tenant, recipient, now, message.id, message.sender, now, self._ttl, self._most)
        )

    async def forget(self, tenant: str, recipient: str, message_id: str) -> None:
        """Take a message back; see the port."""
        await self._run("forget", tenant, recipient, 0, message_id)

    async def unread(
        self, tenant: str, recipient: str, now: int, *, message_id: str | None = None, sender: str | None = None
    ) -> Sequence[Unread]:
        """What a user has not read; see the port."""
        found = await self._run("unread", tenant, recipient, now, message_id or "", sender or "")
        texts = [each.decode() for each in found]
        return [Unread(each, by) for each, by in zip(texts[::2], texts[1::2], strict=True)]

    async def mark(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Mark messages as read; see the port."""
        return [each.decode() for each in await self._run("mark", tenant, recipient, now, *ids)] if ids else []

    async def read(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Collection[str]:
        """Those that the user has read; see the port."""
        return {each.decode() for each in await self._run("read", tenant, recipient, now, *ids)} if ids else set()

    async def close(self) -> None:
        """Send no more; the client is the store's to close."""
        await self._commands.close()

    async def _run(self, name: str, tenant: str, recipient: str, now: int, *arguments: Any) -> Any:
        order = f"{self._base}receipts:{user_of(tenant, recipient)}"
        call = self._commands.start(
            self._scripts[name], [order, f"{order}{SEPARATOR}bodies"], [max(0, now - self._ttl), *arguments]
        )
        return await self._commands.answer(call)
