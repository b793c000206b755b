"""What concerns all of a user's connections, wherever they are: done here at once, and on other nodes by the bus."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.delivery.inbox import check_wait, new_id
from gateway.delivery.notifications import Delivery, Notification
from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.presence.reads import check_ids
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.connections.connections import Connections
    from gateway.delivery.inbox import Inbox
    from gateway.delivery.queue import Put
    from gateway.nodes.bus import Bus
    from gateway.presence.model import Connection
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

ORDERLY = 0.5
"""Seconds that what other nodes say waits for a queue to be handed over; it is one round trip."""

ANSWER = 0.5
"""Seconds that other nodes have to say when their connections were last active."""

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


class _Look(msgspec.Struct, frozen=True):
    """Something waits for a user who is connected: hand it over."""

    tenant: str
    user_id: str


class _Ask(msgspec.Struct, frozen=True):
    """When were a user's connections to other nodes last active?"""

    id: str
    tenant: str
    user_id: str


class _Active(msgspec.Struct, frozen=True):
    """What one node says to that."""

    id: str
    node: str
    at: dict[str, int]
    """Unix milliseconds, by connection."""


class _Question:
    """One that is waiting to be answered by each of some nodes."""

    def __init__(self, nodes: set[str]) -> None:
        self.nodes = nodes
        self.at: dict[str, int] = {}
        self.answered = asyncio.Event()


