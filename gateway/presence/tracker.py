"""The one executor behind every door: commits commands in the store, renews this node's lease, and sweeps."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

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
"""Commands that a node sends at a time when it registers its connections again."""

TOUCH_INTERVAL = 1_000
"""Milliseconds that activity is gathered for, if it changes nothing but `active_at`, before the store is told. A node
that is killed loses this much of when its users were last active."""

RECHECK = 60_000
"""Milliseconds after which the store's record of this node is compared with its real connections, even if nothing went
wrong: a command that was taken for lost may have arrived late."""

REMINDER = 60_000
"""Milliseconds between log lines that say that the store still cannot be reached."""

RETRIES = 3
"""How often a command is repeated if the node's lease was lost in between."""


class _Late(NamedTuple):
    """What one user did while the store could not be reached, for the store to be told when it is back."""

    released: bool = False
    """Whether their TTL and grace were ended."""
    beat: Beat | None = None
    """Their activity after that; None for none."""


class Tracker:
    """Gives this node's commands to the store.

    A command returns when this node's view shows what it committed, so that its caller reads its own writes. While the
    store cannot be reached, a command returns at once; the tracker remembers what it was for, and tells the store when
    that is back.

    Args:
        node: this node's name, unique in the cluster and new with each start.
        store: where commands are committed.
        follower: reads the log, and so brings their effect into the view.
        clock: the time, in Unix milliseconds; set by the store's clock if the store has one.
        away_after: milliseconds without activity until a user becomes away.
    """

    def __init__(self, node: str, store: Store, follower: Follower, clock: Clock, *, away_after: int) -> None:
        self.node = node
        self.away: str | None = "not connected to the store yet"
        """Why the store cannot be reached; None if it can."""
        self.now = clock
        self._clock = clock
        self._store = store
        self._follower = follower
        self._connections: dict[str, Connection] = {}
        """This node's live connections, by id: what the store should have registered for it."""
        self._late: dict[tuple[str, str], _Late] = {}
        """By tenant and user id."""
        # Half of the time: the store hears of activity long before it would make the user away.
        self.touches = Touches(follower.view, away_after // 2)
        """Records activity that changes nothing but `active_at`. Other activity is a `beat`."""
        self.commits = Commits()
        """Counts what this node has committed."""
        self.found_queued: Callable[[Connection], object] | None = None
        """Called with a connection that was registered late, when the store says that notifications wait for its
        user."""
        self._settled = False
        """Whether the store's record of this node is known to be right."""
        self._settled_at = 0
        """When it was last compared, in Unix milliseconds."""
        self._recovering = asyncio.Lock()
        self._recoveries = 0
        """How often the lease was renewed: a command that waited for the lock sees that another has done it."""
        self._lost_touch = False
        """Whether the store could not be reached since this node was last in touch with it."""
        self._disturbed = False
        """Whether a command failed since the last reconciliation began, which may have looked before it."""
        self._reminded_at: int | None = None
        """When it was last logged that the store cannot be reached; None while it can."""
        self._sweeps_from = 0
        """When this node may sweep again: after an outage, other nodes come first."""

    @property
    def ready(self) -> bool:
        """Whether this node's view holds the store's state: False until the first snapshot was read."""
        return self._follower.loaded

    @property
    def clock_offset(self) -> int:
        """Milliseconds that this machine's clock is behind the store's."""
        return self._clock.offset

    @property
    def log_lag(self) -> float:
        """Seconds for which this node has been behind the log; 0 if it is not."""
        return self.commits.lag(self._follower.position, self.now())

    # Commands

    async def connect(self, connection: Connection) -> Commit:
        """Register a connection of this node for its user."""
        self._connections[connection.id] = connection

        async def register() -> Commit:
            if connection.id not in self._connections:  # it ended while the lease was being renewed
                return Commit(0)
            return await self._store.connect(connection, self.now())

        return await self._commit(register) or Commit(0)

    async def describe(self, connection: Connection) -> None:
        """Replace the details of a connection of this node; if the store is away, it is told later."""
        if connection.id in self._connections:
            self._connections[connection.id] = connection
            if await self._commit(lambda: self._store.describe(connection)) is None:
                self._settled, self._disturbed = False, True  # a reconciliation under way may have looked before

    async def disconnect(self, connection: Connection, ending: Ending) -> Commit:
        """End a connection of this node."""
        self._connections.pop(connection.id, None)
        user = connection.tenant, connection.user_id
        # Sent in the same command, not before it, so that of two connections ending at once the order is kept.
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
        """End whatever keeps a user online except live connections."""
        if (tenant, user_id) in self.touches.gathered:
            await self._tell_touched()
        commit = await self._commit(lambda: self._store.release(tenant, user_id, self.now()))
        if commit is None:
            self._late[tenant, user_id] = _Late(released=True)
        return commit or Commit(0)

    async def set_status(self, tenant: str, user_id: str, choice: Choice) -> Commit:
        """Set a user's status by hand.

        Unlike the other commands it fails while the store is away: the answer tells the user their new status, which
        nobody would know to be true.

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
        """Keep the lease, and sweep, until cancelled. A failed round is logged; the next one tries again.

        The sweep runs beside it as a task: over a slow link its many round trips may take longer than a lease.
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
        """Do what is due now. The lease comes first: a node whose process was paused must not sweep itself away.

        Raises:
            StoreUnavailableError: the store is away.
            LeaseLostError: the lease went again at once.
        """
        await self.keep()
        await self.sweep()

    async def keep(self) -> None:
        """Renew the lease, and bring the store's record of this node up to date.

        Raises:
            StoreUnavailableError: the store is away.
            LeaseLostError: the lease went again at once.
        """
        with self._losing_touch():
            async with self._recovering:
                await self._recover()

    async def sweep(self) -> None:
        """Commit what time has changed, and tell the store when users of this node were active.

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
            return False  # already logged
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
        """Keep activity, to tell the store when it is back."""
        key = beat.tenant, beat.user_id
        late = self._late.get(key, _Late())
        self._late[key] = _Late(late.released, beat if late.beat is None else late.beat.followed_by(beat))

    async def _commit(self, command: Callable[[], Awaitable[Commit]]) -> Commit | None:
        """Run a command, and wait until the view shows what it did; None if the store is away."""
        if self.away is not None:
            return None
        try:
            commit = await self._fenced(command)
        except StoreUnavailableError as error:
            self._lose_touch(error)
            return None
        except LeaseLostError as error:  # lost again and again: the command is made up for when that is over
            self._lose_touch(StoreUnavailableError(str(error)))
            return None
        except Exception:
            self._settled = False  # nobody knows whether the store did it
            raise
        self.commits.note(commit)
        with suppress(StoreUnavailableError):  # it is committed, and the view will show it
            await self._follower.reach(commit.position)
        return commit

    async def _fenced(self, command: Callable[[], Awaitable[Commit]]) -> Commit:
        """Run a command; if the lease turns out to be lost, get a new one and repeat the command."""
        for _ in range(RETRIES):
            recoveries = self._recoveries
            try:
                return await command()
            except LeaseLostError:
                async with self._recovering:
                    if self._recoveries == recoveries:  # no other command has renewed it meanwhile
                        await self._recover()
        return await command()

    async def _recover(self) -> None:
        """Renew the lease, and reconcile if the store's record of this node may be wrong. Call it under the lock."""
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
        """Renew the lease between the steps of a recovery, which over a slow link may take longer than a lease.

        Raises:
            LeaseLostError: it ran out meanwhile, and the store forgot what the recovery had told it.
        """
        if not (await self._renew()).held:
            raise LeaseLostError("the node's lease ran out while it was bringing the store up to date")

    async def _reconcile(self) -> None:
        """Tell the store which connections this node has, and what its users did while the store was away."""
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
            # New connections first: a user who lost one and has another since is then never without.
            commits = await asyncio.gather(*(self._store.connect(known, self.now()) for known in missing))
            for known, commit in zip(missing, commits, strict=True):
                self.commits.note(commit)
                if commit.queued and self.found_queued is not None:
                    self.found_queued(known)
            registered.update((known.id, known) for known in missing)
            await asyncio.gather(*(self._store.describe(known) for known in changed[:CHUNK]))
            del changed[:CHUNK]
            await self._tell(late)
            # As lost, however they ended, for the grace: their users may be back on a node that has yet to say so.
            commits = await asyncio.gather(*(self._store.disconnect(known, Ending.LOST, self.now()) for known in ended))
            for known, commit in zip(ended, commits, strict=True):
                self.commits.note(commit)
                del registered[known.id]
            await self._prolong()
        # If a command failed meanwhile, what this round has compared may be out of date.
        self._settled, self._settled_at = not self._disturbed, self.now()
        if self.away is not None:
            if not self._store.near:
                _log.info("in touch with the store", node=self.node)
            self.away = self._reminded_at = None
            if self._lost_touch:  # other nodes have yet to say what their users did meanwhile
                self._lost_touch, self._sweeps_from = False, self.now() + OUTAGE

    async def _tell(self, late: dict[tuple[str, str], _Late]) -> None:
        """Tell the store what users did while it was away."""
        released = [key for key, did in late.items() if did.released]
        for commit in await asyncio.gather(*(self._store.release(*user, self.now()) for user in released)):
            self.commits.note(commit)
        if beats := [did.beat for did in late.values() if did.beat is not None]:
            self.commits.note(await self._store.beat(self.node, beats))
        for key, did in late.items():
            if self._late.get(key) is did:  # the user has done nothing since
                del self._late[key]

    def _lose_touch(self, error: StoreUnavailableError) -> None:
        if self._reminded_at is None or self.now() - self._reminded_at >= REMINDER:
            self._reminded_at = self.now()
            _log.warning("the store is away; presence stays as it is until it is back", error=str(error))
        self.away = str(error)
        self._lost_touch = self._disturbed = True
        self._settled = False
