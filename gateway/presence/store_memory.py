"""The store in this process's memory: for one node, and for tests of many."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import LeaseLostError, LogTrimmedError
from gateway.presence.model import (
    ACTIVE,
    AWAY,
    CHOSEN,
    CONNECTED,
    HEARTBEATS_STOPPED,
    INACTIVE,
    NO_CHOICE,
    NO_OUTAGE,
    NOBODY,
    NOTHING_SET,
    OFFLINE,
    PART,
    RAN_OUT,
    RELEASED,
    RESTORED,
    Activity,
    Beat,
    Choice,
    Chosen,
    Connection,
    Ending,
    Entry,
    Forgotten,
    Held,
    OnlineSession,
    Outage,
    Own,
    PrivateChange,
    Profile,
    Timing,
    Transition,
    UserStatus,
    earliest,
    forgotten_at,
    latest,
    next_change,
    over_at,
    parted,
    status_at,
)
from gateway.presence.readers import Readers
from gateway.presence.record import Record, end_session, revision_of, show_or_hide
from gateway.presence.store import OUTAGE, RETURNING, Commit, Explanation, Lease, Snapshot, Store
from gateway.runtime.compiled import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOG_LENGTH = 10_000
"""Entries kept. The one reader is in the same process, and some few behind."""

TRANSITIONS_EXPLAINED = 10
"""How many of a user's transitions `explain` shows."""


