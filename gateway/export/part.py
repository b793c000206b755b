"""An export as a part of a process: the exporter, its database, and the duty that one node has at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.export.address import describe, is_file
from gateway.export.exporter import DUTY, Exporter
from gateway.nodes.duty import Duty

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.nodes.duty import Leases
    from gateway.presence.store import Store

_log = structlog.get_logger(__name__)

CLOSE = 5.0
"""Seconds that what is being written may take when the process stops."""


class Export:
    """What takes presence to a database, on whichever node's turn it is.

    Args:
        url: the database, as `address.check_url` takes it.
        source: which gateway's presence it is to hold: the prefix of its keys.
        store: whose log.
        clock: the time that presence goes by, in Unix milliseconds.
        leases: who of all nodes does it.
        ttl: seconds until another node does it, after this one died.
    """

    def __init__(
        self, url: str, source: str, store: Store, clock: Callable[[], int], leases: Leases, *, ttl: float
    ) -> None:
        from gateway.export.database import Database  # noqa: PLC0415 - SQLAlchemy is there for whoever exports

        self._database = Database(url, source)
        self._duty = Duty(DUTY, leases, ttl=ttl)
        self.exporter = Exporter(store, self._database, clock)
        _log.info("presence is exported", database=describe(url))
        if is_file(url) and not store.near:
            _log.warning("SQLite is a file of this machine: nodes on others would each export to one of their own")

    async def run(self) -> None:
        """Export whenever it is this node's turn, until cancelled."""
        await self._duty.run(self.exporter.run)

    async def close(self) -> None:
        """Let go of the database. What is being written is written, or not at all."""
        await self._database.close(CLOSE)
