"""The store in this process's memory: for one node, and for tests of many."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import LeaseLostError, LogTrimmedError
from gateway.presence.model import (
    ACTIVE,
    CONNECTED,
    HEARTBEATS_STOPPED,
    INACTIVE,
    NO_OUTAGE,
    NOBODY,
    RELEASED,
    RESTORED,
    Activity,
    Beat,
    Connection,
    Ending,
    Entry,
    Held,
    Outage,
    Profile,
    Status,
    Timing,
    Transition,
    UserStatus,
    latest,
    next_change,
    status_at,
)
from gateway.presence.store import OUTAGE, Commit, Explanation, Lease, Snapshot, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_LENGTH = 10_000
"""Entries kept. The one reader is in the same process, and some few behind."""

TRANSITIONS_EXPLAINED = 10
"""How many of a user's transitions `explain` shows."""


class _Record:
    """One user: who they are now, what keeps them so, and when that will next change by itself."""

    __slots__ = ("due", "held", "recent", "status")

    def __init__(self, status: UserStatus) -> None:
        self.status = status
        self.held = Held()
        self.due: int | None = None
        self.recent: deque[Transition] = deque(maxlen=TRANSITIONS_EXPLAINED)


class MemoryStore(Store):
    """A store that lives and dies with its process.

    Args:
        timing: the durations that presence follows.
        log_length: how many entries the log keeps.
    """

    near = True

    def __init__(self, timing: Timing, *, log_length: int = LOG_LENGTH) -> None:
        self._timing = timing
        self._records: dict[tuple[str, str], _Record] = {}
        self._leases: dict[str, int] = {}
        self._attended: int | None = None
        """When a lease was last renewed."""
        self._outage = NO_OUTAGE
        self._loss_end = 0
        """Until when connections may be missing here that were lost."""
        self._by_node: dict[str, dict[str, Connection]] = {}
        # (when, user): at least one for each record whose status will change by itself. An entry that the
        # record's own `due` no longer names is stale, and is dropped when it comes up.
        self._due: list[tuple[int, tuple[str, str]]] = []
        self._log: deque[Entry] = deque(maxlen=log_length)
        self._position = 0
        # By the command that runs, which may commit more than the log keeps.
        self._committed: list[Transition] = []
        self._grown = asyncio.Event()

    # Commands

    async def time(self) -> int | None:
        """No clock of its own; see the port."""
        return None

    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        """Give or prolong a lease; see the port."""
        if returning and self._attended is not None and now - self._attended >= OUTAGE:
            # One outage soon after another is one with it: what the first prolonged had not run out.
            begin = min(self._outage.begin, self._attended) if self._attended < self._outage.end else self._attended
            self._outage = Outage(begin, now + self._timing.lease)
        self._attended = latest(self._attended, now)
        held = node in self._leases
        self._leases[node] = max(self._leases.get(node, now), now + self._timing.lease)
        return Lease(held=held, log_continues=not position or 0 <= self._position - position <= len(self._log))

    async def connect(self, connection: Connection, now: int) -> Commit:
        """Count a connection; see the port."""
        self._require_lease(connection.node)
        record = self._record_at(connection.tenant, connection.user_id, now)
        grace_until = record.held.grace_until
        resumed = grace_until is not None and now < self._outage.delay(grace_until)
        if connection.id not in record.held.connections:
            record.held.connections[connection.id] = connection
            self._by_node.setdefault(connection.node, {})[connection.id] = connection
            record.held.grace_until = record.held.ending = None
            active_at = record.status.active_at if record.status.online else now
            self._note(record, active_at=active_at, profile=connection.profile)
            self._settle(record, now, CONNECTED)
        return self._commit(resumed=resumed)

    async def disconnect(
        self, connection: Connection, ending: Ending, now: int, *, active_at: int | None = None
    ) -> Commit:
        """End a connection; see the port."""
        self._require_lease(connection.node)
        record = self._record_at(connection.tenant, connection.user_id, now)
        if connection.id in record.held.connections:
            self._note(record, active_at=now if ending is Ending.GOODBYE else active_at)
            self._forget(record, connection, ending, now)
            self._settle(record, now, ending)
        return self._commit()

    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        """Record activity; see the port."""
        self._require_lease(node)
        for beat in beats:
            record = self._record_at(beat.tenant, beat.user_id, beat.at)
            if not beat.holds and not record.status.online:
                continue
            self._note(
                record,
                active_at=beat.at,
                meta_json=beat.meta_json,
                profile=beat.profile,
                ttl_until=latest(record.status.ttl_until, beat.at + self._timing.ttl) if beat.holds else None,
            )
            self._settle(record, beat.at, ACTIVE)
        return self._commit()

    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        """End a TTL and a grace; see the port."""
        record = self._record_at(tenant, user_id, now)
        record.held.grace_until = record.held.ending = None
        if record.held.connections:
            self._note(record, ttl_until=0)
        else:
            record.status = msgspec.structs.replace(record.status, ttl_until=None)
            self._settle(record, now, RELEASED)
        return self._commit()

    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        """Give back what was lost; see the port. This store loses nothing; its log is read by the same rules."""
        self._require_lease(node)
        hold = self._timing.lease + self._timing.grace
        for status in known:
            record = self._records.get((status.tenant, status.user_id))
            if record is None:
                record = _Record(UserStatus(tenant=status.tenant, user_id=status.user_id))
            here = record.status
            if status.version > here.version:
                active_at = latest(here.active_at, status.active_at)
                self._change(record, msgspec.structs.replace(status, active_at=active_at), now, RESTORED)
                record.held.grace_until = record.held.ending = None
                if status.online and not record.held.connections:
                    record.held.grace_until = now + hold
                    record.held.ending = Ending.NODE_DIED
                if record.held.connections:  # that a user is gone was so before their node came back
                    self._settle(record, now, CONNECTED)
                else:
                    self._expect(record)
                self._loss_end = now + hold
            elif status.version == here.version and status.status is not here.status:
                self._change(record, msgspec.structs.replace(here, version=here.version + 1), now, RESTORED)
        return self._commit()

    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed; see the port."""
        # The lease that ran out last comes last: it decides how long a user with connections on several stays.
        for node in sorted(
            (node for node, until in self._leases.items() if now >= self._outage.delay(until)),
            key=self._leases.__getitem__,
        ):
            ran_out = self._leases.pop(node)
            for connection in list(self._by_node.get(node, {}).values()):
                record = self._records[connection.tenant, connection.user_id]
                self._forget(record, connection, Ending.NODE_DIED, self._outage.delay(ran_out))
                self._settle(record, now, Ending.NODE_DIED)
        while self._due and self._due[0][0] <= now:
            when, key = heapq.heappop(self._due)
            record = self._records[key]
            if record.due == when:
                record.due = None
                self._settle_by_time(record, now)
        return self._commit()

    # Reads

    async def connections(self, node: str) -> Sequence[Connection]:
        """Read a node's connections; see the port."""
        return tuple(self._by_node.get(node, {}).values())

    async def snapshot(self) -> Snapshot:
        """Read the whole state; see the port."""
        return Snapshot(self._position, tuple(record.status for record in self._records.values()))

    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        """Read the log; see the port."""
        while wait and self._position <= after:
            self._grown.clear()
            await self._grown.wait()
        behind = self._position - after
        if behind > len(self._log):
            raise LogTrimmedError(f"the log begins at {self._position - len(self._log) + 1}, not at {after + 1}")
        return list(islice(reversed(self._log), max(behind, 0)))[::-1]

    async def explain(self, tenant: str, user_id: str) -> Explanation:
        """Read all that is known of one user; see the port."""
        record = self._records.get((tenant, user_id)) or _Record(UserStatus(tenant=tenant, user_id=user_id))
        connections = tuple(record.held.connections.values())
        return Explanation(
            status=record.status,
            connections=connections,
            leases={connection.node: self._leases[connection.node] for connection in connections},
            grace_until=record.held.grace_until,
            transitions=tuple(record.recent),
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    # One step each

    def _require_lease(self, node: str) -> None:
        if node not in self._leases:
            raise LeaseLostError(f"node {node} holds no lease")

    def _record_at(self, tenant: str, user_id: str, now: int) -> _Record:
        """The user's record, with what time has already done to it committed."""
        record = self._records.get((tenant, user_id))
        if record is None:
            return _Record(UserStatus(tenant=tenant, user_id=user_id))  # kept once there is something to keep
        if record.due is not None and record.due <= now:
            self._settle_by_time(record, now)
        return record

    def _forget(self, record: _Record, connection: Connection, ending: Ending, at: int) -> None:
        """Take a connection away, and start the grace its ending gives where it was the last that is known here."""
        del record.held.connections[connection.id]
        del self._by_node[connection.node][connection.id]
        hold = max(self._timing.hold_after(ending), self._loss_end - at)
        if hold > 0 and not record.held.connections:
            record.held.grace_until = at + hold
            record.held.ending = ending

    def _note(
        self,
        record: _Record,
        *,
        active_at: int | None = None,
        meta_json: bytes | None = None,
        profile: Profile | None = None,
        ttl_until: int | None = None,
    ) -> None:
        """Record news that is no change of status, and log it where it says anything new of a user who is there.

        A user who is about to come online needs no entry: the transition carries everything.
        """
        news = Activity(
            position=self._position + 1,
            tenant=record.status.tenant,
            user_id=record.status.user_id,
            version=record.status.version,
            active_at=active_at,
            meta_json=meta_json,
            ttl_until=ttl_until,
            profile=None if profile == NOBODY else profile,  # a token that says nothing takes nothing back
        )
        status = news.applied_to(record.status)
        if status != record.status:
            online = record.status.online
            record.status = status
            if online:
                self._append(news)

    def _settle_by_time(self, record: _Record, now: int) -> None:
        """Commit what time alone has done to a user: out of a grace or a TTL, or away. It brings nobody online."""
        if not record.status.online:
            return
        held, ttl_until = record.held, record.status.ttl_until
        by_grace = held.grace_until is not None and held.grace_until >= (ttl_until or 0)
        self._settle(record, now, (held.ending if by_grace else None) or HEARTBEATS_STOPPED)

    def _settle(self, record: _Record, now: int, reason: str) -> None:
        """Commit the status that the rules give, if it is not the one the user has."""
        was = record.status
        status = status_at(record.held, was, now, self._timing, self._outage)
        if status is not was.status:
            online = status is not Status.OFFLINE
            if not online:
                record.held = Held()
            changed = msgspec.structs.replace(
                was,
                status=status,
                version=was.version + 1,
                online_since=(was.online_since if was.online else now) if online else None,
                ttl_until=was.ttl_until if online else None,
            )
            self._change(record, changed, now, INACTIVE if status is Status.AWAY else reason)
        self._expect(record)

    def _change(self, record: _Record, status: UserStatus, now: int, reason: str) -> None:
        """Commit a new version of a user."""
        transition = Transition(
            position=self._position + 1, at=now, was=record.status.status, now=status, reason=reason
        )
        record.status = status
        self._records[status.tenant, status.user_id] = record
        record.recent.append(transition)
        self._committed.append(transition)
        self._append(transition)

    def _expect(self, record: _Record) -> None:
        """Queue the time at which a user will next change by themselves.

        A later time than the one queued is left to be found when that one comes up, so that a heartbeat, which
        only ever moves the time back, costs no queue operation.
        """
        due = next_change(record.held, record.status, self._timing, self._outage)
        if due is not None and (record.due is None or due < record.due):
            record.due = due
            heapq.heappush(self._due, (due, (record.status.tenant, record.status.user_id)))

    def _append(self, entry: Entry) -> None:
        self._position = entry.position
        self._log.append(entry)
        self._grown.set()

    def _commit(self, *, resumed: bool = False) -> Commit:
        transitions, self._committed = tuple(self._committed), []
        return Commit(self._position, transitions, resumed)
