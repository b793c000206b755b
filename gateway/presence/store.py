"""The store: where every change is committed, once, onto an ordered log.

This is the port. Its adapters are `store_memory` (one process) and `store_redis` (many). What any adapter must do
is written here and checked by ``tests/test_store_conformance.py`` and the state machine beside it.

**The contract**

- A command is atomic. It returns what it committed, and no other command, of this node or another, sees half of it.
- A user's status follows `model.status_at`. Whenever a command changes it, exactly one `Transition` is appended to
  the log, with the user's next version: 1, 2, 3, … without gaps, over all nodes.
- Status also changes because time passes. That is committed by `sweep`, by any node; however many sweep, each
  change is committed once. A command about a user first commits what time has already done to that user.
- What a user set by hand is the user's: it outlasts their connections, until it is changed or its time is over, which
  `sweep` commits for whoever is online. While it is `Chosen.INVISIBLE`, others are told what they would be of one who
  said goodbye when it was set: nothing the user does is a transition, or changes what others read, the version
  included. What only the user is told goes along as `UserStatus.own`, and is logged as a `PrivateChange`.
- Times come from the caller. A user's `active_at` never goes back, even where callers' clocks disagree.
- The log is complete and ordered: applying it to a snapshot taken at any position rebuilds the state.
  It may be trimmed by length; a reader who fell behind is told so, and takes a snapshot.
- A store may lose what it committed: emptied, or behind after a failover. Its log then does not go on from where its
  readers are, and they are told the same. What they knew and it lost, they give back by `restore`.
- Where webhooks are sent, each transition is written to their outbox in the same step as to the log; where none are,
  nothing is. What is in it is the outbox's to say: `gateway.webhooks`.
- A node holds a lease. Its connections count as long as the lease is renewed; when it runs out they end as
  `Ending.NODE_DIED` did at that moment. A node whose lease is gone commits nothing: its commands raise.
- A session begins with each coming of a user and ends with their going, in the transition's own step, and is the truth,
  also of one who is invisible. As many are kept as `Retention` says, for as long. By it, whoever has been offline for
  long enough is forgotten by `sweep`: a `Forgotten` on the log, after which they are as one never seen, but for what
  they set by hand. To others it is so, too, of one who has been invisible for as long. Versions go on from the
  tenant's highest that was forgotten, so that nobody's grows twice.
- Each method raises `StoreUnavailableError` where the store cannot be reached. Whether the command was done is then
  not known; each can be given again, and has its effect once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import msgspec

from gateway.presence.model import NO_CHOICE, Chosen, Connection, Entry, OnlineSession, Status, Transition, UserStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.presence.model import Beat, Choice, Ending

OUTAGE = 1000
"""Milliseconds. Nodes renew several times in them: where none did, none could."""

RETURNING = 2500
"""Milliseconds within which every node is back at a store that can be reached again: an attempt that is under way is
given up after two seconds, the next one begins within a quarter of one, and tells what came meanwhile."""


class Commit(msgspec.Struct, frozen=True):
    """What a command did."""

    position: int
    """The end of the log after the command: a view that has come this far shows the command's effect."""
    transitions: tuple[Transition, ...] = ()
    """The changes it committed, in the order of the log; empty where it changed nobody's status."""
    resumed: bool = False
    """True for a `connect` that came back within a running grace."""
    queued: bool | None = None
    """Of a `connect`: whether notifications wait for the user, as of the same moment; None where the store does not
    know."""


class Snapshot(msgspec.Struct, frozen=True):
    """Every user ever seen, as of one position of the log."""

    position: int
    statuses: tuple[UserStatus, ...]


class Lease(msgspec.Struct, frozen=True):
    """What a node hears when it renews its lease."""

    held: bool = True
    """False where the lease is a new one: whatever connections the node had registered have ended, or are about
    to, and the node registers them again."""
    log_continues: bool = True
    """False where the log does not hold the position that the caller gave: the caller takes a snapshot."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a user has the status it has. Times are Unix milliseconds."""

    status: UserStatus
    """As the user is told it."""
    connections: tuple[Connection, ...]
    leases: dict[str, int]
    """Until when each node that holds one of the connections has its lease."""
    grace_until: int | None
    transitions: tuple[Transition, ...]
    """The most recent ones, oldest first."""

    @property
    def because(self) -> str:
        """Why the status is what it is, for people to read."""
        if self.connections:
            count = len(self.connections)
            doors = ", ".join(sorted({connection.door for connection in self.connections}))
            kept = f"{count} live connection{'s' if count > 1 else ''} ({doors})"
        elif not self.status.online:
            return f"the last change was: {self.transitions[-1].reason}" if self.transitions else "never seen"
        elif self.grace_until is not None and self.grace_until >= (self.status.ttl_until or 0):
            kept = "no connection lives, and the grace after the last one runs"
        else:
            kept = "no connection lives, and the last heartbeat is younger than the TTL"
        choice = NO_CHOICE if self.status.own is None else self.status.own.choice
        if choice.status is not Chosen.ONLINE:
            kept += f"; set to {choice.status.value} by hand"
        if self.status.status is Status.AWAY and choice.status is not Chosen.AWAY:
            kept += "; inactive for longer than PRESENCE_AWAY_AFTER"
        return kept