@mypyc_attr(allow_interpreted_subclasses=True)
class MemoryStore(Store):
    """A store that lives and dies with its process.

    Args:
        timing: the durations that presence follows.
        log_length: how many entries the log keeps.
        begin: the position before its first entry. If it is higher at each start, a position that a client remembers
            from an earlier process is found to belong to another log.
        keep: puts each transition into the outbox of webhooks as it is committed; None without webhooks.
    """

    near = True

    def __init__(
        self,
        timing: Timing,
        *,
        log_length: int = LOG_LENGTH,
        begin: int = 0,
        keep: Callable[[Transition], None] | None = None,
    ) -> None:
        self._timing = timing
        self._keep = keep
        self._retention = timing.retention
        self._floors: dict[str, int] = {}
        """The highest version that was forgotten, by tenant. The next user without a version begins above it."""
        self._records: dict[tuple[str, str], Record] = {}
        """By tenant and user id."""
        self._leases: dict[str, int] = {}
        """When each node's lease ends."""
        self._attended: int | None = None
        """When any lease was last renewed; None before the first."""
        self._outage = NO_OUTAGE
        """The last one."""
        self._by_node: dict[str, dict[str, Connection]] = {}
        """The connections of each node, by id."""
        self._due: list[tuple[int, str, str]] = []
        """A heap of (when, tenant, user), with at least one entry for each user whose status will change by itself. An
        entry that is not the record's own `due` any more is stale, and is dropped when its time comes."""
        self._log: deque[Entry] = deque(maxlen=log_length)
        self._position = begin
        self._committed: list[Transition] = []
        """By the command that runs: the log may keep fewer than one command commits."""
        self._readers = Readers(lambda: self._position)

    # Commands

    async def time(self) -> int | None:
        """No clock of its own; see the port."""
        return None

    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        """Give or prolong a lease; see the port."""
        if returning and self._attended is not None and now - self._attended >= OUTAGE:
            # An outage that follows another before it is over continues that one: nothing has run out in between.
            begin = min(self._outage.begin, self._attended) if self._attended < self._outage.end else self._attended
            self._outage = Outage(begin, now + self._timing.lease, max(self._outage.loss_end, now + RETURNING))
        self._attended = latest(self._attended, now)
        held = node in self._leases
        self._leases[node] = max(self._leases.get(node, now), now + self._timing.lease)
        return Lease(held=held, log_continues=not position or 0 <= self._position - position <= len(self._log))

    async def connect(self, connection: Connection, now: int) -> Commit:
        """Count a connection; see the port."""
        self._require_lease(connection.node)
        record = self._record_at(connection.tenant, connection.user_id, now)
        grace_until = record.held.grace_until
        resumed = grace_until is not None and now < self._outage.delay_grace(grace_until, record.held.ending)
        if connection.id not in record.held.connections:
            record.held.connections[connection.id] = connection
            self._by_node.setdefault(connection.node, {})[connection.id] = connection
            record.held.grace_until = record.held.ending = record.held.lost_at = None
            if record.opened is not None:
                record.opened += 1
            active_at = record.status.active_at if record.status.online else now
            self._note(record, active_at=active_at, profile=connection.profile)
            # A node that was away may register it late; its session still must not begin before the last one ended.
            gone_at = record.sessions[-1].ended_at if record.sessions else None
            self._settle(record, max(now, gone_at or 0), CONNECTED, opener=connection)
        return self._commit(resumed=resumed)

    async def describe(self, connection: Connection) -> Commit:
        """Replace what is known of a connection; see the port."""
        record = self._records.get((connection.tenant, connection.user_id))
        if record is not None and connection.id in record.held.connections:
            record.held.connections[connection.id] = connection
            self._by_node[connection.node][connection.id] = connection
        return self._commit()

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

    async def set_status(self, tenant: str, user_id: str, choice: Choice, now: int) -> Commit:
        """Set a status by hand; see the port."""
        record = self._record_at(tenant, user_id, now)
        own = record.status.own or NOTHING_SET
        if choice != own.choice:
            record.status = msgspec.structs.replace(record.status, own=msgspec.structs.replace(own, choice=choice))
            self._settle(record, now, CHOSEN, chose=True)
        return self._commit()

    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        """Give back what was lost; see the port. This store loses nothing, but keeps the same contract."""
        self._require_lease(node)
        hold = self._timing.lease + self._timing.grace
        for status in known:
            record = self._records.get((status.tenant, status.user_id))
            if record is None:
                record = Record(UserStatus(tenant=status.tenant, user_id=status.user_id))
            here = record.published
            if status.version > here.version:
                self._take(record, status, now, hold)
                self._change(record, here, self._version_after(status.tenant, status.version - 1), now, RESTORED)
            elif status.version == here.version and status.status is not here.status:
                self._change(record, here, self._version_after(here.tenant, here.version), now, RESTORED)
                continue
            elif status.version == here.version and revision_of(status) > revision_of(here):
                self._take(record, status, now, hold)
                self._keep_private(record)
            else:
                continue
            if record.held.connections:  # a status of offline is older than their node's return
                self._settle(record, now, CONNECTED)
            else:
                self._expect(record)
            self._outage = msgspec.structs.replace(self._outage, loss_end=max(self._outage.loss_end, now + hold))
        return self._commit()

    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed; see the port."""
        # The lease that ran out last comes last: it decides how long a user with connections to several nodes stays.
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
            when, tenant, user_id = heapq.heappop(self._due)
            known = self._records.get((tenant, user_id))
            if known is not None and known.due == when:
                known.due = None
                self._settle_by_time(known, now)
                self._let_go(known, now)
        return self._commit()

    # Reads

    async def connections(self, node: str) -> Sequence[Connection]:
        """Read a node's connections; see the port."""
        return tuple(self._by_node.get(node, {}).values())

    async def snapshot(self) -> Snapshot:
        """Read the whole state; see the port."""
        return Snapshot(self._position, tuple(record.published for record in self._records.values()))

    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        """Read the log; see the port."""
        if wait and self._position <= after:
            await self._readers.wait_past(lambda: after)
        behind = self._position - after
        if behind > len(self._log):
            raise LogTrimmedError(f"the log begins at {self._position - len(self._log) + 1}, not at {after + 1}")
        return list(islice(reversed(self._log), max(behind, 0)))[::-1]

    async def wait_past(self, position: Callable[[], int]) -> None:
        """Wait for more than a reader has; see the port."""
        await self._readers.wait_past(position)

    async def position(self) -> int:
        """Read where the log ends; see the port."""
        return self._position

    async def leases(self) -> dict[str, int]:
        """Read who holds a lease; see the port."""
        return dict(self._leases)

    async def explain(self, tenant: str, user_id: str) -> Explanation:
        """Read all that is known of one user; see the port."""
        record = self._records.get((tenant, user_id)) or Record(UserStatus(tenant=tenant, user_id=user_id))
        connections = tuple(record.held.connections.values())
        return Explanation(
            status=record.status,
            connections=connections,
            leases={connection.node: self._leases[connection.node] for connection in connections},
            grace_until=record.held.grace_until,
            transitions=record.recent,
        )

    async def sessions(self, tenant: str, user_id: str, now: int, limit: int) -> Sequence[OnlineSession]:
        """Read a user's sessions; see the port."""
        record = self._records.get((tenant, user_id))
        if record is None or not self._retention.sessions:
            return ()
        kept = [session for session in record.sessions if session.is_kept_at(now, self._retention)]
        if record.opened is not None:
            kept[-1] = msgspec.structs.replace(kept[-1], connections=record.opened)
        return kept[::-1][:limit]

    async def close(self) -> None:
        """Nothing to let go of."""

    # One step each

    def _require_lease(self, node: str) -> None:
        if node not in self._leases:
            raise LeaseLostError(f"node {node} holds no lease")

    def _record_at(self, tenant: str, user_id: str, now: int) -> Record:
        """The user's record, with what time has already done to it committed."""
        record = self._records.get((tenant, user_id))
        if record is None:
            return Record(UserStatus(tenant=tenant, user_id=user_id))  # stored when something is committed to it
        own = record.status.own
        if record.due is not None and record.due <= now:
            self._settle_by_time(record, now)
            own = record.status.own
        if own is not None and not own.choice.holds_at(now):  # the user is offline, so no sweep has committed it
            self._settle(record, now, RAN_OUT)
        return record

    def _forget(self, record: Record, connection: Connection, ending: Ending, at: int) -> None:
        """Remove a connection; if it was the user's last, start the grace that its ending gives."""
        del record.held.connections[connection.id]
        del self._by_node[connection.node][connection.id]
        hold = max(self._timing.hold_after(ending), self._outage.loss_end - at)
        if hold > 0 and record.held.connections:
            record.held.lost_at = latest(record.held.lost_at, at)
        elif hold > 0:
            # This one may be reported late, by a node that is slow or dead: the grace counts from the last loss.
            record.held.grace_until = max(at, record.held.lost_at or 0) + hold
            record.held.ending = ending

    def _note(
        self,
        record: Record,
        *,
        active_at: int | None = None,
        meta_json: bytes | None = None,
        profile: Profile | None = None,
        ttl_until: int | None = None,
    ) -> None:
        """Record news that changes no status, and log it if it is new and the user is online.

        A user who is offline needs no entry: the transition that brings them online carries everything.
        """
        news = Activity(
            position=self._position + 1,
            tenant=record.status.tenant,
            user_id=record.status.user_id,
            version=record.status.version,
            active_at=active_at,
            meta_json=meta_json,
            ttl_until=ttl_until,
            profile=None if profile == NOBODY else profile,  # a token without claims does not erase those of another
        )
        status = news.applied_to(record.status)
        if status != record.status:
            online = record.status.online
            record.status = status
            if online:
                if record.shown is None:
                    self._append(news)
                else:
                    self._keep_private(record)

    def _settle_by_time(self, record: Record, now: int) -> None:
        """Commit what time alone has changed: a grace or TTL ran out, or the user became away."""
        if not record.status.online:
            return
        held, ttl_until = record.held, record.status.ttl_until
        by_grace = held.grace_until is not None and held.grace_until >= (ttl_until or 0)
        self._settle(record, now, (held.ending if by_grace else None) or HEARTBEATS_STOPPED)

    def _settle(
        self, record: Record, now: int, reason: str, *, chose: bool = False, opener: Connection | None = None
    ) -> None:
        """Commit the status that the rules give, if it differs from the one the user has, or if they have set one.

        Args:
            record: whose.
            now: the time.
            reason: what brought it about.
            chose: whether the user has just set a status by hand.
            opener: the connection that brought the user online; None if none did.
        """
        was = record.status
        ran_out = was.own is not None and not was.own.choice.holds_at(now)
        status = status_at(record.held, was, now, self._timing, self._outage)
        if status is not was.status or ran_out or chose:
            self._settle_anew(record, now, reason, chose=chose, opener=opener)
        self._expect(record)

    def _settle_anew(self, record: Record, now: int, reason: str, *, chose: bool, opener: Connection | None) -> None:
        """Commit a change of a user: as a new version if others see it, otherwise privately."""
        before, hid = record.published, record.shown
        was, own = record.status, record.status.own
        ran_out = own is not None and not own.choice.holds_at(now)
        if own is not None:
            own = Own(choice=NO_CHOICE if ran_out else own.choice, revision=own.revision + 1)
            was = msgspec.structs.replace(was, own=own)
        choice = NO_CHOICE if own is None else own.choice
        status = status_at(record.held, was, now, self._timing, self._outage)
        if status is not OFFLINE and (hid is None) is (choice.status is Chosen.INVISIBLE):
            # Becoming invisible looks like a goodbye, which is activity; becoming visible looks like coming online now.
            # What the user did while unseen stays unseen.
            since = was.online_since if hid is None else now
            was = msgspec.structs.replace(was, active_at=latest(was.active_at, now), online_since=since)
            status = status_at(record.held, was, now, self._timing, self._outage)
        online, due = status is not OFFLINE, None
        if not online:
            due = over_at(record.held, was, reason, self._outage)
            record.held = Held()
        record.status = msgspec.structs.replace(
            was,
            status=status,
            status_text=choice.text if online else None,
            online_since=(was.online_since if was.online else now) if online else None,
            ttl_until=was.ttl_until if online else None,
        )
        if online and not was.online:
            self._begin_session(record, now, opener)
        elif was.online and not online:
            end_session(record, now, reason)
        show_or_hide(record, choice)
        after = record.shown or record.status
        if after.status is before.status and after.status_text == before.status_text:
            self._keep_private(record)
            return
        if before.online and after.online:
            if ran_out or (status is AWAY and not chose):
                reason = RAN_OUT if ran_out else INACTIVE
        elif record.shown is not hid:  # it must look as if the user had really come or gone
            reason, due = (CONNECTED if after.online else Ending.GOODBYE), None
        self._change(record, before, self._version_after(before.tenant, before.version), now, reason, due)

    def _take(self, record: Record, known: UserStatus, now: int, hold: int) -> None:
        """Replace a user's state by what a node knows of them, and hold them online as `restore` says."""
        true, record.shown = parted(known)
        record.status = msgspec.structs.replace(true, active_at=latest(record.status.active_at, true.active_at))
        record.held.grace_until = record.held.ending = None
        if true.online and not record.held.connections:
            record.held.grace_until = now + hold
            record.held.ending = Ending.NODE_DIED
        if true.online and record.opened is None:
            self._begin_session(record, true.online_since or now, None)
        elif not true.online:
            end_session(record, now, RESTORED)

    def _version_after(self, tenant: str, version: int) -> int:
        """The next version of a user. One at version 0 begins above every version that was forgotten in the tenant."""
        return (version or self._floors.get(tenant.partition(PART)[0], 0)) + 1

    def _begin_session(self, record: Record, now: int, opener: Connection | None) -> None:
        if self._retention.sessions:
            session = OnlineSession(begun_at=now, device=None if opener is None else opener.device)
            kept = record.sessions
            while kept and not kept[0].is_kept_at(now, self._retention):  # oldest first
                kept = kept[1:]
            record.sessions = (*kept, session)[-self._retention.sessions :]
            record.opened = len(record.held.connections)

    def _let_go(self, record: Record, now: int) -> None:
        """Delete what has been kept of a user for as long as `Retention` says."""
        sessions = record.sessions
        if not record.status.online and sessions and not sessions[-1].is_kept_at(now, self._retention):
            record.sessions = ()
        due = forgotten_at(record.status, record.shown, self._retention)
        if due is not None and now >= due:
            self._forget_user(record, now)
        if (record.status.tenant, record.status.user_id) in self._records:
            self._expect(record)

    def _forget_user(self, record: Record, now: int) -> None:
        """Commit that a user is as if never seen, except for what they have set by hand."""
        status, shown, own = record.status, record.shown, record.status.own
        whole = status.tenant.partition(PART)[0]
        self._floors[whole] = max(self._floors.get(whole, 0), status.version)
        unseen = UserStatus(tenant=status.tenant, user_id=status.user_id)
        left = msgspec.structs.replace(
            status, version=0, own=None if own is None else msgspec.structs.replace(own, revision=own.revision + 1)
        )
        over = forgotten_at(status, None, self._retention)
        gone = over is not None and now >= over
        if gone:
            left = msgspec.structs.replace(unseen, own=left.own)
            record.recent, record.sessions = (), ()
        record.status = left
        record.shown = None if shown is None else unseen
        is_kept = self._retention.choices and own is not None and own.choice != NO_CHOICE and own.choice.holds_at(now)
        if gone and not is_kept:
            del self._records[status.tenant, status.user_id]
            record.status, record.shown = unseen, None
        self._append(Forgotten(position=self._position + 1, now=record.published, version=status.version))

    def _change(
        self, record: Record, before: UserStatus, version: int, now: int, reason: str, due: int | None = None
    ) -> None:
        """Commit a new version of a user; `before` is what others were told until now."""
        record.status = msgspec.structs.replace(record.status, version=version)
        if record.shown is not None:
            record.shown = msgspec.structs.replace(record.shown, version=version)
        trace = None if self.trace is None else self.trace()
        transition = Transition(
            position=self._position + 1,
            at=now,
            was=before.status,
            was_text=before.status_text,
            now=record.published,
            reason=reason,
            due=due,
            traceparent=None if trace is None else trace.traceparent,
            tracestate=None if trace is None else trace.tracestate,
        )
        self._records[record.status.tenant, record.status.user_id] = record
        record.recent = (*record.recent[1 - TRANSITIONS_EXPLAINED :], transition)
        self._committed.append(transition)
        self._append(transition)
        if self._keep is not None:
            self._keep(transition)

    def _keep_private(self, record: Record) -> None:
        """Commit a change that others do not see."""
        self._records[record.status.tenant, record.status.user_id] = record
        self._append(PrivateChange(position=self._position + 1, now=record.published))

    def _expect(self, record: Record) -> None:
        """Queue the time at which a user will next change without a command.

        If an earlier time is queued already, nothing is done: the new one is computed again when that comes. So a
        heartbeat, which only ever postpones the change, costs no queue operation.
        """
        due = next_change(record.held, record.status, self._timing, self._outage)
        due = earliest(due, forgotten_at(record.status, record.shown, self._retention))
        if record.sessions and not record.status.online:
            due = earliest(due, (record.sessions[-1].ended_at or 0) + self._retention.sessions_ttl)
        if due is not None and (record.due is None or due < record.due):
            record.due = due
            heapq.heappush(self._due, (due, record.status.tenant, record.status.user_id))

    def _append(self, entry: Entry) -> None:
        self._position = entry.position
        self._log.append(entry)
        self._readers.grown()

    def _commit(self, *, resumed: bool = False) -> Commit:
        transitions, self._committed = tuple(self._committed), []
        return Commit(self._position, transitions, resumed)
