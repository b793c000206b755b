"""What a node says of itself, read off its parts."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

from gateway.access.addresses import Addresses
from gateway.engine.environ import REQUEST
from gateway.operators.agreement import digests
from gateway.operators.nodes import Listed, Report, Waiting
from gateway.presence.model import PART
from gateway.version import COMPILED, __version__

if TYPE_CHECKING:
    from gateway.connections.connections import Connections
    from gateway.engine.namespace import Namespace
    from gateway.engine.server import Server
    from gateway.presence.tracker import Tracker
    from gateway.settings import Settings
    from gateway.webhooks.sender import Webhooks

_SHOWN = 12
"""Characters of the name of an Engine.IO connection: whoever knows all of it could speak on it."""


class Reporter:
    """Reads one node's report.

    Args:
        tracker: its hand on the store.
        connections: its live connections.
        server: its clients of Socket.IO.
        settings: which proxies say from where these come, and what other nodes are to have as this one.
        webhooks: what it sends; None where there are none.
    """

    def __init__(
        self,
        tracker: Tracker,
        connections: Connections,
        server: Server,
        settings: Settings,
        webhooks: Webhooks | None = None,
    ) -> None:
        self._tracker = tracker
        self._connections = connections
        self._server = server
        self._addresses = Addresses(settings.trusted_proxies)
        self._settings = digests(settings)
        self._webhooks = webhooks
        self._started_at = tracker.now()

    def __call__(self, clients: int = 0) -> Report:
        """Read it now, with the names of so many clients of Socket.IO."""
        tracker, connections = self._tracker, self._connections
        clients, polling = self._server.count_clients()
        return Report(
            node=tracker.node,
            version=__version__,
            compiled=COMPILED,
            pid=os.getpid(),
            at=tracker.now(),
            started_at=self._started_at,
            connections=len(connections),
            users=connections.users(),
            sockets=self._server.count_by_namespace(),
            clients=clients,
            opened=self._server.opened,
            polling=polling,
            draining=connections.leaving,
            away=tracker.away,
            clock_offset=tracker.clock_offset,
            webhooks=self._waiting(),
            settings=self._settings,
            listed=tuple(self._listed(*each) for each in islice(self._server.clients(), clients)),
        )

    def _listed(self, namespace: Namespace, sid: str, eio_sid: str) -> Listed:
        live, request = namespace.live(sid), self._server.environ[eio_sid][REQUEST]
        rooms = self._server.manager.entered(sid, namespace.namespace)
        return Listed(
            namespace=namespace.namespace,
            id=sid,
            client=eio_sid[:_SHOWN],
            upgraded=self._server.eio.sockets[eio_sid].upgraded,
            rooms=tuple(sorted(str(room).replace(PART, "/") for room in rooms)),
            address=self._addresses.of(request),
            user_agent=request.headers.get("User-Agent"),
            tenant=None if live is None else live.tenant,
            user_id=None if live is None else live.user_id,
            connected_at=None if live is None else live.connection.connected_at,
        )

    def _waiting(self) -> tuple[Waiting, ...] | None:
        if self._webhooks is None or not self._webhooks.couriers:
            return None
        now = self._tracker.now()
        return tuple(
            Waiting(
                courier.name,
                courier.waiting,
                0 if courier.oldest_at is None else max(0, now - courier.oldest_at),
                courier.stopped,
            )
            for courier in self._webhooks.couriers
        )
