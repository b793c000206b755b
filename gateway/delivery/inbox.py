"""What waits for users, and its way to their connections: handed over in order, again until it is acknowledged."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.delivery.queue import AWAITED, Queued, size_of
from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.delivery.notifications import Notification
    from gateway.delivery.queue import Limits, Put, Queues

_log = structlog.get_logger(__name__)

RETRY = 0.25
"""Seconds to wait after the queues could not be reached, before they are asked again; twice as long each time."""

RETRY_MOST = 4.0
"""Seconds to wait at the most."""

SWEEP_INTERVAL = 30.0
"""Seconds between sweeps, which any node does: how late what is over its time is let go of that nobody asks for."""

POLL = 0.02
"""Seconds between the first looks whether another node's client has acknowledged."""

POLL_MOST = 0.25
"""Seconds between later ones."""

UNTOLD = 1000
"""Acknowledgements of one user that are held while the queues are away; what is more comes again."""


class Recipient(Protocol):
    """A live connection."""

    def hand(self, queued: Sequence[Queued]) -> None:
        """Send what waits, but for what this connection has been sent already."""


class Inbox:
    """The queues, as this node has to do with them.

    Args:
        queues: where what waits is kept.
        limits: how much is kept.
        clock: the time, in Unix milliseconds.
        node: this node's name; empty in a process that has no connections.
        recipients: the live connections of a user to this node, by tenant and user id.
    """

    def __init__(
        self,
        queues: Queues,
        limits: Limits,
        clock: Callable[[], int],
        node: str = "",
        recipients: Callable[[str, str], Sequence[Recipient]] = lambda _tenant, _user_id: (),
    ) -> None:
        self.queued = 0
        """How many this node has queued."""
        self.dropped = 0
        """How many had to go, because a queue was full."""
        self.expired = 0
        """How many were over their time before they were acknowledged."""
        self.acknowledged = 0
        """How many clients of this node have acknowledged."""
        self.depth = 0
        """How many waited in all queues, as of the last sweep."""
        self.node = node
        self._queues = queues
        self._limits = limits
        self._clock = clock
        self._recipients = recipients
        self._untold: dict[tuple[str, str], dict[str, None]] = {}
        """Ids that clients have acknowledged, which are still in their queues."""
        self._told = asyncio.Event()
        self._waiting: dict[str, asyncio.Event] = {}
        """Ids that are waited for here to be acknowledged."""
        self._due: set[tuple[str, str]] = set()
        """Users whose queue is to be looked at."""
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}

    # What is sent

    async def put(self, notification: Notification, item_id: str, *, unless_connected: bool = False) -> Put:
        """Queue a notification, and hand it to the connections that its user has to this node.

        Args:
            notification: what, and for whom.
            item_id: under which; a `new_id`.
            unless_connected: leave it alone where its user is connected to another node.

        Raises:
            InvalidPayloadError: it is too large to be kept.
            StoreUnavailableError: the queues cannot be reached. It may be queued all the same.
        """
        largest = min(self._limits.largest, self._limits.bytes)
        item = Queued(item_id, notification.event, notification.data)
        if (size := size_of(item)) > largest:
            raise InvalidPayloadError(
                f"a notification that may have to wait for its user may have {largest} bytes; this has {size}"
            )
        tenant, user_id = notification.tenant, notification.user_id
        put = await self._queues.put(
            tenant, user_id, item, self._clock(), node=self.node, unless_connected=unless_connected
        )
        self.queued += put.queued
        self.dropped += put.dropped
        self.expired += put.expired
        if put.queued and self._recipients(tenant, user_id):
            self.look_soon(tenant, user_id)
        return put

    async def acknowledgement(self, item_id: str, within: float) -> bool:
        """Wait until a client has acknowledged what was put under an id; False where none has in so many seconds."""
        event = self._waiting[item_id] = asyncio.Event()
        pause = POLL
        try:
            async with asyncio.timeout(within):
                while not event.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None if self._queues.near else pause):
                            await event.wait()
                    if not event.is_set():
                        pause = min(2 * pause, POLL_MOST)
                        with suppress(StoreUnavailableError):
                            if await self._queues.was_acknowledged(item_id):
                                return True
        except TimeoutError:
            return False
        finally:
            del self._waiting[item_id]
        return True

    # What users' connections are handed

    def waits(self, tenant: str, user_id: str, *, queued: bool | None) -> bool:
        """Whether something waits for a user who has just connected.

        Args:
            tenant: whose user.
            user_id: who.
            queued: what the store said of it as it counted the connection; None where it did not.
        """
        if queued is None:
            if self._queues.near:
                return self._queues.waits(tenant, user_id)
            self.look_soon(tenant, user_id)  # Redis is away; it is looked for when that is back
            return False
        return queued

    async def fetch(self, tenant: str, user_id: str) -> Sequence[Queued]:
        """Read what waits for a user. Where that cannot be reached, their connections are handed it later."""
        try:
            return await self._read(tenant, user_id)
        except StoreUnavailableError:
            self.look_soon(tenant, user_id)
            return ()

    def look_soon(self, tenant: str, user_id: str) -> asyncio.Task[None]:
        """Hand a user's connections to this node what waits, in a moment: when the task is done."""
        key = (tenant, user_id)
        self._due.add(key)
        if key not in self._looking:  # one at a time: what is read later is handed over later
            self._looking[key] = asyncio.create_task(self._look(tenant, user_id))
        return self._looking[key]

    def is_looking(self, tenant: str, user_id: str) -> bool:
        """Whether a user's connections to this node are about to be handed what waits: what is sent now comes after."""
        return (tenant, user_id) in self._looking

    async def _look(self, tenant: str, user_id: str) -> None:
        try:
            await self._look_while_due(tenant, user_id)
        except Exception:
            _log.exception("what waits for a user could not be read", user=user_id, tenant=tenant)
        finally:
            del self._looking[tenant, user_id]
            self._due.discard((tenant, user_id))

    async def _look_while_due(self, tenant: str, user_id: str) -> None:
        key, pause = (tenant, user_id), RETRY
        while key in self._due and self._recipients(tenant, user_id):
            self._due.remove(key)
            try:
                found = await self._read(tenant, user_id)
            except StoreUnavailableError:
                self._due.add(key)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MOST)
            else:
                for recipient in self._recipients(tenant, user_id):
                    recipient.hand(found)

    def acknowledge(self, tenant: str, user_id: str, item_id: str) -> None:
        """A client has acknowledged: it is told to the queue in a moment."""
        ids = self._untold.setdefault((tenant, user_id), {})
        if len(ids) < UNTOLD:
            ids[item_id] = None
            self._told.set()

    # Beside all that

    async def run(self) -> None:
        """Tell the queues what was acknowledged, and sweep them, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell())
            tasks.create_task(self._sweep())

    async def close(self) -> None:
        """Tell the queues what was acknowledged last; `run` has ended."""
        await end(list(self._looking.values()))
        with suppress(Exception):  # the node goes; what is not told comes again
            await self._tell_now()
        await self._queues.close()

    async def _tell(self) -> None:
        pause = RETRY
        while True:
            await self._told.wait()
            try:
                await self._tell_now()
                pause = RETRY
            except StoreUnavailableError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MOST)
            except Exception:
                _log.exception("acknowledgements could not be told; trying again")
                await asyncio.sleep(RETRY_MOST)

    async def _tell_now(self) -> None:
        self._told.clear()
        untold, self._untold = self._untold, {}
        try:
            done = await asyncio.gather(
                *(self._tell_of(*user, tuple(ids)) for user, ids in untold.items()), return_exceptions=True
            )
        except asyncio.CancelledError:  # the node stops; `close` tells what this has not
            for user, ids in untold.items():
                self._tell_again(user, ids)
            raise
        failed = None
        for (user, ids), error in zip(untold.items(), done, strict=True):
            if error is not None:
                self._tell_again(user, ids)
                failed = error
        if failed is not None:
            raise failed

    def _tell_again(self, user: tuple[str, str], ids: dict[str, None]) -> None:
        self._untold[user] = ids | self._untold.get(user, {})
        self._told.set()

    async def _tell_of(self, tenant: str, user_id: str, ids: Sequence[str]) -> None:
        removed = await self._queues.acknowledge(tenant, user_id, ids, self._clock())
        self.acknowledged += len(removed)
        for item_id in removed:
            if (event := self._waiting.get(item_id)) is not None:
                event.set()

    async def _sweep(self) -> None:
        while True:
            try:
                self.expired += await self._queues.sweep(self._clock())
                self.depth = await self._queues.depth()
            except StoreUnavailableError:
                pass  # said by others
            except Exception:
                _log.exception("the queues could not be swept")
            await asyncio.sleep(SWEEP_INTERVAL)

    async def _read(self, tenant: str, user_id: str) -> Sequence[Queued]:
        found = await self._queues.read(tenant, user_id, self._clock())
        self.expired += found.expired
        return found.items


def new_id(*, awaited: bool) -> str:
    """An id for a notification that may have to wait."""
    return f"{AWAITED if awaited else 'n'}-{secrets.token_urlsafe(12)}"


def check_wait(wait: object) -> None:
    """Check for how long an acknowledgement is waited for.

    Raises:
        InvalidPayloadError: it is no time.
    """
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise InvalidPayloadError("wait takes seconds, 0 or more")
