"""The export, against real SQLite and real PostgreSQL, with real stores, and whatever can come between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import STEP, TIMING, Clock, eventually
from documents import block
from postgres_servers import DATABASES, PASSWORD, MakeDatabase, postgres_server
from sqlalchemy import Engine, create_engine, inspect, select, text
from stores import STORES

from gateway.errors import DatabaseError, OvertakenError, StoreUnavailableError
from gateway.export.database import CHUNK, Database
from gateway.export.exporter import BATCH, Exporter
from gateway.export.sessions import Change, Progress
from gateway.export.tables import gaps, progress, sessions, transitions
from gateway.presence.model import Beat, Choice, Chosen, Connection, Ending, Event, Status, UserStatus, to_datetime
from gateway.presence.store import Snapshot, Store
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import RESYNCHRONISED
from gateway.runtime.tasks import end

pytestmark = pytest.mark.xdist_group("postgresql")  # one server for all of them


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    return make_database(request.param)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url, "presence")
    yield database
    await database.close(STEP)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """What an analyst reads by."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    yield engine
    engine.dispose()


def rows(engine: Engine, table: Any) -> list[dict[str, Any]]:
    if not inspect(engine).has_table(table.name):
        return []
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]


async def soon(_seconds: float) -> None:
    """Wait for what takes seconds, in no time."""
    await asyncio.sleep(0.001)


@asynccontextmanager
async def exporting(store: Store, database: Database, clock: Clock) -> AsyncIterator[Exporter]:
    exporter = Exporter(store, database, clock, sleep=soon)
    task = asyncio.create_task(exporter.run())
    try:
        yield exporter
    finally:
        await end([task])


def connection(user: str, name: str = "tab", now: int = 0, tenant: str = "t") -> Connection:
    return Connection(tenant=tenant, user_id=user, id=f"{user}-{name}", node="n", door="socketio", connected_at=now)


def changes(count: int, start: int = 1) -> list[Change]:
    """Users who come online, one after the other."""
    return [
        Change(
            position=position,
            at=position * 1000,
            event=Event.ONLINE,
            was=Status.OFFLINE,
            now=UserStatus(
                tenant="t", user_id=f"user-{position}", status=Status.ONLINE, online_since=position * 1000, version=1
            ),
            reason="connected",
        )
        for position in range(start, start + count)
    ]


async def begin(database: Database) -> Progress:
    assert await database.progress() is None
    return await database.resynchronise(None, Snapshot(0, ()), 0, "")


# Log, exporter and database together


@pytest.mark.parametrize("kind", STORES)
async def test_what_others_were_told_is_in_the_database(
    kind: str, redis_url: str, engine: Engine, database: Database, clock: Clock
) -> None:
    async with STORES[kind](TIMING, 1000, redis_url) as store, exporting(store, database, clock):
        await eventually(lambda: rows(engine, progress))
        await store.renew("n", clock())
        began = clock()
        await store.connect(connection("ann"), clock())
        clock.advance(s=30)
        await store.set_status("t", "ann", Choice(Chosen.BUSY, "Lunch \N{FORK AND KNIFE}"), clock())
        clock.advance(s=30)
        await store.disconnect(connection("ann"), Ending.GOODBYE, clock())
        found = await eventually(lambda: len(rows(engine, transitions)) == 3 and rows(engine, transitions))
    assert [
        (row["event"], row["previous_status"], row["status"], row["status_text"], row["version"], row["reason"])
        for row in found
    ] == [
        ("user-online", "offline", "online", None, 1, "connected"),
        ("user-status-changed", "online", "busy", "Lunch \N{FORK AND KNIFE}", 2, "set by hand"),
        ("user-offline", "busy", "offline", None, 3, "goodbye"),
    ]
    assert [row["at"] for row in found] == [to_datetime(began + ms) for ms in (0, 30_000, 60_000)]
    assert {(row["tenant"], row["user_id"]) for row in found} == {("t", "ann")}
    assert found[-1]["last_active"] == to_datetime(began + 60_000)
    [session] = rows(engine, sessions)
    assert (session["began_at"], session["ended_at"]) == (to_datetime(began), to_datetime(began + 60_000))
    assert (session["seconds"], session["began_by"], session["ended_by"]) == (60.0, "connected", "goodbye")
    assert rows(engine, gaps) == []


