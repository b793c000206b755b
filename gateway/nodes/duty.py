"""What one node of the cluster does for all: a duty, held by a lease, and taken over when its holder dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.errors import StoreUnavailableError
from gateway.runtime.tasks import end
from gateway.runtime.timers import RunningLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.runtime.timers import Scheduler

_log = structlog.get_logger(__name__)

BEATS = 4
"""How often a lease is renewed in its length: two renewals may be lost."""

PAUSE = 1.0
"""Seconds before work that ended is begun again, by whichever node takes the duty then."""


class Leases(Protocol):
    """The port: who holds what. An adapter knows its own node."""

    async def take(self, name: str, ttl: float) -> bool:
        """Hold a lease for `ttl` seconds from now on, if it is free or this node's own; say whether it is held.

        Raises:
            StoreUnavailableError: this cannot be told now.
        """

    async def give_back(self, name: str) -> None:
        """Let a lease go, if it is this node's own.

        Raises:
            StoreUnavailableError: the store is away; the lease ends by itself.
        """

    async def close(self) -> None:
        """Let go of whatever the adapter holds."""


class LocalLeases:
    """The leases of a node that is alone: all are its own."""

    async def take(self, name: str, ttl: float) -> bool:  # noqa: ARG002 - the port's
        """Hold it."""
        return True

    async def give_back(self, name: str) -> None:
        """Nobody waits for it."""

    async def close(self) -> None:
        """Nothing to let go of."""


class Duty:
    """Work that one node of the cluster does at a time.

    A node that stops hands it on at once; one that dies, when its lease has run out. A node that cannot renew its lease
    stops working before another may begin, as far as it is not held up itself: what must not happen twice is guarded
    where it is written, too (Kleppmann, "How to do distributed locking", 2016).

    Args:
        name: of the work, the same on each node.
        leases: who holds it.
        ttl: seconds that a lease holds.
        scheduler: the event loop; None takes the one that runs.
    """

    def __init__(self, name: str, leases: Leases, *, ttl: float, scheduler: Scheduler | None = None) -> None:
        self.name = name
        self.held = False
        """Whether this node does it now."""
        self._leases = leases
        self._ttl = ttl
        self._scheduler = RunningLoop() if scheduler is None else scheduler
        self._until = 0.0
        """Until when the lease is this node's, by the scheduler's clock."""

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do the work whenever it is this node's turn, until cancelled.

        Args:
            work: goes on until it is cancelled, which it is when the lease is lost. Where it ends or fails, the lease
                is given back, and it begins again where the lease is taken next.
        """
        while True:
            if await self._take():
                try:
                    await self._do(work)
                finally:
                    await self._give_back()
                await self._wait(PAUSE)
            else:
                await self._wait(self._ttl / BEATS)

    async def _take(self) -> bool | None:
        """Take the lease, or renew it; None where whether it is held cannot be told."""
        asked = self._scheduler.time()  # the lease began then at the earliest, however late the answer
        try:
            held = await self._leases.take(self.name, self._ttl)
        except StoreUnavailableError:
            return None
        except Exception:
            _log.exception("a lease cannot be taken; trying again", duty=self.name)
            return None
        if held:
            self._until = asked + self._ttl
        return held

    async def _do(self, work: Callable[[], Awaitable[object]]) -> None:
        _log.info("a duty is this node's now", duty=self.name)
        self.held = True
        task = asyncio.create_task(self._work(work))
        try:
            held: bool | None = True
            while held is not False and not task.done() and self._scheduler.time() < self._until:
                # A renewal may take long: the work ends with the lease all the same.
                expiry = self._scheduler.call_at(self._until, task.cancel)
                try:
                    await self._wait(self._ttl / BEATS, task)
                    held = None if task.done() else await self._take()
                finally:
                    expiry.cancel()
        finally:
            self.held = False
            await end([task])
            _log.info("a duty is this node's no more", duty=self.name)

    async def _work(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception:
            _log.exception("a duty failed; it begins again", duty=self.name)

    async def _give_back(self) -> None:
        try:
            await self._leases.give_back(self.name)
        except StoreUnavailableError:
            pass  # it ends by itself
        except Exception:
            _log.exception("a lease cannot be given back; it ends by itself", duty=self.name)

    async def _wait(self, seconds: float, task: asyncio.Task[None] | None = None) -> None:
        """Wait for so long, or until a task has ended."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._scheduler.call_at(self._scheduler.time() + seconds, over.cancel)
        try:
            await asyncio.wait([over] if task is None else [over, task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
