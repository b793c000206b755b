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
    NOBODY,
    RELEASED,
    Activity,
    Beat,
    Connection,
    Ending,
    Entry,
    Held,
    Profile,
    Status,
    Timing,
    Transition,
    UserStatus,
    latest,
    next_change,
    status_at,
)
from gateway.presence.store import Commit, Explanation, Snapshot, Store

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

    def __init__(self, timing: Timing, *, log_length: int = LOG_LENGTH) -> None:
        self._timing = timing
        self._records: dict[tuple[str, str], _Record] = {}
        self._leases: dict[str, int] = {}
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

    async def renew(self, node: str, now: int) -> bool:
        """Give or prolong a lease; see the port."""
        held = node in self._leases
        self._leases[node] = max(self._leases.get(node, now), now + self._timing.lease)
        return held

    async def connect(self, connection: Connection, now: int) -> Commit:
        """Count a connection; see the port."""
        self._require_lease(connection.node)
        record = self._record_at(connection.tenant, connection.user_id, now)
        resumed = record.held.grace_until is not None and now < record.held.grace_until
        if connection.id not in record.held.connections:
            record.held.connections[connection.id] = connection
            self._by_node.setdefault(connection.node, {})[connection.id] = connection
            record.held.grace_until = record.held.ending = None
            active_at = record.status.active_at if record.status.online else now
            self._note(record, active_at=active_at, profile=connection.profile)
            self._settle(record, now, CONNECTED)
        return self._commit(resumed=resumed)

    async def disconnect(self, connection: Connection, ending: Ending, now: int) -> Commit:
        """End a connection; see the port."""
        self._require_lease(connection.node)
        record = self._record_at(connection.tenant, connection.user_id, now)
        if connection.id in record.held.connections:
            if ending is Ending.GOODBYE:
                self._note(record, active_at=now)
            self._forget(record, connection, ending, now)
            self._settle(record, now, ending)
        return self._commit()

    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        """Record activity; see the port."""
        self._require_lease(node)
        for beat in beats:
            record = self._record_at(beat.tenant, beat.user_id, beat.at)
            if beat.holds:
                record.held.ttl_until = latest(record.held.ttl_until, beat.at + self._timing.ttl)
            elif not record.status.online:
                continue
            self._note(record, active_at=beat.at, meta_json=beat.meta_json, profile=beat.profile)
            self._settle(record, beat.at, ACTIVE)
        return self._commit()

    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        """End a TTL and a grace; see the port."""
        record = self._record_at(tenant, user_id, now)
        record.held.ttl_until = record.held.grace_until = record.held.ending = None
        self._settle(record, now, RELEASED)
        return self._commit()

    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed; see the port."""
        # The lease that ran out last comes last: it decides how long a user with connections on several stays.
        for node in sorted(
            (node for node, until in self._leases.items() if now >= until), key=self._leases.__getitem__
        ):
            ran_out = self._leases.pop(node)
            for connection in list(self._by_node.get(node, {}).values()):
                record = self._records[connection.tenant, connection.user_id]
                self._forget(record, connection, Ending.NODE_DIED, ran_out)
                self._settle(record, now, Ending.NODE_DIED)
        while self._due and self._due[0][0] <= now:
            when, key = heapq.heappop(self._due)
            record = self._records[key]
            if record.due == when:
                record.due = None
                self._settle_by_time(record, now)
        return self._commit()

    # Reads

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
            ttl_until=record.held.ttl_until,
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
        """Take a connection away, and start the grace its ending gives where it was the last."""
        del record.held.connections[connection.id]
        del self._by_node[connection.node][connection.id]
        hold = self._timing.hold_after(ending)
        if hold and not record.held.connections:
            record.held.grace_until = at + hold
            record.held.ending = ending

    def _note(
        self,
        record: _Record,
        *,
        active_at: int | None = None,
        meta_json: bytes | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Record news that is no change of status, and log it where it says anything new of a user who is there.

        A user who is about to come online needs no entry: the transition carries everything.
        """
        news = Activity(
            position=self._position + 1,
            tenant=record.status.tenant,
            user_id=record.status.user_id,
            active_at=active_at,
            meta_json=meta_json,
            profile=None if profile == NOBODY else profile,  # a token that says nothing takes nothing back
        )
        status = news.applied_to(record.status)
        if status != record.status:
            online = record.status.online
            record.status = status
            if online:
                self._append(news)

    def _settle_by_time(self, record: _Record, now: int) -> None:
        """Commit what time alone has done to a user: out of a grace or a TTL, or away."""
        until = record.held.until()
        if record.held.connections or until is None or now < until:
            self._settle(record, now, INACTIVE)
        else:
            ending = record.held.ending if until == record.held.grace_until else None
            self._settle(record, now, ending or HEARTBEATS_STOPPED)

    def _settle(self, record: _Record, now: int, reason: str) -> None:
        """Commit the status that the rules give, if it is not the one the user has."""
        was = record.status
        status = status_at(record.held, was.active_at, now, self._timing)
        if status != was.status:
            self._records[was.tenant, was.user_id] = record
            online = status is not Status.OFFLINE
            if not online:
                record.held = Held()
            record.status = msgspec.structs.replace(
                was,
                status=status,
                version=was.version + 1,
                online_since=(was.online_since if was.online else now) if online else None,
            )
            transition = Transition(
                position=self._position + 1,
                at=now,
                was=was.status,
                now=record.status,
                reason=INACTIVE if status is Status.AWAY else reason,
            )
            record.recent.append(transition)
            self._committed.append(transition)
            self._append(transition)
        due = next_change(record.held, record.status.active_at, record.status.status, self._timing)
        # A later time than the one queued is left to be found when that one comes up, so that a heartbeat,
        # which only ever moves the time back, costs no queue operation.
        if due is not None and (record.due is None or due < record.due):
            record.due = due
            heapq.heappush(self._due, (due, (was.tenant, was.user_id)))

    def _append(self, entry: Entry) -> None:
        self._position = entry.position
        self._log.append(entry)
        self._grown.set()

    def _commit(self, *, resumed: bool = False) -> Commit:
        transitions, self._committed = tuple(self._committed), []
        return Commit(self._position, transitions, resumed)
