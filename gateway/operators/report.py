"""What a node says of itself, read off its parts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.operators.nodes import Report, Waiting
from gateway.version import COMPILED, __version__

if TYPE_CHECKING:
    from gateway.connections.connections import Connections
    from gateway.engine.server import Server
    from gateway.presence.tracker import Tracker
    from gateway.webhooks.sender import Webhooks


class Reporter:
    """Reads one node's report.

    Args:
        tracker: its hand on the store.
        connections: its live connections.
        server: its clients of Socket.IO.
        webhooks: what it sends; None where there are none.
    """

    def __init__(
        self, tracker: Tracker, connections: Connections, server: Server, webhooks: Webhooks | None = None
    ) -> None:
        self._tracker = tracker
        self._connections = connections
        self._server = server
        self._webhooks = webhooks
        self._started_at = tracker.now()

    def __call__(self) -> Report:
        """Read it now."""
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
