"""What users have read, in this process's memory: for one node."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from gateway.channels.receipts import MOST, Receipts, Unread

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class _Entry:
    __slots__ = ("at", "is_read", "message")

    def __init__(self, message: Unread, at: int) -> None:
        self.message = message
        self.at = at
        self.is_read = False


class MemoryReceipts(Receipts):
    """Marks that live and die with their process.

    Args:
        ttl: milliseconds that a message is known.
        most: how many of one user are.
    """

    def __init__(self, ttl: int, most: int = MOST) -> None:
        self._ttl = ttl
        self._most = most
        self._users: OrderedDict[tuple[str, str], OrderedDict[str, _Entry]] = OrderedDict()
        """By tenant and user, those who were sent something last at the end: each one's messages, oldest first."""

    def __len__(self) -> int:
        return len(self._users)

    async def add(self, tenant: str, recipient: str, message: Unread, now: int) -> bool:
        """Take note of a message; see the port."""
        entries = self._entries(tenant, recipient, now)
        if message.id in entries:
            return False
        entries[message.id] = _Entry(message, now)
        if len(entries) > self._most:
            entries.popitem(last=False)
        self._users[tenant, recipient] = entries
        self._users.move_to_end((tenant, recipient))
        while (oldest := next(iter(self._users))) != (tenant, recipient) and self._is_old(self._users[oldest], now):
            del self._users[oldest]
        return True

    async def forget(self, tenant: str, recipient: str, message_id: str) -> None:
        """Take a message back; see the port."""
        if (entries := self._users.get((tenant, recipient))) is not None:
            entries.pop(message_id, None)
            if not entries:
                del self._users[tenant, recipient]

    async def unread(
        self, tenant: str, recipient: str, now: int, *, message_id: str | None = None, sender: str | None = None
    ) -> Sequence[Unread]:
        """What a user has not read; see the port."""
        return [
            entry.message
            for entry in self._entries(tenant, recipient, now).values()
            if not entry.is_read and (entry.message.id == message_id or entry.message.sender == sender)
        ]

    async def mark(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Mark messages as read; see the port."""
        entries, marked = self._entries(tenant, recipient, now), []
        for message_id in ids:
            entry = entries.get(message_id)
            if entry is not None and not entry.is_read:
                entry.is_read = True
                marked.append(message_id)
        return marked

    async def read(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Collection[str]:
        """Those that the user has read; see the port."""
        entries = self._entries(tenant, recipient, now)
        return {message_id for message_id in ids if message_id in entries and entries[message_id].is_read}

    async def close(self) -> None:
        """Nothing to let go of."""

    def _entries(self, tenant: str, recipient: str, now: int) -> OrderedDict[str, _Entry]:
        entries = self._users.get((tenant, recipient))
        if entries is None:
            return OrderedDict()
        while entries and next(iter(entries.values())).at <= now - self._ttl:
            entries.popitem(last=False)
        return entries

    def _is_old(self, entries: OrderedDict[str, _Entry], now: int) -> bool:
        return not entries or next(reversed(entries.values())).at <= now - self._ttl