class Cluster:
    """Every node's connections, as one.

    Args:
        bus: how other nodes hear.
        store: what knows of connections on other nodes.
        view: what knows who is online.
        inbox: where notifications wait for those who are not.
        connections: this node's; None in a process that has none.
        recovery: what keeps events for those who lost their connection; None where nobody recovers.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        view: View,
        inbox: Inbox,
        connections: Connections | None,
        recovery: Recovery | None = None,
    ) -> None:
        self._bus = bus
        self._store = store
        self._view = view
        self._inbox = inbox
        self._connections = connections
        self._recovery = recovery
        self._later: set[asyncio.Task[None]] = set()
        self._questions: dict[str, _Question] = {}
        if connections is not None:
            bus.subscribe("notification", Notification, self._on_notification)
            bus.subscribe("kick", _Kick, self._on_kick)
            bus.subscribe("look", _Look, self._on_look)
            bus.subscribe("ask", _Ask, self._on_ask)
            bus.subscribe("active", _Active, self._on_active)
        if recovery is not None:
            recovery.readers["notification"] = lambda data: msgspec.json.decode(data, type=Notification).reading()
            recovery.readers["kick"] = lambda data: msgspec.json.decode(data, type=_Kick).reading()

    async def close(self, within: float) -> None:
        """Do what is still to be done for others, for so many seconds at the most; nothing more is heard of them."""
        if self._later:
            await asyncio.wait(self._later, timeout=within)
        await end(list(self._later))

    async def notify(
        self, tenant: str, user_id: str, event: str, data: object, *, wait: float | None = None
    ) -> Delivery:
        """Send an event to every live connection of a user; where there is none, queue it.

        Args:
            tenant: whose user.
            user_id: to whom.
            event: its name.
            data: anything that JSON can hold.
            wait: seconds to wait for one of the user's clients to acknowledge it. It is queued then in any case, and
                stays there until one has.

        Raises:
            InvalidPayloadError: an id is none, `event` is empty, too long or one of the gateway's own, `data` cannot be
                written as JSON, or is too large for other nodes, or for a queue where it has to wait.
            StoreUnavailableError: it is to be queued, and the store is away.
        """
        if wait is not None:
            check_wait(wait)
        notification = Notification.of(tenant, user_id, event, data)
        if wait is not None:
            return await self._notify_and_wait(notification, wait)
        here = self._is_here(tenant, user_id)
        if not here or self._inbox.is_looking(tenant, user_id):
            item_id = new_id(awaited=False)
            try:
                put = await self._put(notification, item_id, unless_connected=not here)
                if put.queued:
                    return Delivery(sent=True, method="realtime" if here else "queued")
            except StoreUnavailableError:
                # Whoever is invisible is told all the same.
                known = self._view.hidden.get((tenant, user_id)) or self._view.status(tenant, user_id)
                if not known.online:
                    raise
            else:
                notification = msgspec.structs.replace(notification, nodes=put.nodes, id=item_id)
        self._bus.publish("notification", notification)
        self._deliver(notification, own=True)
        return Delivery(sent=True, method="realtime")

    def tell(self, tenant: str, user_id: str, event: str, data: object) -> None:
        """Send an event to every live connection of a user, and keep it for nobody who is not there.

        Raises:
            InvalidPayloadError: as for `notify`.
        """
        notification = Notification.of(tenant, user_id, event, data)
        self._bus.publish("notification", notification)
        self._deliver(notification, own=True)

    async def _notify_and_wait(self, notification: Notification, wait: float) -> Delivery:
        tenant, user_id, item_id = notification.tenant, notification.user_id, new_id(awaited=True)
        put = await self._put(notification, item_id)
        here = self._is_here(tenant, user_id)
        acknowledged = await self._inbox.acknowledgement(item_id, wait)
        return Delivery(sent=True, method="realtime" if here or put.nodes else "queued", acknowledged=acknowledged)

    async def _put(self, notification: Notification, item_id: str, *, unless_connected: bool = False) -> Put:
        """Queue a notification, and let each node that its user is connected to hand it over; see `Inbox.put`."""
        put = await self._inbox.put(notification, item_id, unless_connected=unless_connected)
        if put.queued and put.nodes:
            self._bus.publish("look", _Look(notification.tenant, notification.user_id))
        return put

    def _is_here(self, tenant: str, user_id: str) -> bool:
        return self._connections is not None and bool(self._connections.of_user(tenant, user_id))

    async def _on_look(self, look: _Look) -> None:
        if self._is_here(look.tenant, look.user_id):
            # What comes by the bus after it is told after it.
            await asyncio.wait([self._inbox.look_soon(look.tenant, look.user_id)], timeout=ORDERLY)

    async def with_activity(self, connections: Sequence[Connection]) -> list[Connection]:
        """Add to connections of one user when their clients last asked for something, which their nodes are asked.

        It stays None where this process has no connections itself, and where a node has not answered in time.
        """
        if self._connections is None:
            return list(connections)
        known = self._connections.with_activity(connections)
        elsewhere = {each.node for each in known if each.active_at is None} - {self._inbox.node}
        if not elsewhere:
            return known
        asked, question = secrets.token_hex(8), _Question(elsewhere)
        self._questions[asked] = question
        try:
            self._bus.publish("ask", _Ask(asked, known[0].tenant, known[0].user_id))
            async with asyncio.timeout(ANSWER):
                await question.answered.wait()
        except TimeoutError:
            _log.debug("nodes have not said when a user's connections were active", nodes=sorted(question.nodes))
        finally:
            del self._questions[asked]
        return [
            msgspec.structs.replace(each, active_at=question.at[each.id]) if each.id in question.at else each
            for each in known
        ]

    async def _on_ask(self, ask: _Ask) -> None:
        assert self._connections is not None  # noqa: S101 - only then it is subscribed
        here = [live.connection for live in self._connections.of_user(ask.tenant, ask.user_id)]
        if here:
            at = {each.id: each.active_at for each in self._connections.with_activity(here) if each.active_at}
            self._bus.publish("active", _Active(ask.id, self._inbox.node, at))

    async def _on_active(self, said: _Active) -> None:
        question = self._questions.get(said.id)
        if question is not None:
            question.at |= said.at
            question.nodes.discard(said.node)
            if not question.nodes:
                question.answered.set()

    async def disconnect(self, tenant: str, user_id: str, now: int) -> int:
        """Close a user's connections on every node, and end what else keeps them online.

        A connection that is opened meanwhile is not meant. What a node does not hear in time, it does when it hears.

        Returns:
            How many connections were closed.

        Raises:
            InvalidPayloadError: an id is none.
        """
        check_ids(tenant, user_id)
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
        if not self._deliver(notification, own=False) and self._inbox.node in notification.nodes:
            # The connection has just ended here, and the store had not been told yet.
            task = asyncio.create_task(self._queue(notification))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _queue(self, notification: Notification) -> None:
        """Queue a notification that came too late, unless the user is connected to another node."""
        while True:
            try:
                await self._inbox.put(notification, notification.id, unless_connected=True)
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)
            except InvalidPayloadError:
                return  # one that is too large to wait
            else:
                return

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
            self._later.add(task)
            task.add_done_callback(self._later.discard)

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
        key = kick.tenant, kick.user_id
        active_at = (self._view.hidden.get(key) or self._view.status(*key)).active_at or 0
        if claimed and active_at <= kick.at + CLOCKS:
            await connections.release(kick.tenant, kick.user_id)
