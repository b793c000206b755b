"""The one executor behind every door: commits commands in the store, and keeps this node's part of it alive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import structlog

from gateway.errors import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.presence.follower import Follower
    from gateway.presence.model import Beat, Connection, Ending
    from gateway.presence.store import Commit, Store

_log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")

SWEEP_INTERVAL = 0.25
"""Seconds between sweeps: how late, at the most, a grace that ran out is committed."""


class Tracker:
    """This node's hand on the store.

    A command returns once this node's view holds what it committed, so that whoever gave it reads its effect.

    Args:
        node: this node's name, unique in the cluster and new with each start.
        store: where commands are committed.
        follower: what brings their effect into the view.
        now: the clock, in Unix milliseconds.
    """

    def __init__(self, node: str, store: Store, follower: Follower, now: Callable[[], int]) -> None:
        self.node = node
        self.now = now
        self._store = store
        self._follower = follower
        self._connections: dict[str, Connection] = {}

    # Commands

    async def connect(self, connection: Connection) -> Commit:
        """Count a connection of this node for its user."""
        commit = await self._fenced(lambda: self._store.connect(connection, self.now()))
        self._connections[connection.id] = connection
        return await self._seen(commit)

    async def disconnect(self, connection: Connection, ending: Ending) -> Commit:
        """End a connection of this node."""
        self._connections.pop(connection.id, None)
        return await self._seen(await self._fenced(lambda: self._store.disconnect(connection, ending, self.now())))

    async def beat(self, beat: Beat) -> Commit:
        """Record activity."""
        return await self._seen(await self._fenced(lambda: self._store.beat(self.node, [beat])))

    async def release(self, tenant: str, user_id: str) -> Commit:
        """End what keeps a user online but live connections."""
        return await self._seen(await self._store.release(tenant, user_id, self.now()))

    # Timers

    async def run(self) -> None:
        """Renew the lease and sweep, until cancelled. A failing round is logged, and tried again by the next."""
        while True:
            try:
                await self.tick()
            except Exception:
                _log.exception("a round of the tracker failed")
            await asyncio.sleep(SWEEP_INTERVAL)

    async def tick(self) -> None:
        """Do what is due now. The lease comes first: a node that slept must not sweep itself away."""
        await self._renew()
        await self._store.sweep(self.now())

    async def _renew(self) -> None:
        if not await self._store.renew(self.node, self.now()) and self._connections:
            _log.warning("the node's lease ran out; registering again", connections=len(self._connections))
            for connection in list(self._connections.values()):
                if connection.id in self._connections:  # it may have ended while another was registered
                    await self._store.connect(connection, self.now())

    async def _fenced(self, command: Callable[[], Awaitable[_Result]]) -> _Result:
        """Run a command; where the lease turns out to be gone, get it back first."""
        try:
            return await command()
        except LeaseLostError:
            await self._renew()
            return await command()

    async def _seen(self, commit: Commit) -> Commit:
        await self._follower.reach(commit.position)
        return commit