class Store(ABC):
    """The port; see the module for the contract."""

    near: ClassVar[bool]
    """True where reading the log costs no round trip."""
    traceparent: Callable[[], str | None] | None = None
    """What trace a command is part of, which the changes that it commits then are, too; None traces nothing."""

    @abstractmethod
    async def time(self) -> int | None:
        """Read the store's own clock, in Unix milliseconds; None where it has none."""

    @abstractmethod
    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        """Give `node` a lease from `now` on, or prolong the one it has.

        Args:
            node: whose lease.
            now: the time.
            position: up to where the node has followed the log; 0 for one that has not begun.
            returning: the node is new, or could not reach the store for a while. Where no other node has renewed
                its lease for `OUTAGE` either, time stood still for all: nobody could renew, connect or come
                back. Then no lease, grace or TTL runs out for a lease's length from `now`, and for `RETURNING` no
                ending takes a user offline at once: another node may have yet to tell of a connection of theirs.
        """

    @abstractmethod
    async def connections(self, node: str) -> Sequence[Connection]:
        """Read the connections that count for `node`."""

    @abstractmethod
    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        """Give back what a store lost: statuses that the caller knows, of versions that the store has not.

        A user whose version is lower here takes what is known for theirs. One who is online by it and has no
        connection here is held for a lease's length and a grace: their node registers them within it, or is dead.
        A user of the same version and another status keeps theirs here, under a version that nobody has seen.
        What only its user is told, and is lower in `Own.revision` here, is taken too.

        Until that time is over, no ending takes a user offline at once: others of their connections may be among
        what was lost.

        Raises:
            LeaseLostError: `node` holds no lease.
        """

    @abstractmethod
    async def connect(self, connection: Connection, now: int) -> Commit:
        """Count `connection` for its user, who is online from now on. A running grace ends.

        Coming online is activity; a further connection of a user who is already there is none.
        Registering the same connection again changes nothing.

        Raises:
            LeaseLostError: the connection's node holds no lease; call `renew`, then again.
        """

    @abstractmethod
    async def describe(self, connection: Connection) -> Commit:
        """Replace what is known of a connection that counts; another is left as it is. Nothing is logged."""

    @abstractmethod
    async def disconnect(
        self, connection: Connection, ending: Ending, now: int, *, active_at: int | None = None
    ) -> Commit:
        """End a connection. The last one to end decides, by `Timing.hold_after`, how long the user stays.

        A goodbye is activity; other endings are none. Ending a connection that the store does not know
        changes nothing.

        Args:
            connection: which.
            ending: how it ended.
            now: Unix milliseconds.
            active_at: when its user was last active, if the store has not been told; None if it has.

        Raises:
            LeaseLostError: as for `connect`.
        """

    @abstractmethod
    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        """Record activity, many users at once.

        Raises:
            LeaseLostError: `node` holds no lease.
        """

    @abstractmethod
    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        """End a user's TTL and grace. Live connections go on counting."""

    @abstractmethod
    async def set_status(self, tenant: str, user_id: str, choice: Choice, now: int) -> Commit:
        """Set a user's status by hand, also of one who is offline: it is there when they come back.

        It is no activity, but for what is told to others of one who comes or goes by it.
        """

    @abstractmethod
    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed: what ran out (leases, graces, TTLs, statuses set by hand), who turned away."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Read the whole state and the position it was read at."""

    @abstractmethod
    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        """Read the log past a position.

        Args:
            after: the position of the last entry the caller has.
            wait: return only when there is an entry; otherwise return at once, possibly nothing.

        Raises:
            LogTrimmedError: the log does not go on from `after`: it was trimmed, or lost what it held.
        """

    async def wait_past(self, position: Callable[[], int]) -> None:
        """Wait until the log goes on past what a reader has, who may read on meanwhile; for a store that is near.

        Args:
            position: where the reader is, asked when this turn of the loop is over in which the log grew.
        """
        raise NotImplementedError

    @abstractmethod
    async def position(self) -> int:
        """Read the position of the log's end; of a log that was lost, it may be before that of a reader."""

    @abstractmethod
    async def leases(self) -> dict[str, int]:
        """Read until when each node has its lease, in Unix milliseconds; one that ran out may still be there."""

    @abstractmethod
    async def explain(self, tenant: str, user_id: str) -> Explanation:
        """Read all that the store knows of one user."""

    @abstractmethod
    async def sessions(self, tenant: str, user_id: str, now: int, limit: int) -> Sequence[OnlineSession]:
        """Read a user's last sessions that are kept at `now`, newest first; the first may last."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds. Readers that wait are cancelled by their own side."""
