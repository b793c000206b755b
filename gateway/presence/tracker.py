"""The one executor behind every door: commits commands in the store, and keeps this node's part of it alive."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import LeaseLostError, StoreUnavailableError
from gateway.presence.clock import follow
from gateway.presence.figures import Commits
from gateway.presence.model import Beat, Ending
from gateway.presence.store import OUTAGE, Commit
from gateway.presence.touches import Touches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gateway.presence.clock import Clock
    from gateway.presence.follower import Follower
    from gateway.presence.model import Choice, Connection
    from gateway.presence.store import Lease, Store

_log = structlog.get_logger(__name__)

SWEEP_INTERVAL = 0.25
"""Seconds between sweeps: how late, at the most, a grace that ran out is committed."""

CHUNK = 500
"""Commands that a node gives at a time when it registers its connections again."""

TOUCH_INTERVAL = 1_000
"""Milliseconds that activity which changes nothing else is gathered for before the store is told: a node that is
killed forgets as much of when its users were last active."""

RECHECK = 60_000
"""Milliseconds after which the store's picture of this node is compared with the truth, though nothing went wrong: a
command that was taken for lost may have come late."""

REMINDER = 60_000
"""Milliseconds between log lines that say that the store is still away."""

RETRIES = 3
"""How often a command is tried again whose node lost its lease in between."""


class _Late(msgspec.Struct, frozen=True):
    """What one user did while the store was away."""

    released: bool = False
    beat: Beat | None = None
    """After the release, where there was one."""


class Tracker:
    """This node's hand on the store.

    A command returns once this node's view holds what it committed, so that whoever gave it reads its effect. While
    the store is away it returns at once: what is to be so is remembered here, and made so when the store is back.

    Args:
        node: this node's name, unique in the cluster and new with each start.
        store: where commands are committed.
        follower: what brings their effect into the view.
        clock: the time, in Unix milliseconds; it is set by the store's where that has one.
        away_after: milliseconds without activity until a user turns away.
    """

    def __init__(self, node: str, store: Store, follower: Follower, clock: Clock, *, away_after: int) -> None:
        self.node = node
        self.away: str | None = "not connected to the store yet"
        """Why the store cannot be reached; None where it can."""
        self.now = clock
        self._clock = clock
        self._store = store
        self._follower = follower
        self._connections: dict[str, Connection] = {}
        """Those that live, which are those that the store is to know."""
        self._late: dict[tuple[str, str], _Late] = {}
        # Long before a user would turn away by what the store knows.
        self.touches = Touches(follower.view, away_after // 2)
        """Where activity is recorded that changes nothing but when it was. Other activity is a `beat`."""
        self.commits = Commits()
        """What this node has committed."""
        self.found_queued: Callable[[Connection], object] | None = None
        """Called with a connection of which the store said only later that notifications wait for its user."""
        self._settled = False
        """Whether it knows."""
        self._settled_at = 0
        self._recovering = asyncio.Lock()
        self._recoveries = 0
        self._lost_touch = False
        self._disturbed = False
        """Whether touch was lost since the last reconciliation began."""
        self._reminded_at: int | None = None
        self._sweeps_from = 0

    @property
    def ready(self) -> bool:
        """Whether this node's view knows anybody: False until the store has answered once."""
        return self._follower.loaded

    @property
    def clock_offset(self) -> int:
        """Milliseconds that this machine's clock is behind the one that presence goes by."""
        return self._clock.offset

    @property
    def log_lag(self) -> float:
        """Seconds for which the log has been known to hold what this node has not read."""
        return self.commits.lag(self._follower.position, self.now())

    # Commands

    async def connect(self, connection: Connection) -> Commit:
        """Count a connection of this node for its user."""
        self._connections[connection.id] = connection

        async def register() -> Commit:
            if connection.id not in self._connections:  # it ended while the node's lease was got back
                return Commit(0)
            return await self._store.connect(connection, self.now())

        return await self._commit(register) or Commit(0)

    async def describe(self, connection: Connection) -> None:
        """Replace what the store knows of a connection of this node; while it is away, it is told later."""
        if connection.id in self._connections:
            self._connections[connection.id] = connection
            if await self._commit(lambda: self._store.describe(connection)) is None:
                self._settled, self._disturbed = False, True  # a round that is under way may have looked before

    async def disconnect(self, connection: Connection, ending: Ending) -> Commit:
        """End a connection of this node."""
        self._connections.pop(connection.id, None)
        user = connection.tenant, connection.user_id
        # Told with it, not before: of two connections that end in one moment, the store hears in their order.
        active_at = self.touches.gathered.pop(user, None)
        commit = await self._commit(lambda: self._store.disconnect(connection, ending, self.now(), active_at=active_at))
        if commit is None and active_at is not None:
            self._remember(Beat(tenant=user[0], user_id=user[1], at=active_at))
        return commit or Commit(0)

    async def beat(self, beat: Beat) -> Commit:
        """Record activity."""
        self.touches.gathered.pop((beat.tenant, beat.user_id), None)
        return await self._beat([beat])

    async def release(self, tenant: str, user_id: str) -> Commit:
        """End what keeps a user online but live connections."""
        if (tenant, user_id) in self.touches.gathered:
            await self._tell_touched()
        commit = await self._commit(lambda: self._store.release(tenant, user_id, self.now()))
        if commit is None:
            self._late[tenant, user_id] = _Late(released=True)
        return commit or Commit(0)

    async def set_status(self, tenant: str, user_id: str, choice: Choice) -> Commit:
        """Set a user's status by hand. It is not remembered while the store is away: it would be answered too early.

        Raises:
            StoreUnavailableError: the store is away.
        """
        if (tenant, user_id) in self.touches.gathered:
            await self._tell_touched()
        commit = await self._commit(lambda: self._store.set_status(tenant, user_id, choice, self.now()))
        if commit is None:
            raise StoreUnavailableError(self.away or "not in touch with the store")
        return commit

    # Timers

    async def run(self) -> None:
        """Keep the lease, and sweep, until cancelled. A failing round is logged, and tried again by the next.

        A sweep is many round trips, which over a slow link are longer than a lease: meanwhile that is kept.
        """
        sweeping: asyncio.Task[bool] | None = None
        try:
            while True:
                if await self._try(self.keep) and (sweeping is None or sweeping.done()):
                    sweeping = asyncio.create_task(self._try(self.sweep))
                await asyncio.sleep(SWEEP_INTERVAL)
        finally:
            if sweeping is not None:
                sweeping.cancel()

    async def tick(self) -> None:
        """Do what is due now. The lease comes first: a node that slept must not sweep itself away.

        Raises:
            StoreUnavailableError: the store is away.
            LeaseLostError: the lease went again at once.
        """
        await self.keep()
        await self.sweep()

    async def keep(self) -> None:
        """Renew the lease, and tell the store what it should know of this node and does not.

        Raises:
            StoreUnavailableError: the store is away.
            LeaseLostError: the lease went again at once.
        """
        with self._losing_touch():
            async with self._recovering:
                await self._recover()

    async def sweep(self) -> None:
        """Commit what time has changed, and tell what users of this node did.

        Raises:
            StoreUnavailableError: the store is away.
        """
        with self._losing_touch():
            if self.touches.gathered and self.now() - self.touches.since >= TOUCH_INTERVAL:
                await self._tell_touched()
            if self.now() >= self._sweeps_from:
                self.commits.swept(await self._sweep(), self._follower.position, self.now())

    # One step each

    async def _try(self, part: Callable[[], Awaitable[None]]) -> bool:
        try:
            await part()
        except (StoreUnavailableError, LeaseLostError):
            return False  # said when it began
        except Exception:
            _log.exception("a round of the tracker failed")
            return False
        return True

    @contextmanager
    def _losing_touch(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailableError as error:
            self._lose_touch(error)
            raise

    async def _sweep(self) -> Commit:
        return await self._store.sweep(self.now())

    async def _tell_touched(self) -> None:
        touched = self.touches.take()
        await self._beat([Beat(tenant=tenant, user_id=user, at=at) for (tenant, user), at in touched.items()])

    async def _beat(self, beats: Sequence[Beat]) -> Commit:
        commit = await self._commit(lambda: self._store.beat(self.node, beats))
        if commit is None:
            for beat in beats:
                self._remember(beat)
        return commit or Commit(0)

    def _remember(self, beat: Beat) -> None:
        """Tell the store of activity when it is back."""
        key = beat.tenant, beat.user_id
        late = self._late.get(key, _Late())
        self._late[key] = _Late(late.released, beat if late.beat is None else late.beat.followed_by(beat))

    async def _commit(self, command: Callable[[], Awaitable[Commit]]) -> Commit | None:
        """Run a command, and wait until the view shows what it did; None where the store is away."""
        if self.away is not None:
            return None
        try:
            commit = await self._fenced(command)
        except StoreUnavailableError as error:
            self._lose_touch(error)
            return None
        except LeaseLostError as error:  # again and again: whatever takes it away, this is done when it is over
            self._lose_touch(StoreUnavailableError(str(error)))
            return None
        except Exception:
            self._settled = False  # whatever the store made of it
            raise
        self.commits.note(commit)
        with suppress(StoreUnavailableError):  # it is committed, and will be seen
            await self._follower.reach(commit.position)
        return commit

    async def _fenced(self, command: Callable[[], Awaitable[Commit]]) -> Commit:
        """Run a command; where the lease turns out to be gone, get it back first."""
        for _ in range(RETRIES):
            recoveries = self._recoveries
            try:
                return await command()
            except LeaseLostError:
                async with self._recovering:
                    if self._recoveries == recoveries:  # nobody else has meanwhile
                        await self._recover()
        return await command()

    async def _recover(self) -> None:
        """Renew the lease; where the store does not know what it should of this node, tell it. Under the lock."""
        await follow(self._clock, self._store.time)
        lease = await self._renew(returning=self.away is not None)
        if not lease.log_continues:
            await self._follower.resync()
            await self._prolong()
        sound = lease.held and lease.log_continues and not self._follower.lost
        self._settled = self._settled and sound and self.now() < self._settled_at + RECHECK
        while lost := self._follower.lost:
            self.commits.note(await self._store.restore(self.node, lost[:CHUNK], self.now()))
            del lost[:CHUNK]
            await self._prolong()
        if not self._settled:
            await self._reconcile()
        self._recoveries += 1

    async def _renew(self, *, returning: bool = False) -> Lease:
        return await self._store.renew(self.node, self.now(), position=self._follower.position, returning=returning)

    async def _prolong(self) -> None:
        """Renew the lease between the steps of a recovery, which may take longer than one, over a slow link say.

        Raises:
            LeaseLostError: it ran out meanwhile, and with it went what was told.
        """
        if not (await self._renew()).held:
            raise LeaseLostError("the lease ran out while the store was told")

    async def _reconcile(self) -> None:
        """Make the store know which connections this node has, and what its users did while it was away."""
        self._disturbed = False
        registered = {connection.id: connection for connection in await self._store.connections(self.node)}
        mine = self._connections
        changed = [mine[name] for name, known in registered.items() if name in mine and mine[name] != known]
        while True:
            missing = [known for name, known in self._connections.items() if name not in registered][:CHUNK]
            ended = [known for name, known in registered.items() if name not in self._connections][:CHUNK]
            late = dict(islice(self._late.items(), CHUNK))
            if not missing and not ended and not late and not changed:
                break
            _log.info("bringing the store up to date", connected=len(missing), ended=len(ended), active=len(late))
            # Who came back is told first, so that who left meanwhile is found to have come back.
            commits = await asyncio.gather(*(self._store.connect(known, self.now()) for known in missing))
            for known, commit in zip(missing, commits, strict=True):
                self.commits.note(commit)
                if commit.queued and self.found_queued is not None:
                    self.found_queued(known)
            registered.update((known.id, known) for known in missing)
            await asyncio.gather(*(self._store.describe(known) for known in changed[:CHUNK]))
            del changed[:CHUNK]
            await self._tell(late)
            # With a grace, however they ended: their users may be back on a node that has yet to say so.
            commits = await asyncio.gather(*(self._store.disconnect(known, Ending.LOST, self.now()) for known in ended))
            for known, commit in zip(ended, commits, strict=True):
                self.commits.note(commit)
                del registered[known.id]
            await self._prolong()
        # A command that failed meanwhile may have left what was looked at before.
        self._settled, self._settled_at = not self._disturbed, self.now()
        if self.away is not None:
            if not self._store.near:
                _log.info("in touch with the store", node=self.node)
            self.away = self._reminded_at = None
            if self._lost_touch:  # others have yet to say what their users did meanwhile
                self._lost_touch, self._sweeps_from = False, self.now() + OUTAGE

    async def _tell(self, late: dict[tuple[str, str], _Late]) -> None:
        """Say what users did while the store was away."""
        released = [key for key, did in late.items() if did.released]
        for commit in await asyncio.gather(*(self._store.release(*user, self.now()) for user in released)):
            self.commits.note(commit)
        if beats := [did.beat for did in late.values() if did.beat is not None]:
            self.commits.note(await self._store.beat(self.node, beats))
        for key, did in late.items():
            if self._late.get(key) is did:  # nothing came after it
                del self._late[key]

    def _lose_touch(self, error: StoreUnavailableError) -> None:
        if self._reminded_at is None or self.now() - self._reminded_at >= REMINDER:
            self._reminded_at = self.now()
            _log.warning("the store is away; presence stays as it is until it is back", error=str(error))
        self.away = str(error)
        self._lost_touch = self._disturbed = True
        self._settled = False
