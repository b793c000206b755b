"""Which messages a user has been sent, and has read: what ``mark-read`` goes by.

This is the port. Its adapters are `receipts_memory` (one process) and `receipts_redis` (many);
``tests/test_receipts.py`` holds both to this contract:

- A command is atomic, over all nodes. Given again, because its answer was lost, it changes nothing more: a message is
  known by its id, and one that was read stays so.
- What is kept of one user is bounded in number and in time. Past it the oldest go, and can be marked no more.
- Only the recipient's own messages are looked at: whoever names another's finds nothing.
- Each method raises `StoreUnavailableError` where the store cannot be reached.
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
        """Take note of a message, before it is said; one that is known stays as it is. Whether it was not."""

    @abstractmethod
    async def forget(self, tenant: str, recipient: str, message_id: str) -> None:
        """Take a message back that was not said; one that is not known is ignored."""

    @abstractmethod
    async def unread(
        self, tenant: str, recipient: str, now: int, *, message_id: str | None = None, sender: str | None = None
    ) -> Sequence[Unread]:
        """What a user has not read, oldest first: the one of this id, or all that this user sent."""

    @abstractmethod
    async def mark(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Mark messages as read; returns those that had not been."""

    @abstractmethod
    async def read(self, tenant: str, recipient: str, ids: Collection[str], now: int) -> Collection[str]:
        """Those of some messages that the user has read, as far as is known."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds."""
