"""The outbox: committed events on their way to endpoints, the queue of each endpoint, and its dead letters.

This is the port. Its adapters are `outbox_memory` (one process) and `outbox_redis` (many processes);
``tests/test_outbox.py`` holds both to this contract:

- A transition is written into the outbox in the step that commits it, by the store's adapter.
- `take` moves events from the outbox into the queue of each endpoint that wants them, in one step. Nothing is lost in
  between, and nothing is moved twice, even if several nodes do it at the same time.
- A queue keeps its order. An event stays in it until it is `done` or buried, even if the sender dies.
- Everything is bounded in number (an event has some hundred bytes). An outbox that nobody takes from drops the oldest
  event; a queue that is full turns its oldest event into a dead letter; of too many dead letters the oldest are
  dropped. It is always the oldest, because a user's last event tells how things are. What is dropped is counted.
- Each method raises `StoreUnavailableError` if the outbox cannot be reached. It is then not known whether the command
  was done. Every command can be repeated, and takes effect once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

from gateway.webhooks.event import Message

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gateway.webhooks.endpoint import Endpoint

BEGIN = ""
"""The place before all others."""

OVERFLOW = "the queue was full"
"""The reason of a dead letter that was never sent, because of `Bounds.queue`."""

UNREADABLE = "this version cannot read it"
"""The reason of a dead letter that another version of the gateway wrote. Only a version that can read it lists it."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept."""

    queue: int = 50_000
    """Events in the queue of one endpoint, and events in the outbox."""
    dead: int = 10_000
    """Dead letters of one endpoint."""


class Waiting(msgspec.Struct, frozen=True):
    """An event in a queue."""

    place: str
    """Where it stands; only the adapter looks inside."""
    message: Message


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter."""

    message: Message
    reason: str
    """Why the last attempt failed, for people to read."""
    attempts: int
    """How often it was sent; 0 if its turn never came."""
    failed_at: int
    """When it was given up, in Unix milliseconds."""


class Taken(msgspec.Struct, frozen=True):
    """What `take` did."""

    moved: int = 0
    """How many events it took out of the outbox."""
    let_go: int = 0
    """How many events the full outbox has dropped since the last `take`."""
    buried: int = 0
    """How many events became dead letters because a queue was full."""
    dropped: int = 0
    """How many dead letters were dropped to make room for these."""
    unreadable: int = 0
    """How many events became dead letters since the last `take` because they could not be read."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one endpoint."""

    waiting: int
    """How many events are in its queue."""
    dead: int
    """How many dead letters it has."""
    stopped: str | None
    """Why nothing is sent to it; None if it is not stopped."""


class Outbox(ABC):
    """The port; see the module for the contract."""

    @abstractmethod
    async def register(self, names: Collection[str]) -> None:
        """Make endpoints known, so that they are listed before anything is sent to them."""

    @abstractmethod
    async def add(self, messages: Sequence[Message]) -> int:
        """Put events that no store commits into the outbox, until it is half full.

        Returns:
            How many there was no room for: the last ones.
        """

    @abstractmethod
    async def take(self, endpoints: Sequence[Endpoint], now: int) -> Taken:
        """Move events from the outbox, a few hundred at the most, into the queues of the endpoints that want them."""

    @abstractmethod
    async def read(self, name: str, after: str, limit: int) -> Sequence[Waiting]:
        """Read up to `limit` events of an endpoint's queue behind a place, in order.

        They stay in the queue, except those that this version cannot read: they become dead letters.
        """

    @abstractmethod
    async def done(self, name: str, place: str) -> None:
        """Take an event that its endpoint has accepted out of the queue."""

    @abstractmethod
    async def bury(self, name: str, place: str, letter: Letter) -> int:
        """Turn an event into a dead letter, if it is still in the queue.

        Returns:
            How many older letters were dropped to make room.
        """

    @abstractmethod
    async def letters(self, name: str) -> Sequence[Letter]:
        """Read an endpoint's dead letters, oldest first."""

    @abstractmethod
    async def replay(self, name: str, ids: Collection[str] | None) -> Sequence[str]:
        """Put dead letters at the end of the endpoint's queue again.

        Args:
            name: the endpoint.
            ids: the ids of their events; None for all.

        Returns:
            The ids of those that were found.
        """

    @abstractmethod
    async def stop(self, name: str, reason: str) -> None:
        """Mark an endpoint as stopped: nothing is sent to it until it is resumed, and its events wait."""

    @abstractmethod
    async def resume(self, name: str) -> bool:
        """Let an endpoint be sent to again; return whether it was stopped."""

    @abstractmethod
    async def forget(self, name: str) -> tuple[int, int] | None:
        """Delete an endpoint that is configured no more, with its queue and its dead letters.

        Returns:
            How many events waited, and how many dead letters there were; None if the endpoint was not known.
        """

    @abstractmethod
    async def states(self) -> dict[str, State]:
        """Read the state of every endpoint that was ever configured and not forgotten, by name."""

    @abstractmethod
    async def close(self) -> None:
        """Release the adapter's resources."""
