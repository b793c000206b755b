"""What concerns all of a user's connections, wherever they are: done here at once, and on other nodes by the bus."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.delivery.notifications import Delivery, Notification
from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.wire import is_id

if TYPE_CHECKING:
    from gateway.bus import Bus
    from gateway.connections import Connections
    from gateway.presence.store import Explanation, Store
    from gateway.presence.view import View
    from gateway.recovery.recovery import Reading, Recovery


_log = structlog.get_logger(__name__)

PATIENCE = 2.0
"""Seconds that other nodes have to close a user's connections before the caller is answered."""

POLL = 0.02
"""Seconds between looks whether they have."""

RETRY = 0.25
"""Seconds to wait after the store failed, before it is asked again."""

CLOCKS = 200
"""Milliseconds that two nodes' clocks may differ: each is right to half of them."""


class _Kick(msgspec.Struct, frozen=True):
    """Close a user's connections on other nodes."""

    tenant: str
    user_id: str
    ids: frozenset[str]
    """Those that the store knew."""
    until: int
    """And those that were opened until then, which a node that is cut off could not tell the store of."""
    at: int
    """When the sender was asked to."""
    release: str | None
    """A name to claim: whoever has it ends what else keeps the user online. None where the sender does."""

    def reading(self) -> Reading:
        """Whom it is for, as recovery keeps it: an event that cannot be told, which ends what is older."""
        return (("user", self.tenant, self.user_id),), None, frozenset()


class Cluster:
    """Every node's connections, as one.

    Args:
        bus: how other nodes hear.
        store: what knows of connections on other nodes.
        view: what knows who is online.
        connections: this node's; None in a process that has none.
        recovery: what keeps events for those who lost their connection; None where nobody recovers.
    """

    def __init__(
        self, bus: Bus, store: Store, view: View, connections: Connections | None, recovery: Recovery | None = None
    ) -> None:
        self._bus = bus
        self._store = store
        self._view = view
        self._connections = connections
        self._recovery = recovery
        self._releases: set[asyncio.Task[None]] = set()
        if connections is not None:
            bus.subscribe("notification", Notification, self._on_notification)
            bus.subscribe("kick", _Kick, self._on_kick)
        if recovery is not None:
            recovery.readers["notification"] = lambda data: msgspec.json.decode(data, type=Notification).reading()
            recovery.readers["kick"] = lambda data: msgspec.json.decode(data, type=_Kick).reading()

    def notify(self, tenant: str, user_id: str, event: str, data: object) -> Delivery:
        """Send an event to every live connection of a user.

        Raises:
            InvalidPayloadError: `event` is empty or one of the gateway's own, or `data` cannot be written as JSON, or
                is too large for other nodes.
        """
        notification = Notification.of(tenant, user_id, event, data)
        elsewhere = not self._store.near and self._view.status(tenant, user_id).online
        returns = self._recovery is not None and self._recovery.history.left_lately(tenant, user_id)
        comes = self._connections is not None and self._connections.of_user(tenant, user_id)
        if not (elsewhere or returns or comes or self._store.near):
            return Delivery(sent=False, method=None)  # nobody hears it, here or elsewhere, now or later
        self._bus.publish("notification", notification)
        here = self._deliver(notification, own=True)
        sent = bool(here) or elsewhere
        return Delivery(sent=sent, method="realtime" if sent else None)

    async def disconnect(self, tenant: str, user_id: str, now: int) -> int:
        """Close a user's connections on every node, and end what else keeps them online.

        A connection that is opened meanwhile is not meant. What a node does not hear in time, it does when it hears.

        Returns:
            How many connections were closed.

        Raises:
            InvalidPayloadError: an id is none.
        """
        if not is_id(tenant) or not is_id(user_id):
            raise InvalidPayloadError("an id has 1 to 128 characters without control characters")
        if self._connections is None:
            return len(await self._disconnect_elsewhere(tenant, user_id, now))
        here = {live.connection.id for live in self._connections.of_user(tenant, user_id)}
        _, elsewhere = await asyncio.gather(
            self._connections.end_user(tenant, user_id), self._disconnect_elsewhere(tenant, user_id, now)
        )
        return len(here | elsewhere)

    async def _disconnect_elsewhere(self, tenant: str, user_id: str, now: int) -> set[str]:
        """Tell other nodes, and wait until they have; return the ids of the connections that the store knew."""
        if self._store.near:
            self._tell(_Kick(tenant, user_id, frozenset(), now, now, None))
            return set()
        try:
            known: Explanation | None = await self._store.explain(tenant, user_id)
        except StoreUnavailableError:
            known = None
        ids = {each.id for each in known.connections if each.connected_at <= now + CLOCKS} if known else set()
        until = now - CLOCKS if known else now  # a new one must not be taken for an old one where those are known
        release = secrets.token_hex(8) if self._connections is None else None
        self._tell(_Kick(tenant, user_id, frozenset(ids), until, now, release))
        if known is not None:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._see_them_end(known, ids)
            except (TimeoutError, StoreUnavailableError):
                _log.warning("other nodes have not closed a user's connections yet", user=user_id, tenant=tenant)
        return ids

    def _tell(self, kick: _Kick) -> None:
        self._bus.publish("kick", kick)
        self._end_sessions(kick, own=True)

    async def _see_them_end(self, known: Explanation, ids: set[str]) -> None:
        """Return when the store knows none of the connections, and the view shows what that made of the user."""
        tenant, user_id = known.status.tenant, known.status.user_id
        while (
            ids & {each.id for each in known.connections}
            or (self._connections is None and known.status.online and not known.connections)  # another node's to end
            or self._view.status(tenant, user_id).version < known.status.version
        ):
            await asyncio.sleep(POLL)
            known = await self._store.explain(tenant, user_id)

    async def _on_notification(self, notification: Notification) -> None:
        self._deliver(notification, own=False)

    def _deliver(self, notification: Notification, *, own: bool) -> int:
        """Write a notification to the user's connections here, keep it for those that are away, and count the first."""
        if self._connections is None:
            return 0
        mark = None if self._recovery is None else self._recovery.record(*notification.reading(), own=own)
        return notification.deliver(self._connections, mark)

    async def _on_kick(self, kick: _Kick) -> None:
        assert self._connections is not None  # noqa: S101 - only then it is subscribed
        self._end_sessions(kick, own=False)
        self._connections.end_user_soon(kick.tenant, kick.user_id, kick.ids, kick.until)
        if kick.release is not None:
            task = asyncio.create_task(self._release(self._connections, kick, kick.release))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    def _end_sessions(self, kick: _Kick, *, own: bool) -> None:
        """Keep a kick among the events, so that nobody who was away goes on past it."""
        if self._recovery is not None:
            self._recovery.record(*kick.reading(), own=own)

    async def _release(self, connections: Connections, kick: _Kick, name: str) -> None:
        """End what keeps a user online but live connections, unless another node does, or they came back since."""
        claimed: bool | None = None
        while claimed is None:
            try:
                claimed = await self._bus.claim(name)
            except StoreUnavailableError:  # it was there a moment ago, and will be again
                await asyncio.sleep(RETRY)
        active_at = self._view.status(kick.tenant, kick.user_id).active_at or 0
        if claimed and active_at <= kick.at + CLOCKS:
            await connections.release(kick.tenant, kick.user_id)
