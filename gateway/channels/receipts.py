"""Receipts: which messages a user has been sent, and has read, for ``mark-read``.

This is the port. Its adapters are `receipts_memory` (one process) and `receipts_redis` (many processes);
``tests/test_receipts.py`` holds both to this contract:

- A command is atomic, over all nodes, and repeating it changes nothing more: a message is known by its id, and one that
  was read stays read.
- What is kept of one user is bounded in number and in time. The oldest messages go, and cannot be marked any more.
- Only messages to the user in question are looked at: the id of a message to somebody else is not found.
- Each method raises `StoreUnavailableError` if the store cannot be reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MOST = 1000
"""Messages of one user, read ones among them."""


class Unread(msgspec.Struct, frozen=True):
    """A message that its recipient has not read."""

    id: str
    sender: str


class Receipts(ABC):
    """The port; see the module for the contract. Times are Unix milliseconds."""

    @abstractmethod
    async def add(self, tenant: str, recipient: str, message: Unread, now: int) -> bool:
        """Add a message that is about to be said, as unread; return whether it is new. A known one stays as it is."""

    @abstractmethod
    async def forget(self, tenant: str, recipient: str, message_id: str) -> None:
        """Remove a message that was not said after all; one that is not known is ignored."""

    @abstractmethod
    async def unread(
        self, tenant: str, recipient: str, now: int, *, message_id: str | None = None, sender: str | None = None
    ) -> Sequence[Unread]:
        """The unread messages of a user, oldest first: the one with this id, or all from this sender."""

    @abstractmethod
    async def mark(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Mark messages as read; return the ids of those that were unread."""

    @abstractmethod
    async def read(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Collection[str]:
        """The ids of those messages that the user is known to have read."""

    @abstractmethod
    async def close(self) -> None:
        """Release the adapter's resources."""
