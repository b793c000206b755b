"""The export as one part of a gateway: the exporter, its database, and the duty that one node has at a time."""

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
    """Exports presence to a database while it is this node's duty.

    Args:
        url: the database, as `address.check_url` takes it.
        source: names the gateway whose presence the database holds: the prefix of its keys.
        store: the store whose log is exported.
        clock: the time of presence, in Unix milliseconds.
        leases: decides which node exports.
        ttl: seconds until another node takes over after this one died.
    """

    def __init__(
        self, url: str, source: str, store: Store, clock: Callable[[], int], leases: Leases, *, ttl: float
    ) -> None:
        from gateway.export.database import Database  # noqa: PLC0415 - SQLAlchemy is only installed for an export

        self._database = Database(url, source)
        self._duty = Duty(DUTY, leases, ttl=ttl)
        self.exporter = Exporter(store, self._database, clock)
        _log.info("presence is exported", database=describe(url))
        if is_file(url) and not store.near:
            _log.warning(
                "SQLite is a file on this machine: a node on another machine would export to a file of its own"
            )

    async def run(self) -> None:
        """Export while it is this node's duty, until cancelled."""
        await self._duty.run(self.exporter.run)

    async def close(self) -> None:
        """Close the database. A transaction under way is committed as a whole, or not at all."""
        await self._database.close(CLOSE)
