"""The queues of notifications: one for each user, in the order in which they were sent.

This is the port. Its adapters are `queue_memory` (one process) and `queue_redis` (many processes);
``tests/test_queue.py`` holds both to this contract:

- A command is atomic, over all nodes. Given again, because its answer was lost, it has its effect once: an item is
  known by its id.
- A queue has bounds in number and in bytes. Past them the oldest go, and are counted as dropped.
- An item is there until it is acknowledged or its time is over. Times come from the caller.
- An item that cannot be read is put aside, with the next command that comes to it: it is logged and counted, and the
  others are read as if it were not there.
- Each method raises `StoreUnavailableError` where the queues cannot be reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from gateway.runtime.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Collection

AWAITED = "w"
"""The first letter of the id of an item whose acknowledgement somebody waits for; other ids begin otherwise."""

REMEMBERED = 60_000
"""Milliseconds that the acknowledgement of such an item is remembered."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of notifications that nobody has acknowledged."""

    size: int = 100
    """Notifications of one user."""
    bytes: int = 262_144
    """Bytes of these together, as JSON."""
    ttl: int = 7 * 24 * 3_600_000
    """Milliseconds until a notification expires."""
    largest: int = 65_536
    """Bytes of one notification, as JSON."""


class Queued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One notification in a queue."""

    id: str
    """Unique, so that a client that is sent it twice can tell."""
    event: str
    data: msgspec.Raw
    """As JSON."""
    trace: Trace | None = None
    """What it is part of; None for nothing."""


class Put(msgspec.Struct, frozen=True):
    """What became of an item that was to be queued."""

    queued: bool
    """False if it was not queued, because the user is connected to another node."""
    nodes: tuple[str, ...] = ()
    """The other nodes that the user is connected to."""
    dropped: int = 0
    """How many older items were dropped, because the queue was full."""
    expired: int = 0
    """How many older items had expired, and were deleted."""


class Found(msgspec.Struct, frozen=True):
    """What waits for one user."""

    items: Sequence[Queued] = ()
    """In the order in which they were sent."""
    expired: int = 0
    """How many items had expired, and were deleted."""


_decode = msgspec.json.Decoder(Queued).decode


class Queues(ABC):
    """The port; see the module for the contract."""

    near: ClassVar[bool]
    """True where `waits` knows, and asking costs no round trip."""
    unreadable = 0
    """How many items were put aside here."""

    @abstractmethod
    def waits(self, tenant: str, user_id: str) -> bool:
        """Whether something waits for a user. Only if the queues are `near`; otherwise `Commit.queued` says so."""

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
            item: what. If its id is in the queue already, nothing changes.
            now: Unix milliseconds.
            node: the node that asks. Its own connections do not count as other nodes: it knows them itself.
            unless_connected: do not queue it if the user is connected to another node.
        """

    @abstractmethod
    async def read(self, tenant: str, user_id: str, now: int) -> Found:
        """Read what waits for a user. It stays in the queue."""

    @abstractmethod
    async def acknowledge(self, tenant: str, user_id: str, ids: Collection[str], now: int) -> Sequence[str]:
        """Take the items that a client has acknowledged out of its user's queue.

        Returns:
            The ids of those that were there.
        """

    @abstractmethod
    async def was_acknowledged(self, item_id: str) -> bool:
        """Whether an item whose id begins with `AWAITED` was acknowledged within the last minute."""

    @abstractmethod
    async def sweep(self, now: int) -> int:
        """Delete expired items from all queues, and return how many there were."""

    @abstractmethod
    async def depth(self) -> int:
        """How many items wait, for all users together."""

    @abstractmethod
    async def close(self) -> None:
        """Release the adapter's resources."""


def read_item(text: bytes) -> Queued | None:
    """An item as JSON has it; None where it cannot be read."""
    try:
        return _decode(text)
    except ValueError:  # of msgspec's, too
        return None


def size_of(item: Queued) -> int:
    """Bytes that an item counts for."""
    return len(item.id) + len(item.event.encode()) + len(item.data)