async def test_of_one_who_is_invisible_the_database_knows_what_others_do(
    engine: Engine, database: Database, clock: Clock
) -> None:
    store = MemoryStore(TIMING)
    async with exporting(store, database, clock):
        await eventually(lambda: rows(engine, progress))
        await store.renew("n", clock())
        await store.connect(connection("ann"), clock())
        hidden_at = clock.advance(s=10)
        await store.set_status("t", "ann", Choice(Chosen.INVISIBLE, "secret text"), clock())
        clock.advance(s=10)
        await store.beat("n", [Beat(tenant="t", user_id="ann", at=clock(), meta_json=b'{"page":"secret"}')])
        await store.set_status("t", "ann", Choice(Chosen.INVISIBLE, "another secret"), clock())
        await store.connect(connection("bob"), clock())
        await eventually(lambda: len(rows(engine, transitions)) == 3)
        await eventually(lambda: rows(engine, progress)[0]["position"] == store._position)
    told = [row for row in rows(engine, transitions) if row["user_id"] == "ann"]
    assert [(row["event"], row["reason"]) for row in told] == [
        ("user-online", "connected"),
        ("user-offline", "goodbye"),
    ]
    assert told[-1]["last_active"] == to_datetime(hidden_at)
    [session] = [row for row in rows(engine, sessions) if row["user_id"] == "ann"]
    assert (session["ended_at"], session["ended_by"]) == (to_datetime(hidden_at), "goodbye")
    for table in (transitions, sessions, gaps, progress):
        assert "secret" not in str(rows(engine, table))


async def test_whoever_is_online_as_an_export_begins_is_there_and_no_gap_is(
    engine: Engine, database: Database, clock: Clock
) -> None:
    store = MemoryStore(TIMING)
    await store.renew("n", clock())
    await store.connect(connection("ann"), clock())
    clock.advance(s=10)
    async with exporting(store, database, clock):
        [row] = await eventually(lambda: rows(engine, transitions))
    assert (row["user_id"], row["event"], row["reason"]) == ("ann", "user-online", RESYNCHRONISED)
    [session] = rows(engine, sessions)
    assert session["began_at"] == to_datetime(clock() - 10_000)
    assert rows(engine, gaps) == []


@pytest.mark.parametrize("kind", STORES)
async def test_an_export_that_was_off_goes_on_where_it_was(
    kind: str, redis_url: str, engine: Engine, database: Database, clock: Clock
) -> None:
    async with STORES[kind](TIMING, 1000, redis_url) as store:
        await store.renew("n", clock())
        async with exporting(store, database, clock):
            await eventually(lambda: rows(engine, progress))
            await store.connect(connection("ann"), clock())
            await eventually(lambda: len(rows(engine, transitions)) == 1)
        clock.advance(s=1)
        await store.disconnect(connection("ann"), Ending.GOODBYE, clock())
        await store.connect(connection("bob"), clock())
        async with exporting(store, database, clock):
            await eventually(lambda: len(rows(engine, transitions)) == 3)
    assert [row["user_id"] for row in rows(engine, transitions)] == ["ann", "ann", "bob"]
    assert [row["seconds"] for row in rows(engine, sessions)] == [1.0, None]
    assert rows(engine, gaps) == []


@pytest.mark.parametrize("kind", STORES)
async def test_what_was_trimmed_is_written_down_as_a_gap(
    kind: str, redis_url: str, engine: Engine, database: Database, clock: Clock
) -> None:
    async with STORES[kind](TIMING, 5, redis_url) as store:
        await store.renew("n", clock())
        async with exporting(store, database, clock):
            await eventually(lambda: rows(engine, progress))
            for user in ("ann", "bob"):
                await store.connect(connection(user), clock())
            await eventually(lambda: len(rows(engine, transitions)) == 2)
        before = rows(engine, progress)[0]
        came = clock.advance(s=3)
        for number in range(200):  # Redis trims by whole nodes of a hundred entries
            user = f"user-{number}"
            await store.connect(connection(user), clock())
            if number:
                await store.disconnect(connection(user), Ending.GOODBYE, clock())
        went = clock.advance(s=3)
        await store.disconnect(connection("bob"), Ending.GOODBYE, clock())
        now = clock.advance(s=3)
        async with exporting(store, database, clock) as exporter:
            [gap] = await eventually(lambda: rows(engine, gaps))
            await eventually(lambda: exporter.gaps == 1)
            await store.connect(connection("cat"), clock())
            await eventually(lambda: rows(engine, transitions)[-1]["user_id"] == "cat")
    assert (gap["began_at"], gap["ended_at"]) == (before["at"], to_datetime(now))
    assert gap["position_before"] == before["position"] < gap["position_after"]
    assert "log" in gap["reason"]
    assert [(row["user_id"], row["ended_at"], row["ended_by"]) for row in rows(engine, sessions)] == [
        ("ann", None, None),
        ("bob", to_datetime(went), RESYNCHRONISED),
        ("user-0", None, None),
        ("cat", None, None),
    ]
    assert [row["began_at"] for row in rows(engine, sessions)][2:] == [to_datetime(came), to_datetime(now)]


