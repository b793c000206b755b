"""The store: where every change is committed, once, onto an ordered log.

This is the port. Its adapters are `store_memory` (one process) and `store_redis` (many processes). What an adapter must
do is written here, and checked by ``tests/test_store_conformance.py`` and ``tests/test_store_state_machine.py``.

**The contract**

- A command is atomic. It returns what it committed, and no other command, of this node or another, sees half of it.
- A user's status follows `model.status_at`. Whenever a command changes it, exactly one `Transition` is appended to
  the log, with the user's next version: 1, 2, 3, … without gaps, over all nodes.
- A status also changes because time passes. `sweep` commits that. Any node may sweep; however many do, each change is
  committed once. A command about a user first commits what time has already changed of that user.
- A status set by hand belongs to the user, not to a connection. It lasts until it is changed or its time runs out,
  which `sweep` commits for a user who is online.
- While that status is `Chosen.INVISIBLE`, others are told what they would be told had the user said goodbye when it was
  set. Nothing the user does is a transition then, or changes what others read, not even the version. The truth, which
  only the user is told, is in `UserStatus.own`, and is logged as a `PrivateChange`.
- Times come from the caller. A user's `active_at` never goes back, even if the callers' clocks disagree.
- The log is complete and ordered: applying it to a snapshot taken at any position rebuilds the state.
  It may be trimmed by length. A reader who has fallen behind its beginning gets a `LogTrimmedError`, and takes a
  snapshot.
- A store may lose what it committed: it was emptied, or is behind after a failover. Its log then does not go on from
  where its readers are, and they get a `LogTrimmedError`, too. What they know and it lost they give back by `restore`.
- If webhooks are configured, each transition is written to their outbox in the same step as to the log; otherwise not.
  `gateway.webhooks` describes the outbox.
- A node holds a lease. Its connections count as long as it renews the lease. When the lease runs out, they end at that
  moment as `Ending.NODE_DIED`. A node without a lease commits nothing: its commands raise `LeaseLostError`.
- A session begins when a user comes online and ends when they go offline, in the same step as that change. It tells the
  truth, even of an invisible user. `Retention` says how many are kept, and for how long.
- `Retention` also says when a user who stays offline is forgotten. `sweep` does it, and logs a `Forgotten`: they are
  then as if never seen, except for what they set by hand. An invisible user is forgotten in the eyes of others after
  the same time. A user who comes after that goes on from the highest version that was ever forgotten in the tenant,
  so that no version is given to the same user twice.
- Each method raises `StoreUnavailableError` if the store cannot be reached. It is then not known whether the command
  was done. Every command can be repeated, and takes effect once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import msgspec

from gateway.presence.model import NO_CHOICE, Chosen, Connection, Entry, OnlineSession, Status, Transition, UserStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.presence.model import Beat, Choice, Ending
    from gateway.runtime.traces import Tracer

OUTAGE = 1000
"""Milliseconds without any node renewing its lease that count as an outage: every node renews several times in them,
so if none did, none could."""

RETURNING = 2500
"""Milliseconds after an outage within which every node has reached the store again: an attempt under way gives up after
two seconds, the next one starts within a quarter of a second, and registers what came meanwhile."""


class Commit(msgspec.Struct, frozen=True):
    """What a command did."""

    position: int
    """The end of the log after the command: a view that has reached it shows the command's effect."""
    transitions: tuple[Transition, ...] = ()
    """The changes it committed, in the order of the log; empty if it changed nobody's status."""
    resumed: bool = False
    """True for a `connect` within a running grace: the user came back in time."""
    queued: bool | None = None
    """Of a `connect`: whether notifications wait for the user at that moment; None if the store does not know."""


class Snapshot(msgspec.Struct, frozen=True):
    """Every user that the store knows, as of one position of the log."""

    position: int
    statuses: tuple[UserStatus, ...]


