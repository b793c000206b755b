"""What waits for users who are not there: a queue for each, in the order in which it was sent.

This is the port. Its adapters are `queue_memory` (one process) and `queue_redis` (many); `tests/test_queue.py` holds
both to this contract:

- A command is atomic, over all nodes. Given again, because its answer was lost, it has its effect once: an item is
  known by its id.
- A queue has bounds in number and in bytes. Past them the oldest go, and are counted as dropped.
- An item is there until it is acknowledged or its time is over. Times come from the caller.
- Each method raises `StoreUnavailableError` where the queues cannot be reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

AWAITED = "w"
"""How the ids begin of items that somebody waits for to be acknowledged; other ids do not begin so."""

REMEMBERED = 60_000
"""Milliseconds that it is remembered that such an item was acknowledged."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of what nobody has acknowledged."""

    size: int = 100
    """Notifications of one user."""
    bytes: int = 262_144
    """Bytes of these together, as JSON."""
    ttl: int = 7 * 24 * 3_600_000
    """Milliseconds that one is kept."""
    largest: int = 65_536
    """Bytes of one, as JSON."""


class Queued(msgspec.Struct, frozen=True):
    """One notification in a queue."""

    id: str
    """Unique: a client that hears it twice knows it by its id."""
    event: str
    data: msgspec.Raw
    """As JSON."""


class Put(msgspec.Struct, frozen=True):
    """What became of an item that was to be queued."""

    queued: bool
    """False where it was left alone, because the user is connected."""
    nodes: tuple[str, ...] = ()
    """The other nodes that the user is connected to."""
    dropped: int = 0
    """How many older ones had to go."""
    expired: int = 0
    """How many older ones were over their time."""


class Found(msgspec.Struct, frozen=True):
    """What waits for one user."""

    items: Sequence[Queued] = ()
    """In the order in which they were sent."""
    expired: int = 0
    """How many others were over their time, and are gone."""


class Queues(ABC):
    """The port; see the module for the contract."""

    near: ClassVar[bool]
    """True where `waits` knows, and asking costs no round trip."""

    @abstractmethod
    def waits(self, tenant: str, user_id: str) -> bool:
        """Whether something may wait for a user. Where it takes a round trip to know, the store says so instead."""

    @abstractmethod
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
        """Put an item at the end of a user's queue.

        Args:
            tenant: whose user.
            user_id: for whom.
            item: what; one whose id is there already changes nothing.
            now: Unix milliseconds.
            node: who asks; its own connections do not count, since it knows them better.
            unless_connected: leave it alone where the user is connected to another node.
        """

    @abstractmethod
    async def read(self, tenant: str, user_id: str, now: int) -> Found:
        """Read what waits for a user; it stays there."""

    @abstractmethod
    async def acknowledge(self, tenant: str, user_id: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Take what a client has acknowledged out of its user's queue.

        Returns:
            The ids of those that were there.
        """

    @abstractmethod
    async def was_acknowledged(self, item_id: str) -> bool:
        """Whether an item whose id begins with `AWAITED` was acknowledged within the last minute."""

    @abstractmethod
    async def sweep(self, now: int) -> int:
        """Let go of what is over its time, whoever it is for, and return how much that was."""

    @abstractmethod
    async def depth(self) -> int:
        """How many items wait, for all users together."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds."""


def size_of(item: Queued) -> int:
    """Bytes that an item counts for."""
    return len(item.id) + len(item.event.encode()) + len(item.data)
