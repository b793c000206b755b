"""The database that presence is exported to, by SQLAlchemy Core in one thread.

SQLite has no other way than a thread, and to the one writer that there is, PostgreSQL's drivers for asyncio bring
nothing but a transaction that can be cancelled in its middle. So the same code serves both, and the event loop is not
held up by the making of statements.

**Once each, whoever writes.** How far the export has come is a row of the same database, and each transaction begins
with the update of that row, under the condition that it is as the writer has seen it. That takes its lock: of two
writers who believe that it is their turn, the second waits for the first, finds another revision, and has written
nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, create_engine, event, func, insert, make_url, select, tuple_, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from gateway.errors import DatabaseError, OvertakenError
from gateway.export.address import dialect_of, is_file
from gateway.export.sessions import Progress, SessionRow, Sessions
from gateway.export.tables import SCHEMA, gaps, metadata, progress, sessions, transitions
from gateway.presence.model import Status, to_datetime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine, Select
    from sqlalchemy.engine import Row

    from gateway.export.sessions import Change
    from gateway.presence.store import Snapshot

_T = TypeVar("_T")

TIMEOUT = 30.0
"""Seconds that a transaction may take, before its connection is cut."""

SNAPSHOT_TIMEOUT = 600.0
"""The same for one that takes in a snapshot: everyone who is online."""

CONNECT_TIMEOUT = 5
"""Seconds that PostgreSQL may take to let the export in, and SQLite to end what somebody else writes."""

CHUNK = 500
"""Rows in one statement."""

_CREATION_LOCK = 0x70726573656E6365
"""PostgreSQL's key of the lock under which tables are made."""


class Database:
    """The way to one database. Every method raises `DatabaseError` where it cannot be reached or written now.

    Whether something was written is then not known; `progress` says it.

    Args:
        url: as `address.check_url` takes it.
        source: which gateway's presence it holds; a database of another's is left alone.
    """

    def __init__(self, url: str, source: str) -> None:
        self._source = source
        self._engine = _engine(url)
        # Before SQLAlchemy itself asks the new connection anything.
        event.listen(self._engine, "connect", self._use, insert=True)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="export")
        self._busy: Any = None
        """The driver's connection, while its thread uses it."""

    async def progress(self) -> Progress | None:
        """Read how far the export has come; None where it has not begun. Tables that are not there are made."""
        return await self._call(self._read_progress, TIMEOUT)

    async def write(self, seen: Progress, then: Progress, changes: Sequence[Change]) -> Progress:
        """Write what the log told, in one transaction.

        Args:
            seen: how far the export had come.
            then: how far it has come with this.
            changes: what was told in between, in order.

        Raises:
            OvertakenError: another has brought it further meanwhile.
        """
        return await self._call(partial(self._write, seen, then, changes), TIMEOUT)

    async def resynchronise(self, seen: Progress | None, snapshot: Snapshot, now: int, reason: str) -> Progress:
        """Go on from a snapshot, in one transaction; what was missed since `seen` is noted as a gap.

        Args:
            seen: how far the export had come; None where it begins.
            snapshot: what is so now.
            now: when it was taken.
            reason: why the log does not go on, for people to read.

        Raises:
            OvertakenError: another has brought it further meanwhile.
        """
        return await self._call(partial(self._resynchronise, seen, snapshot, now, reason), SNAPSHOT_TIMEOUT)

    async def close(self, within: float) -> None:
        """End what is being written, after so many seconds at the most, and let go."""
        with suppress(DatabaseError):
            await self._call(self._engine.dispose, within)
        self._executor.shutdown(wait=False)

    # In the loop

    async def _call(self, work: Callable[[], _T], within: float) -> _T:
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody is left to hear it
        # Whoever is cancelled leaves a transaction to its end, which harms nobody.
        if not (await asyncio.wait([future], timeout=within))[0]:
            future.cancel()
            self._cut()
            raise DatabaseError(f"no answer within {within:g} seconds")
        return future.result()

    def _cut(self) -> None:
        """End what the thread waits for: the driver finds its connection closed."""
        busy = self._busy
        with suppress(Exception):  # it may have ended by itself
            if hasattr(busy, "interrupt"):  # SQLite's
                busy.interrupt()
            else:
                with socket.socket(fileno=os.dup(busy.fileno())) as connection:
                    connection.shutdown(socket.SHUT_RDWR)

    # In the thread

    def _use(self, connection: Any, _record: object) -> None:
        self._busy = connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                self._busy = connection.connection.driver_connection
                try:
                    yield connection
                finally:
                    self._busy = None
        except DBAPIError as error:
            # The first line: what follows may show the row, which is somebody's.
            raise DatabaseError(str(error.orig).partition("\n")[0]) from None
        except SQLAlchemyError as error:
            raise DatabaseError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from None

    def _read_progress(self) -> Progress | None:
        with self._transaction() as connection:
            # Of two at once, both would find that there are no tables.
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            metadata.create_all(connection)
            row = connection.execute(select(progress)).one_or_none()
        if row is None:
            return None
        if row.schema != SCHEMA:
            raise DatabaseError(f"its tables are of version {row.schema}; this gateway knows version {SCHEMA}")
        if row.source != self._source:
            raise DatabaseError(
                f"it holds the presence of the gateway whose REDIS_PREFIX is {row.source}, not {self._source}:"
                " take a database for each"
            )
        return Progress(row.position, _to_ms(row.at), row.revision)

    def _write(self, seen: Progress, then: Progress, changes: Sequence[Change]) -> Progress:
        with self._transaction() as connection:
            reached = self._move(connection, seen, then)
            users = {(change.now.tenant, change.now.user_id) for change in changes}
            found = Sessions(_sessions(connection, users))
            found.follow(changes)
            _put(connection, changes, found)
        return reached

    def _resynchronise(self, seen: Progress | None, snapshot: Snapshot, now: int, reason: str) -> Progress:
        since = now if seen is None else min(seen.at, now)
        with self._transaction() as connection:
            reached = self._move(connection, seen, Progress(snapshot.position, now))
            found = Sessions(_to_session(row) for row in connection.execute(_OPEN_WITH_STATUS))
            changes = found.resynchronise(snapshot.statuses, snapshot.position, since, now)
            _put(connection, changes, found)
            if seen is not None:
                row = {
                    "began_at": to_datetime(since),
                    "ended_at": to_datetime(now),
                    "position_before": seen.position,
                    "position_after": snapshot.position,
                    "reason": reason,
                }
                connection.execute(insert(gaps), [row])
        return reached

    def _move(self, connection: Connection, seen: Progress | None, then: Progress) -> Progress:
        """Bring the export's own row further: the first statement of a transaction, and the fence before the others."""
        if seen is None:
            values = {"id": 1, "schema": SCHEMA, "source": self._source, "revision": 1}
            row = values | {"position": then.position, "at": to_datetime(then.at)}
            try:
                connection.execute(insert(progress), [row])
            except IntegrityError:
                raise OvertakenError("another has begun the export") from None
            return Progress(then.position, then.at, 1)
        moved = connection.execute(
            update(progress)
            .where(progress.c.revision == seen.revision)
            .values(position=then.position, at=to_datetime(then.at), revision=seen.revision + 1)
        )
        if moved.rowcount != 1:
            raise OvertakenError("another exports as well")
        return Progress(then.position, then.at, seen.revision + 1)


