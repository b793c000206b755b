"""The exporter: a further reader of the log, which writes into a database what others were told.

It is one node's duty at a time. Presence never waits for it. While the database cannot be reached, the log waits in the
store, as it does for a node that is cut off. What is trimmed from it in the meantime is a gap, and is recorded as one.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.errors import DatabaseError, LogTrimmedError, OvertakenError, StoreUnavailableError
from gateway.export.sessions import Change, Progress
from gateway.presence.model import Transition, to_datetime
from gateway.presence.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.presence.model import Entry
    from gateway.presence.store import Snapshot, Store

_log = structlog.get_logger(__name__)

DUTY = "export"
"""The name of the lease."""

BATCH = 1000
"""Changes in one transaction at the most."""

GATHERED = 0.2
"""Seconds between transactions while the export is up to date: the changes in between go into one."""

NOTED = 1000
"""Milliseconds after which the database is told how far the log was read, if it had entries but none to be written."""

NOTED_QUIET = 10_000
"""Milliseconds after which it is told so if the log had no entries at all, so that a gap never seems to begin hours
ago."""

GIVEN_BACK = 3.0
"""Seconds that nodes have to restore what a store has lost before a snapshot is taken."""

RETRY = 0.25
"""Seconds to wait after the store failed before it is asked again."""

BACK_OFF = (0.5, 30.0)
"""Seconds to wait after the database failed, the first time and at the most."""

REMINDER = 60_000
"""Milliseconds between log lines that say that the database still cannot be reached."""


class Target(Protocol):
    """Where presence is exported to; see `gateway.export.database.Database`."""

    async def progress(self) -> Progress | None:
        """Read how far the export has come; None if it has not begun."""

    async def write(self, seen: Progress, then: Progress, changes: Sequence[Change]) -> Progress:
        """Write the changes of the log between two positions."""

    async def resynchronise(self, seen: Progress | None, snapshot: Snapshot, now: int, reason: str) -> Progress:
        """Go on from a snapshot."""


class Exporter:
    """Reads the log, and writes it into a database.

    Args:
        store: the store whose log is read.
        database: where to write.
        clock: the time of presence, in Unix milliseconds.
        sleep: waits for some seconds; a test passes its own.
    """

    def __init__(
        self,
        store: Store,
        database: Target,
        clock: Callable[[], int],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.exported = 0
        """Changes that this node has written."""
        self.errors = 0
        """Transactions that failed."""
        self.gaps = 0
        """How often the log did not go on from where the database was."""
        self.running = False
        """Whether this node exports now."""
        self._store = store
        self._tail = Tail(store)
        self._database = database
        self._clock = clock
        self._sleep = sleep
        self._waits_since: int | None = None
        """When the first change was that is read and not yet written."""
        self._failing_since: int | None = None
        self._reminded_at = 0
        self._failures = 0
        self._overtaken = 0

    @property
    def lag(self) -> float:
        """Seconds that the database is behind, as far as this node knows; 0 where it does not export."""
        since = [at for at in (self._waits_since, self._failing_since) if at is not None]
        return max(self._clock() - min(since), 0) / 1000 if since else 0.0

    async def run(self) -> None:
        """Export until cancelled; go on with whatever another has written."""
        self.running = True
        try:
            while True:
                await self._sleep(await self._attempt())
        finally:
            self.running = False
            self._waits_since = self._failing_since = None
            self._failures = self._overtaken = 0

    async def _attempt(self) -> float:
        """Export until something fails, and return after how many seconds to try again."""
        try:
            await self._export()
        except StoreUnavailableError:
            pass  # the tracker says so
        except OvertakenError:
            if not self._overtaken:
                _log.warning("another node exports as well; going on from where it is")
            self._overtaken += 1
        except DatabaseError as error:
            return self._fail(str(error))
        except Exception:
            _log.exception("the export failed; trying again")
            return self._fail("see above")
        finally:
            self._tail.stop()
        return RETRY

    async def _export(self) -> None:
        progress = await self._database.progress()
        if progress is None:
            _log.info("the export begins, with who is online now")
            progress = await self._resynchronise(None, "")
        reached, noted_at = progress.position, progress.at
        while True:
            try:
                entries = await self._tail.read(reached)
            except LogTrimmedError as error:
                progress = await self._resynchronise(progress, str(error))
                reached, noted_at = progress.position, progress.at
                continue
            if entries:
                reached = entries[-1].position
                progress = await self._write(progress, entries)
            if self._clock() - noted_at >= (NOTED_QUIET if reached == progress.position else NOTED):
                noted_at = self._clock()
                progress = await self._note(progress, reached)
            if len(entries) < BATCH:
                await self._sleep(GATHERED)

    async def _write(self, progress: Progress, entries: Sequence[Entry]) -> Progress:
        """Write what of these entries others were told. What only a user is told of themselves stays out."""
        found = (Change.of(entry) for entry in entries if isinstance(entry, Transition))
        changes = [change for change in found if change is not None]
        for start in range(0, len(changes), BATCH):
            told = changes[start : start + BATCH]
            self._waits_since = min(told[0].at, self._waits_since or told[0].at)
            last = start + BATCH >= len(changes)
            position = entries[-1].position if last else told[-1].position
            then = Progress(position, max(progress.at, told[-1].at))
            progress = await self._database.write(progress, then, told)
            self.exported += len(told)
            # Of a reader that is behind, the next change is about as old as this one.
            self._succeed(told[-1].at if not last or len(entries) >= BATCH else None)
        return progress

    async def _note(self, progress: Progress, reached: int) -> Progress:
        """Write how far the log was read."""
        now = self._clock()
        complete = await self._store.position() == reached
        then = Progress(reached, max(progress.at, now) if complete else progress.at)
        progress = await self._database.write(progress, then, ())
        self._succeed(None if complete else self._waits_since)
        return progress

    async def _resynchronise(self, progress: Progress | None, reason: str) -> Progress:
        """Go on from a snapshot, and write down what is missing before it."""
        if progress is not None:
            await self._sleep(GIVEN_BACK)
        now = self._clock()
        snapshot = await self._store.snapshot()
        reached = await self._database.resynchronise(progress, snapshot, now, reason)
        self._succeed(None)
        if progress is not None:
            self.gaps += 1
            _log.warning(
                "the log did not go on from where the database was: presence_gaps says since when changes are missing",
                reason=reason,
                since=to_datetime(progress.at).isoformat(),
                until=to_datetime(now).isoformat(),
            )
        return reached

    def _succeed(self, waits_since: int | None) -> None:
        self._waits_since = waits_since
        if self._failing_since is not None:
            _log.info("the database takes in the export again")
        self._failing_since = None
        self._failures = 0

    def _fail(self, why: str) -> float:
        """Note that the database failed, and return how long to leave it alone."""
        now = self._clock()
        self.errors += 1
        if self._failing_since is None or now - self._reminded_at >= REMINDER:
            _log.warning("presence cannot be exported to its database; trying again", error=why)
            self._reminded_at = now
        if self._failing_since is None:
            self._failing_since = now
        first, most = BACK_OFF
        pause: float = min(first * 2.0**self._failures, most)
        self._failures = min(self._failures + 1, 10)
        return pause * random.uniform(0.5, 1)  # noqa: S311 - not a secret
