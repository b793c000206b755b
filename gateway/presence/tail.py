"""Follows a store's log from a position that the caller keeps, and notices when the log has been replaced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import LogTrimmedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.presence.model import Entry
    from gateway.presence.store import Store

WATCH = 2.0
"""Seconds without an entry after which the store is asked whether its log still reaches up to the reader."""


class Tail:
    """One reader of a log that may be lost, or go back, while the reader waits for the next entry.

    Args:
        store: whose log.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading: asyncio.Future[Sequence[Entry]] | None = None
        """The read that waits for the next entry; it outlives a `read` that returned nothing."""

    async def read(self, after: int) -> Sequence[Entry]:
        """Read the entries after a position; nothing if none came for `WATCH` seconds, so call it again.

        Raises:
            LogTrimmedError: the log does not go on from there, or ends before it.
            StoreUnavailableError: the store cannot be reached.
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
        """Stop waiting. The next `read` may be from another position."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
