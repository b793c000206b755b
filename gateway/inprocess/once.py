"""Hooks that are called once in the cluster: one node follows the log for each, from where the last one had come."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.errors import LogTrimmedError, StoreUnavailableError
from gateway.nodes.duty import Duty
from gateway.presence.model import Transition
from gateway.presence.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.inprocess.hooks import Hooks, Registration
    from gateway.nodes.duty import Leases
    from gateway.presence.follower import Follower
    from gateway.presence.model import Entry
    from gateway.presence.store import Store

_log = structlog.get_logger(__name__)

RETRY = 0.25
"""Seconds to wait after the store failed, before it is asked again."""

NOTE = 1.0
"""Seconds between two times that a position is kept which no call of the hook has led to."""


class Positions(Protocol):
    """The port: up to where on the log something was done, by name. It outlasts whoever did it."""

    async def begin(self, name: str, position: int) -> int:
        """Read a position; where there is none, it is this one from now on.

        Raises:
            StoreUnavailableError: there is no telling now.
        """

    async def advance(self, name: str, position: int) -> None:
        """Go on to a position. Going back changes nothing: others have been further.

        Raises:
            StoreUnavailableError: whether it was kept is not known.
        """

    async def reset(self, name: str, position: int) -> None:
        """Go on from a position, be it behind or ahead: the one that was is no longer on the log.

        Raises:
            StoreUnavailableError: whether it was kept is not known.
        """

    async def close(self) -> None:
        """Let go of whatever the adapter holds."""


class LocalPositions:
    """The positions of a node that is alone, and forgets them with its log."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    async def begin(self, name: str, position: int) -> int:
        """Read a position; see the port."""
        return self._at.setdefault(name, position)

    async def advance(self, name: str, position: int) -> None:
        """Go on to a position; see the port."""
        self._at[name] = max(position, self._at.get(name, 0))

    async def reset(self, name: str, position: int) -> None:
        """Go on from a position; see the port."""
        self._at[name] = position

    async def close(self) -> None:
        """Nothing to let go of."""


class OnceHooks:
    """Calls each of them with every transition that makes its event, on one node of the cluster.

    A position is kept after each call. So whoever takes over goes on behind the last call that was finished: none is
    lost, and one that a crash, or the loss of the lease, ended in its middle is made again.

    Args:
        hooks: what calls them.
        leases: which node does.
        ttl: seconds until another takes over from one that died.
        store: whose log.
        follower: where this node is on it.
        positions: up to where each hook has come.
    """

    def __init__(
        self, hooks: Hooks, leases: Leases, *, ttl: float, store: Store, follower: Follower, positions: Positions
    ) -> None:
        self._hooks = hooks
        self._leases = leases
        self._ttl = ttl
        self._store = store
        self._follower = follower
        self._positions = positions
        self._stopping = False
        self._calling: set[asyncio.Future[None]] = set()

    async def begin(self) -> None:
        """Note, for hooks that are new, that what comes from now on is theirs.

        Raises:
            StoreUnavailableError: the store is away; it is noted when it is back.
        """
        for registration in self._hooks.once:
            await self._positions.begin(registration.name, self._follower.position)

    async def run(self) -> None:
        """Call them whenever it is this node's turn, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for registration in self._hooks.once:
                duty = Duty(f"hook:{registration.name}", self._leases, ttl=self._ttl)
                tasks.create_task(duty.run(partial(self._work, registration)))

    async def finish(self, within: float) -> None:
        """Begin no further call, and return when those under way are done, or after so many seconds."""
        self._stopping = True
        if self._calling:
            await asyncio.wait(list(self._calling), timeout=within)

    async def close(self) -> None:
        """Let go of the positions; `run` has ended."""
        await self._positions.close()

    async def _work(self, registration: Registration) -> None:
        while not self._follower.loaded:  # noqa: ASYNC110 - once, where the store is away at the start
            await asyncio.sleep(RETRY)
        tail = Tail(self._store)
        try:
            await self._follow(registration, tail)
        finally:
            tail.stop()

    async def _follow(self, registration: Registration, tail: Tail) -> None:
        name = registration.name
        position = await self._positions.begin(name, self._follower.position)
        noted, loop = position, asyncio.get_running_loop()
        noted_at = loop.time()
        while True:
            try:
                entries = await tail.read(position)
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)
                continue
            except LogTrimmedError as error:
                await asyncio.sleep(RETRY)  # this node's view may have to find out as well
                self._hooks.outcomes["missed"] += 1
                _log.error(
                    "a hook has missed transitions that are no longer on the log; going on from now",
                    hook=name,
                    error=str(error),
                )
                position = noted = self._follower.position
                await self._keep(self._positions.reset, name, position)
                continue
            called = await self._call(registration, entries)
            position = entries[-1].position if entries else position
            noted = max(noted, called)
            if noted < position and loop.time() - noted_at >= NOTE:
                await self._keep(self._positions.advance, name, position)
                noted, noted_at = position, loop.time()

    async def _call(self, registration: Registration, entries: Sequence[Entry]) -> int:
        """Call the hook with what of these entries is its, and return the position of the last; 0 for none."""
        last = 0
        for entry in entries:
            if not isinstance(entry, Transition) or entry.event is not registration.event:
                continue
            if self._stopping:
                await asyncio.get_running_loop().create_future()  # until this node hands it on
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._calling.add(done)
            try:
                await self._hooks.call(registration, entry)
                await self._keep(self._positions.advance, registration.name, entry.position)
            finally:
                self._calling.discard(done)
                done.cancel()
            last = entry.position
        return last

    async def _keep(self, keep: _Keep, name: str, position: int) -> None:
        """Keep a position, as soon as the store can be reached. Nothing is begun before: it would be done again."""
        while True:
            try:
                await keep(name, position)
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)
            else:
                return


class _Keep(Protocol):
    async def __call__(self, name: str, position: int) -> None: ...
