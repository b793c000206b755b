"""Notifications that wait for their users: queued, handed to connections in order, and again until acknowledged."""

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
    from gateway.runtime.traces import Tracer

_log = structlog.get_logger(__name__)

RETRY = 0.25
"""Seconds to wait before the queues are tried again after they could not be reached; it doubles with each attempt."""

RETRY_MOST = 4.0
"""Seconds to wait at the most."""

SWEEP_INTERVAL = 30.0
"""Seconds between sweeps, which any node does: how late an expired notification is deleted that nobody asks for."""

POLL = 0.02
"""Seconds between the first looks whether a client of another node has acknowledged."""

POLL_MOST = 0.25
"""Seconds between later looks."""

UNTOLD = 1000
"""Acknowledgements of one user that are held while the queues cannot be reached. Any more are ignored: the client is
sent the notification again, and acknowledges it again."""


class Recipient(Protocol):
    """A live connection."""

    def hand(self, queued: Sequence[Queued]) -> Sequence[Queued]:
        """Send what waits, but for what this connection has been sent already; return what that is."""


class Inbox:
    """This node's side of the queues: puts notifications in, and hands them to the connections of this node.

    Args:
        queues: where notifications wait.
        limits: how much is kept.
        clock: the time, in Unix milliseconds.
        node: this node's name; empty in a process that has no connections.
        recipients: returns a user's live connections to this node, by tenant and user id.
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
        """Notifications that this node has queued."""
        self.dropped = 0
        """Notifications that were dropped because a queue was full."""
        self.expired = 0
        """Notifications that expired before they were acknowledged."""
        self.acknowledged = 0
        """Notifications that clients of this node have acknowledged."""
        self.depth = 0
        """Notifications that waited in all queues, as of the last sweep."""
        self.node = node
        self.trace: Tracer | None = None
        """What trace something is part of that is queued; None traces nothing."""
        self.on_handed: Callable[[str, str, Sequence[Queued]], None] | None = None
        """Called with a tenant, a user id and what a connection of that user was handed; None for nobody."""
        self._queues = queues
        self._limits = limits
        self._clock = clock
        self._recipients = recipients
        self._untold: dict[tuple[str, str], dict[str, None]] = {}
        """By tenant and user id: ids that clients have acknowledged, which the queues have yet to be told."""
        self._told = asyncio.Event()
        """Set while `_untold` is not empty."""
        self._waiting: dict[str, asyncio.Event] = {}
        """By id, the notifications whose acknowledgement somebody waits for here."""
        self._due: set[tuple[str, str]] = set()
        """Users whose queue has to be read."""
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By user, the task that reads their queue and hands it to their connections."""

    @property
    def unreadable(self) -> int:
        """How many this node could not read, and put aside."""
        return self._queues.unreadable

    # What is sent

    async def put(self, notification: Notification, item_id: str, *, unless_connected: bool = False) -> Put:
        """Queue a notification, and hand it to its user's connections to this node, if there are any.

        Args:
            notification: what, and for whom.
            item_id: its id in the queue, made by `new_id`.
            unless_connected: do not queue it if its user is connected to another node.

        Raises:
            InvalidPayloadError: it is too large to be queued.
            StoreUnavailableError: the queues cannot be reached. It may be queued all the same.
        """
        largest = min(self._limits.largest, self._limits.bytes)
        trace = None if self.trace is None else self.trace()
        item = Queued(item_id, notification.event, notification.data, trace)
        if (size := size_of(item)) > largest:
            raise InvalidPayloadError(
                f"a notification that may have to wait for its user may have {largest} bytes; this one has {size}"
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
        """Wait until a client has acknowledged an item; False if none has within so many seconds."""
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
            queued: `Commit.queued`, as the store answered the connection.
        """
        if queued is None:
            if self._queues.near:
                return self._queues.waits(tenant, user_id)
            self.look_soon(tenant, user_id)  # Redis cannot be reached: it is read when that is back
            return False
        return queued

    async def fetch(self, tenant: str, user_id: str) -> Sequence[Queued]:
        """Read what waits for a user. If it cannot be read, nothing is returned, and it is handed over later."""
        try:
            return await self._read(tenant, user_id)
        except StoreUnavailableError:
            self.look_soon(tenant, user_id)
            return ()

    async def hand_to(self, tenant: str, user_id: str, recipient: Recipient) -> None:
        """Hand what waits for a user to one connection of theirs, or to all of them, later; see `fetch`."""
        self._hand(tenant, user_id, recipient, await self.fetch(tenant, user_id))

    def _hand(self, tenant: str, user_id: str, recipient: Recipient, found: Sequence[Queued]) -> None:
        handed = recipient.hand(found)
        if handed and self.on_handed is not None:
            self.on_handed(tenant, user_id, handed)

    def look_soon(self, tenant: str, user_id: str) -> asyncio.Task[None]:
        """Start to hand a user's connections to this node what waits for the user; it is done when the task is."""
        key = (tenant, user_id)
        self._due.add(key)
        if key not in self._looking:  # one task per user, so that what is read later is handed over later
            self._looking[key] = asyncio.create_task(self._look(tenant, user_id))
        return self._looking[key]

    def is_looking(self, tenant: str, user_id: str) -> bool:
        """Whether `look_soon` is at work for a user: what is sent now has to come after what that hands over."""
        return (tenant, user_id) in self._looking

    async def _look(self, tenant: str, user_id: str) -> None:
        try:
            await self._look_while_due(tenant, user_id)
        except Exception:
            _log.exception("a user's queue could not be read", user=user_id, tenant=tenant)
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
                    self._hand(tenant, user_id, recipient, found)

    def acknowledge(self, tenant: str, user_id: str, item_id: str) -> None:
        """Take note that a client has acknowledged an item. The queue is told in a moment, in a batch."""
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
        """Tell the queues what was acknowledged last. Call it when `run` has ended."""
        await end(list(self._looking.values()))
        with suppress(Exception):  # the node stops; what the queues are not told is sent to the client again
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
                _log.exception("the queues could not be told what was acknowledged; trying again")
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
                pass  # the tracker logs it
            except Exception:
                _log.exception("the queues could not be swept")
            await asyncio.sleep(SWEEP_INTERVAL)

    async def _read(self, tenant: str, user_id: str) -> Sequence[Queued]:
        found = await self._queues.read(tenant, user_id, self._clock())
        self.expired += found.expired
        return found.items


def new_id(*, awaited: bool) -> str:
    """Make an id for a notification that may have to wait; `awaited` says whether its acknowledgement is waited for."""
    return f"{AWAITED if awaited else 'n'}-{secrets.token_urlsafe(12)}"


def check_wait(wait: object) -> None:
    """Check the seconds that an acknowledgement is to be waited for.

    Raises:
        InvalidPayloadError: it is no finite number, or negative.
    """
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise InvalidPayloadError("wait takes seconds, 0 or more")
