"""The outbox: events that were committed and that no endpoint has taken yet.

This is the port. Its adapters are `outbox_memory` (one process) and `outbox_redis` (many); ``tests/test_outbox.py``
holds both to this contract:

- A transition is in the outbox from the step on that committed it; the store's adapters write it.
- `take` moves what is there into the queue of each endpoint that wants it, in one step: nothing is lost between, and
  nothing is moved twice, whoever takes at the same time.
- A queue keeps its order. What is in it stays until it is `done` or buried, whatever becomes of the sender.
- All of it is bounded, by number, as events are of one size, some hundred bytes: an outbox that nobody takes from lets
  the oldest go; a queue that is full makes dead letters of its oldest; of dead letters the oldest go. Of what a user
  did the last is worth most: who has it knows how it is. What is let go of is counted.
- Each method raises `StoreUnavailableError` where the outbox cannot be reached. Whether the command was done is then
  not known; each can be given again, and has its effect once.
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
"""Why an event became a dead letter before its time."""

UNREADABLE = "this version cannot read it"
"""Likewise, of what another version, or somebody else, wrote. Only a version that can read it lists it."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept."""

    queue: int = 50_000
    """Events that wait for one endpoint, and such as no sender has taken."""
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
    """What the endpoint said last, for people to read."""
    attempts: int
    """How often it was sent; 0 where its turn never came."""
    failed_at: int
    """When it was given up, in Unix milliseconds."""


class Taken(msgspec.Struct, frozen=True):
    """What `take` did."""

    moved: int = 0
    """How many events it took out of the outbox."""
    let_go: int = 0
    """How many the outbox had let go of since it was last taken from."""
    buried: int = 0
    """How many became dead letters because a queue was full."""
    dropped: int = 0
    """How many dead letters had to go for them."""
    unreadable: int = 0
    """How many became dead letters since the last time because they could not be read."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an endpoint."""

    waiting: int
    """Events in its queue."""
    dead: int
    """Its dead letters."""
    stopped: str | None
    """Why nothing is sent to it; None where it is."""


class Outbox(ABC):
    """The port; see the module for the contract."""

    @abstractmethod
    async def register(self, names: Collection[str]) -> None:
        """Make endpoints known, so that they are listed before anything is sent to them."""

    @abstractmethod
    async def add(self, messages: Sequence[Message]) -> int:
        """Put events into the outbox that no store commits, while less than half of it is taken.

        Returns:
            How many there was no room for: the last of them.
        """

    @abstractmethod
    async def take(self, endpoints: Sequence[Endpoint], now: int) -> Taken:
        """Move some hundred events at the most into the queues of the endpoints that want them."""

    @abstractmethod
    async def read(self, name: str, after: str, limit: int) -> Sequence[Waiting]:
        """Read an endpoint's queue behind a place, in order; it stays there, but for what cannot be read at all."""

    @abstractmethod
    async def done(self, name: str, place: str) -> None:
        """Take an event out of an endpoint's queue, which has it."""

    @abstractmethod
    async def bury(self, name: str, place: str, letter: Letter) -> int:
        """Make a dead letter of an event, if it is still in the queue.

        Returns:
            How many older letters had to go.
        """

    @abstractmethod
    async def letters(self, name: str) -> Sequence[Letter]:
        """Read an endpoint's dead letters, oldest first."""

    @abstractmethod
    async def replay(self, name: str, ids: Collection[str] | None) -> Sequence[str]:
        """Put dead letters at the end of the endpoint's queue again.

        Args:
            name: the endpoint.
            ids: of which events; None for all.

        Returns:
            The ids of those that were there.
        """

    @abstractmethod
    async def stop(self, name: str, reason: str) -> None:
        """Send nothing to an endpoint until it is resumed; what is for it waits."""

    @abstractmethod
    async def resume(self, name: str) -> bool:
        """Send to an endpoint again; say whether it was stopped."""

    @abstractmethod
    async def forget(self, name: str) -> tuple[int, int] | None:
        """Let go of an endpoint that is one no more, with what waits for it and its dead letters.

        Returns:
            How many events waited, and how many dead letters there were; None where it was not known.
        """

    @abstractmethod
    async def states(self) -> dict[str, State]:
        """Read what is known of each endpoint that ever was one, by name."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds."""