def _engine(url: str) -> Engine:
    dialect = dialect_of(url)
    address = make_url(url).set(drivername=dialect)
    if is_file(url):
        engine = create_engine(address, connect_args={"timeout": CONNECT_TIMEOUT}, hide_parameters=True)
        event.listen(engine, "connect", _prepare_file)
        return engine
    arguments: dict[str, Any] = {
        # Prepared statements are a session's, which some poolers share among their clients.
        "prepare_threshold": None,
        "connect_timeout": CONNECT_TIMEOUT,
        "fallback_application_name": "presence-gateway",
    }
    for name in address.query:
        arguments.pop(name, None)
    return create_engine(address, connect_args=arguments, hide_parameters=True, pool_size=1)


def _prepare_file(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # so that whoever reads does not hold up the export


_OPEN = select(sessions).where(sessions.c.ended_at.is_(None))

_last = transitions.alias("last")
_any = transitions.alias("any_of_them")
_OPEN_WITH_STATUS = (
    select(sessions, _last.c.status, _last.c.status_text)
    .select_from(
        sessions.outerjoin(
            _last,
            (_last.c.tenant == sessions.c.tenant)
            & (_last.c.user_id == sessions.c.user_id)
            & (
                _last.c.position
                == select(func.max(_any.c.position))
                .where(_any.c.tenant == sessions.c.tenant, _any.c.user_id == sessions.c.user_id)
                .scalar_subquery()
            ),
        )
    )
    .where(sessions.c.ended_at.is_(None))
)

_END = (
    update(sessions)
    .where(sessions.c.id == bindparam("session"))
    .values(ended_at=bindparam("then"), ended_by=bindparam("reason"), seconds=bindparam("took"))
)


def _sessions(connection: Connection, users: Iterable[tuple[str, str]]) -> Iterator[SessionRow]:
    """The sessions of some users that go on."""
    for chunk in _chunks(sorted(users)):
        query: Select[Any] = _OPEN.where(tuple_(sessions.c.tenant, sessions.c.user_id).in_(chunk))
        yield from map(_to_session, connection.execute(query))


def _to_session(row: Row[Any]) -> SessionRow:
    status = row._mapping.get("status")  # noqa: SLF001 - public by SQLAlchemy's documentation
    return SessionRow(
        id=row.id,
        tenant=row.tenant,
        user_id=row.user_id,
        began_at=_to_ms(row.began_at),
        began_by=row.began_by,
        status=None if status is None else Status(status),
        status_text=None if status is None else row.status_text,
    )


def _put(connection: Connection, changes: Sequence[Change], found: Sessions) -> None:
    for told in _chunks(changes):
        connection.execute(insert(transitions), [_transition_row(change) for change in told])
    for ended in _chunks(found.ended):  # first: a user has one that goes on
        rows = [
            {"session": s.id, "then": _to_datetime(s.ended_at), "reason": s.ended_by, "took": s.seconds} for s in ended
        ]
        connection.execute(_END, rows)
    for begun in _chunks(found.begun):
        connection.execute(insert(sessions), [_session_row(session) for session in begun])


def _transition_row(change: Change) -> dict[str, object]:
    now = change.now
    return {
        "position": change.position,
        "tenant": now.tenant,
        "user_id": now.user_id,
        "version": now.version,
        "event": change.event.value,
        "previous_status": change.was.value,
        "status": now.status.value,
        "status_text": now.status_text,
        "reason": change.reason,
        "at": to_datetime(change.at),
        "last_active": _to_datetime(now.active_at),
    }


def _session_row(session: SessionRow) -> dict[str, object]:
    return {
        "tenant": session.tenant,
        "user_id": session.user_id,
        "began_at": to_datetime(session.began_at),
        "began_by": session.began_by,
        "ended_at": _to_datetime(session.ended_at),
        "ended_by": session.ended_by,
        "seconds": session.seconds,
    }


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _to_datetime(ms: int | None) -> datetime | None:
    return None if ms is None else to_datetime(ms)


def _to_ms(value: datetime) -> int:
    return round(value.timestamp() * 1000)