class Lease(msgspec.Struct, frozen=True):
    """The answer to a node that renews its lease."""

    held: bool = True
    """False if the lease is a new one: the connections that the node had registered have ended, or are about to, and
    the node has to register them again."""
    log_continues: bool = True
    """False if the log does not go on from the position that the caller gave: the caller has to take a snapshot."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a user has the status it has. Times are Unix milliseconds."""

    status: UserStatus
    """As the user is told it, also while they are invisible."""
    connections: tuple[Connection, ...]
    leases: dict[str, int]
    """When the lease ends of each node that has one of the connections, by node."""
    grace_until: int | None
    """When the running grace ends; None if none runs."""
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
    trace: Tracer | None = None
    """What trace a command is part of, which the changes that it commits then are, too; None traces nothing."""

    @abstractmethod
    async def time(self) -> int | None:
        """Read the store's own clock, in Unix milliseconds; None if it has none."""

    @abstractmethod
    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        """Give `node` a lease from `now` on, or prolong the one it has.

        Args:
            node: whose lease.
            now: the time, in Unix milliseconds.
            position: up to where the node has followed the log; 0 for a node that has not begun.
            returning: the node is new, or could not reach the store for a while. If no other node has renewed its
                lease for `OUTAGE` either, it was an outage for all: nobody could renew, connect or come back. Then no
                lease, grace or TTL runs out for the length of a lease from `now`, and for `RETURNING` no ending takes
                a user offline at once, because another node may yet have to register a connection of theirs.
        """

    @abstractmethod
    async def connections(self, node: str) -> Sequence[Connection]:
        """Read the connections that count for `node`."""

    @abstractmethod
    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        """Give back what the store lost: statuses at versions that the caller knows and the store does not.

        For each user that the caller gives:

        - If the store's version is lower, the given status replaces it. If the user is online by it but has no
          connection in the store, they are held online for a lease plus a grace: within that time their node has
          registered the connection again, or is dead.
        - If the versions are equal and the statuses differ, the store's status stays, under a new version.
        - If only `Own.revision` is lower in the store, the private side is taken over.

        Until that time is over no ending takes a user offline at once, because other connections of theirs may be
        among what was lost.

        Raises:
            LeaseLostError: `node` holds no lease.
        """

    @abstractmethod
    async def connect(self, connection: Connection, now: int) -> Commit:
        """Register `connection` for its user, who is online from now on. A running grace ends.

        Coming online counts as activity; a further connection of a user who is online does not.
        Registering the same connection again changes nothing.

        Raises:
            LeaseLostError: the connection's node holds no lease; call `renew`, then repeat this.
        """

    @abstractmethod
    async def describe(self, connection: Connection) -> Commit:
        """Replace the details of a registered connection; one that is not registered is ignored. Nothing is logged."""

    @abstractmethod
    async def disconnect(
        self, connection: Connection, ending: Ending, now: int, *, active_at: int | None = None
    ) -> Commit:
        """End a connection. When a user's last one ends, `Timing.hold_after` decides how long they stay online.

        A goodbye counts as activity; other endings do not. Ending a connection that is not registered changes nothing.

        Args:
            connection: which.
            ending: how it ended.
            now: Unix milliseconds.
            active_at: when its user was last active, if the store has not been told yet; None if it has.

        Raises:
            LeaseLostError: as for `connect`.
        """

    @abstractmethod
    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        """Record activity of many users at once.

        Raises:
            LeaseLostError: `node` holds no lease.
        """

    @abstractmethod
    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        """End a user's TTL and grace at once, as a backend's logout does. Live connections keep counting."""

    @abstractmethod
    async def set_status(self, tenant: str, user_id: str, choice: Choice, now: int) -> Commit:
        """Set a user's status by hand. A user who is offline has it when they come back.

        It does not count as activity, with one exception: a user who becomes invisible, or visible again, is last seen
        at that moment.
        """

    @abstractmethod
    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed: leases, graces, TTLs and hand-set statuses that ran out, users now away."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Read the whole state and the position it was read at."""

    @abstractmethod
    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        """Read the log past a position.

        Args:
            after: the position of the last entry the caller has.
            wait: True returns only when there is an entry; False returns at once, possibly with nothing.

        Raises:
            LogTrimmedError: the log does not go on from `after`: it was trimmed, or lost its entries.
        """

    async def wait_past(self, position: Callable[[], int]) -> None:
        """Wait until the log has an entry that the reader has not. Only for a store that is `near`.

        Args:
            position: returns where the reader is. It is called at the end of the loop's turn in which the log grew: the
                reader may have read on by itself.
        """
        raise NotImplementedError

    @abstractmethod
    async def position(self) -> int:
        """Read the position of the log's end. If the store lost its log, it may be before the position of a reader."""

    @abstractmethod
    async def leases(self) -> dict[str, int]:
        """Read when each node's lease ends, in Unix milliseconds; one that ran out may still be listed."""

    @abstractmethod
    async def explain(self, tenant: str, user_id: str) -> Explanation:
        """Read everything that the store knows about one user."""

    @abstractmethod
    async def sessions(self, tenant: str, user_id: str, now: int, limit: int) -> Sequence[OnlineSession]:
        """Read a user's last `limit` sessions that are still kept at `now`, newest first; the first may be running."""

    @abstractmethod
    async def close(self) -> None:
        """Release the adapter's resources. Whoever waits in `read` is cancelled by its own task's owner."""
