"""Reads a store's log on and on for whoever keeps a position of their own, and finds out when it has become another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import LogTrimmedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.presence.model import Entry
    from gateway.presence.store import Store

WATCH = 2.0
"""Seconds without an entry, after which the store is asked whether its log is still the one that was read."""


class Tail:
    """One reader of a log, which may be lost or go back while the reader waits for it to go on.

    Args:
        store: whose log.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading: asyncio.Future[Sequence[Entry]] | None = None
        """What waits for the log to go on."""

    async def read(self, after: int) -> Sequence[Entry]:
        """Read on behind a position; nothing where nothing has come for a while, and the next call goes on waiting.

        Raises:
            LogTrimmedError: the log does not go on from there, or ends before it.
            StoreUnavailableError: the store is away.
        """
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self._store.read(after, wait=True))
        if (await asyncio.wait([reading], timeout=WATCH))[0]:
            self._reading = None
            return reading.result()
        if await self._store.position() < after and not reading.done():
            self.stop()
            raise LogTrimmedError("the log ends before what was read of it")
        return ()

    def stop(self) -> None:
        """Wait no more. What reads next may do so from another position."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