async def test_a_store_that_begins_anew_is_a_gap(engine: Engine, database: Database, clock: Clock) -> None:
    store = MemoryStore(TIMING, begin=clock() << 20)
    async with exporting(store, database, clock):
        await eventually(lambda: rows(engine, progress))
        await store.renew("n", clock())
        await store.connect(connection("ann"), clock())
        await eventually(lambda: len(rows(engine, transitions)) == 1)
    clock.advance(s=60)
    store = MemoryStore(TIMING, begin=clock() << 20)
    async with exporting(store, database, clock):
        await eventually(lambda: rows(engine, gaps))
        await store.renew("n", clock())
        await store.connect(connection("ann"), clock())
        await eventually(lambda: len(rows(engine, transitions)) == 3)
    assert [row["event"] for row in rows(engine, transitions)] == ["user-online", "user-offline", "user-online"]
    assert [row["ended_by"] for row in rows(engine, sessions)] == [RESYNCHRONISED, None]


async def test_a_log_that_ends_before_what_was_read_is_found_though_nothing_comes(
    engine: Engine, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.presence.tail.WATCH", 0.02)
    seen = await begin(database)
    await database.write(seen, Progress(1_000_000, 0), changes(1))
    async with exporting(MemoryStore(TIMING), database, clock):
        [gap] = await eventually(lambda: rows(engine, gaps))
    assert (gap["position_before"], gap["position_after"]) == (1_000_000, 0)


async def test_quiet_is_noted_so_that_a_gap_does_not_begin_hours_ago(
    engine: Engine, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.presence.tail.WATCH", 0.02)
    store = MemoryStore(TIMING)
    async with exporting(store, database, clock):
        await eventually(lambda: rows(engine, progress))
        quiet = clock.advance(s=3600)
        await eventually(lambda: rows(engine, progress)[0]["at"] == to_datetime(quiet))
        # Activity is of no interest, but it has been read.
        await store.renew("n", clock())
        await store.connect(connection("ann"), clock())
        for _ in range(50):
            await store.beat("n", [Beat(tenant="t", user_id="ann", at=clock.advance(s=2))])
        await eventually(lambda: rows(engine, progress)[0]["position"] == store._position)
    assert len(rows(engine, transitions)) == 1


async def test_a_large_backlog_is_many_transactions(engine: Engine, database: Database, clock: Clock) -> None:
    count = 2 * BATCH + CHUNK + 1
    store = MemoryStore(TIMING)
    await database.resynchronise(await database.progress(), await store.snapshot(), clock(), "")
    await store.renew("n", clock())
    for user in range(count):
        await store.connect(connection(f"user-{user}"), clock())
    async with exporting(store, database, clock) as exporter:
        await eventually(lambda: len(rows(engine, sessions)) == count, within=4 * STEP)
        await eventually(lambda: exporter.exported == count)
        assert exporter.lag == 0
    assert rows(engine, progress)[0]["revision"] >= 4
    assert len({row["position"] for row in rows(engine, transitions)}) == count


# The database by itself


async def test_a_second_writer_is_told_and_has_written_nothing(engine: Engine, database: Database) -> None:
    seen = await begin(database)
    await database.write(seen, Progress(2, 0), changes(2))
    with pytest.raises(OvertakenError):
        await database.write(seen, Progress(3, 0), changes(3))
    with pytest.raises(OvertakenError):
        await database.resynchronise(seen, Snapshot(9, ()), 0, "it was slow")
    with pytest.raises(OvertakenError):
        await database.resynchronise(None, Snapshot(9, ()), 0, "")
    assert len(rows(engine, transitions)) == 2
    assert rows(engine, gaps) == []


async def test_two_that_write_at_once_write_once(engine: Engine, url: str, closing: AsyncExitStack) -> None:
    writers = [Database(url, "presence") for _ in range(4)]
    for writer in writers:
        closing.push_async_callback(writer.close, STEP)
    found = await asyncio.gather(*(writer.progress() for writer in writers))  # also makes the tables, all at once
    assert found == [None] * 4
    seen = await writers[0].resynchronise(None, Snapshot(0, ()), 0, "")
    done: list[Progress | BaseException] = []
    for batch in range(5):
        told = changes(10, 10 * batch + 1)
        done = await asyncio.gather(
            *(writer.write(seen, Progress(told[-1].position, 0), told) for writer in writers), return_exceptions=True
        )
        [seen] = [result for result in done if isinstance(result, Progress)]
        assert sum(isinstance(result, OvertakenError) for result in done) == 3, done
    assert [row["position"] for row in rows(engine, transitions)] == list(range(1, 51))
    assert len(rows(engine, sessions)) == 50


async def test_two_exporters_at_once_export_once(engine: Engine, url: str, database: Database, clock: Clock) -> None:
    other = Database(url, "presence")
    store = MemoryStore(TIMING)
    await store.renew("n", clock())
    async with exporting(store, database, clock) as one, exporting(store, other, clock) as two:
        await eventually(lambda: rows(engine, progress))
        for user in range(200):
            await store.connect(connection(f"user-{user}"), clock())
            await asyncio.sleep(0.002)
        await eventually(lambda: len(rows(engine, transitions)) == 200, within=4 * STEP)
        await eventually(lambda: one.exported + two.exported == 200)
    await other.close(STEP)
    assert len(rows(engine, sessions)) == 200
    assert one.errors == two.errors == 0


async def test_a_failure_in_the_middle_leaves_nothing(engine: Engine, database: Database) -> None:
    seen = await begin(database)
    with pytest.raises(DatabaseError):
        await database.write(seen, Progress(2, 0), [*changes(600), *changes(1)])  # a position twice
    assert rows(engine, transitions) == rows(engine, sessions) == []
    assert await database.progress() == seen


async def test_a_beginning_that_fails_is_not_taken_for_somebody_else_s(engine: Engine, database: Database) -> None:
    assert await database.progress() is None
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE presence_export RENAME COLUMN at TO was_at"))
    with pytest.raises(DatabaseError) as caught:
        await database.resynchronise(None, Snapshot(0, ()), 0, "")
    assert not isinstance(caught.value, OvertakenError)


async def test_a_failure_shows_no_row_of_anyones(database: Database) -> None:
    seen = await begin(database)
    with pytest.raises(DatabaseError) as caught:
        await database.write(seen, Progress(2, 0), changes(1) * 2)
    assert "user-1" not in str(caught.value)


async def test_a_database_of_another_gateway_is_left_alone(url: str, database: Database) -> None:
    await begin(database)
    other = Database(url, "staging")
    with pytest.raises(DatabaseError, match="REDIS_PREFIX is presence, not staging"):
        await other.progress()
    await other.close(STEP)


async def test_a_database_of_another_version_is_left_alone(engine: Engine, database: Database) -> None:
    await begin(database)
    with engine.begin() as connection:
        connection.execute(progress.update().values(schema=99))
    with pytest.raises(DatabaseError, match="version 99"):
        await database.progress()


async def test_it_answers_who_was_online_when(engine: Engine, database: Database, clock: Clock) -> None:
    """The questions of docs/reference/export.md, as they stand there but for how a database writes times."""
    store = MemoryStore(TIMING)
    clock.now = round(datetime(2026, 3, 1, 11, 30, tzinfo=UTC).timestamp() * 1000)
    async with exporting(store, database, clock):
        await eventually(lambda: rows(engine, progress))
        await store.renew("n", clock())
        await store.connect(connection("ann"), clock())
        clock.advance(s=3600)
        await store.renew("n", clock())
        await store.disconnect(connection("ann"), Ending.GOODBYE, clock())
        await store.connect(connection("bob"), clock())
        await eventually(lambda: len(rows(engine, sessions)) == 2)
    code = block("docs/reference/export.md", language="sql").replace("'default'", "'t'")
    if engine.dialect.name == "sqlite":
        code = code.replace("+00'", "'")
    at_noon, how_long = (question for question in code.split(";") if question.strip())
    with engine.connect() as reader:
        if engine.dialect.name == "postgresql":
            reader.execute(text("SET TIME ZONE 'UTC'"))
        assert reader.execute(text(at_noon)).all() == [("ann",)]
        assert reader.execute(text(how_long)).all() == [("ann", 1, 3600.0)]


def test_the_usual_questions_have_an_index(engine: Engine, url: str) -> None:
    async def make() -> None:
        database = Database(url, "presence")
        await begin(database)
        await database.close(STEP)

    asyncio.run(make())
    found = {
        index["name"]: index["column_names"]
        for t in (transitions, sessions)
        for index in inspect(engine).get_indexes(t.name)
    }
    assert found == {
        "presence_transitions_user": ["tenant", "user_id", "position"],
        "presence_transitions_at": ["tenant", "at"],
        "presence_sessions_user": ["tenant", "user_id", "began_at"],
        "presence_sessions_began_at": ["tenant", "began_at"],
        "presence_sessions_ended_at": ["tenant", "ended_at"],
        "presence_sessions_open": ["tenant", "user_id"],
    }


# While something is away


class Failing:
    """A database that fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0
        self.written: list[Change] = []
        self.reached = Progress(0, 0)

    async def progress(self) -> Progress | None:
        return self.reached

    async def write(self, seen: Progress, then: Progress, changes: Sequence[Change]) -> Progress:
        self.asked += 1
        if self.asked <= self.failures:
            raise DatabaseError("the disk is full")
        self.written += changes
        self.reached = then
        return then

    async def resynchronise(self, seen: Progress | None, snapshot: Snapshot, now: int, reason: str) -> Progress:
        raise AssertionError("nothing is missing")


async def test_it_waits_longer_and_longer_for_a_database_that_fails_and_then_goes_on(clock: Clock) -> None:
    store, database = MemoryStore(TIMING), Failing(9)
    slept: list[float] = []
    lags: list[tuple[float, float]] = []
    await store.renew("n", clock())
    await store.connect(connection("ann"), clock())

    async def sleep(seconds: float) -> None:
        lags.append((exporter.lag, sum(slept)))
        slept.append(seconds)
        clock.advance(s=seconds)
        await asyncio.sleep(0)

    exporter = Exporter(store, database, clock, sleep=sleep)
    task = asyncio.create_task(exporter.run())
    await eventually(lambda: database.written)
    await end([task])
    assert exporter.errors == 9
    assert [change.now.user_id for change in database.written] == ["ann"]
    most = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert all(limit / 2 <= seconds <= limit for seconds, limit in zip(slept, most, strict=False)), slept
    for lag, waited in lags[:9]:
        assert lag == pytest.approx(waited, abs=0.02)
    assert exporter.lag == 0


async def test_a_store_that_is_away_is_waited_for(clock: Clock) -> None:
    class Away(MemoryStore):
        away = True

        async def read(self, after: int, *, wait: bool) -> Any:
            if self.away:
                raise StoreUnavailableError("away")
            return await super().read(after, wait=wait)

    store, database = Away(TIMING), Failing(0)
    await store.renew("n", clock())
    await store.connect(connection("ann"), clock())
    exporter = Exporter(store, database, clock, sleep=soon)
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0.05)
    assert database.written == []
    store.away = False
    await eventually(lambda: database.written)
    await end([task])
    assert exporter.errors == 0


async def test_a_database_that_hangs_is_given_up_and_found_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.export.database.TIMEOUT", 0.5)
    with postgres_server() as server:
        url = server.make_database()
        database = Database(url, "presence")
        seen = await begin(database)
        server.hang(hanging=True)
        with pytest.raises(DatabaseError, match="no answer within"):
            await database.write(seen, Progress(2, 0), changes(2))
        await eventually(lambda: database._busy is None)  # the thread waits no more
        server.hang(hanging=False)
        await until(lambda: _answers(database))
        assert await database.progress() == seen
        await database.write(seen, Progress(2, 0), changes(2))
        server.stop()
        with pytest.raises(DatabaseError) as caught:
            await database.progress()
        assert PASSWORD not in str(caught.value)
        server.start()
        await until(lambda: _answers(database))
        assert await database.progress() == Progress(2, 0, 2)
        await database.close(STEP)


async def _answers(database: Database) -> bool:
    try:
        await database.progress()
    except DatabaseError:
        return False
    return True


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(2 * STEP):
        while not await condition():  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.05)
