"""The export in real processes, on real Redis and PostgreSQL: killed in the middle, two at once, without a database."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from conftest import ROOT, SERVICE_KEY, STEP, TIMING, Process, Running, eventually
from postgres_servers import PASSWORD, PostgresServer, postgres_server
from redis_servers import fresh_prefix, redis_server

from gateway.presence.model import Connection, Ending, Transition
from gateway.presence.store_redis import RedisStore
from gateway.redis.connection import connect

pytestmark = pytest.mark.xdist_group("postgresql")

Spawn = Callable[..., Awaitable[Process]]
Serve = Callable[..., Awaitable[Running]]


def now() -> int:
    return round(time.time() * 1000)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Ask a database; one that has no tables yet has no rows."""
    try:
        with psycopg.connect(url) as connection:
            return connection.execute(statement.encode()).fetchall()
    except psycopg.errors.UndefinedTable:
        return []


@asynccontextmanager
async def export_process(**variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``python -m gateway export`` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "export"),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]} | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        print((await process.communicate())[1].decode())  # noqa: T201 - for whoever sees a test fail


class Site:
    """A gateway's Redis, some users who come and go, and what of it the log says."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url, self.prefix = redis_url, fresh_prefix()
        self.store = RedisStore(connect(redis_url, timeout=STEP), self.prefix, TIMING)
        self._number = 0
        self._stayed: dict[str, Connection] = {}

    @property
    def variables(self) -> dict[str, str]:
        return {"REDIS_URL": self.redis_url, "REDIS_PREFIX": self.prefix, "NODE_LEASE": "1"}

    async def come_and_go(self, count: int) -> None:
        await self.store.renew("users", now())
        for _ in range(count):
            self._number += 1
            user, name = f"user-{self._number % 97}", f"{self._number}"
            tab = self._stayed.pop(user, None)
            if tab is None:
                tab = Connection(tenant="t", user_id=user, id=name, node="users", door="socketio", connected_at=now())
                await self.store.connect(tab, now())
            if self._number % 3:
                await self.store.disconnect(tab, Ending.GOODBYE, now())
            else:
                self._stayed[user] = tab

    async def told(self, after: int) -> list[tuple[Any, ...]]:
        """What the log told others after a position."""
        found: list[tuple[Any, ...]] = []
        while entries := await self.store.read(after, wait=False):
            after = entries[-1].position
            found += [
                (entry.position, entry.user_id, entry.now.version, entry.event.value)
                for entry in entries
                if isinstance(entry, Transition) and entry.event is not None
            ]
        return found


@pytest.fixture
async def site(redis_url: str) -> AsyncIterator[Site]:
    site = Site(redis_url)
    yield site
    await site.store.close()


def exported(url: str) -> list[tuple[Any, ...]]:
    return query(url, "SELECT position, user_id, version, event FROM presence_transitions ORDER BY position")


def has_more_than(url: str, count: int) -> bool:
    return len(exported(url)) > count


def check_sessions(url: str, told: Sequence[tuple[Any, ...]]) -> None:
    """That sessions are what the events say: each coming one, each going its end."""
    came = sum(event == "user-online" for *_, event in told)
    went = sum(event == "user-offline" for *_, event in told)
    assert query(url, "SELECT count(*), count(ended_at) FROM presence_sessions") == [(came, went)]


async def begun(url: str) -> int:
    """Wait until an export has begun, and return from where on the log is in the database."""
    [(position,)] = await eventually(lambda: query(url, "SELECT position FROM presence_export"), within=3 * STEP)
    return int(position)


async def test_killed_in_the_middle_of_a_transaction_nothing_is_missing_and_nothing_is_double(
    site: Site, shared_postgres: PostgresServer
) -> None:
    url = shared_postgres.make_database()
    variables = site.variables | {"EXPORT_DATABASE_URL": url}
    async with export_process(**variables) as first:
        start = await begun(url)
        await site.come_and_go(50)
        await eventually(lambda: exported(url))
        with psycopg.connect(url) as blocking:
            blocking.execute("LOCK TABLE presence_sessions IN EXCLUSIVE MODE")
            await site.come_and_go(50)
            # Its row is moved and its transitions are there, in a transaction that waits for the sessions.
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            await eventually(lambda: query(url, waits))
            first.kill()
            await first.wait()
            async with export_process(**variables):
                blocking.rollback()
                told = await site.told(start)
                await eventually(lambda: len(exported(url)) >= len(told), within=3 * STEP)
                assert exported(url) == told
    check_sessions(url, told)
    assert query(url, "SELECT * FROM presence_gaps") == []


async def test_killed_again_and_again_under_load_nothing_is_missing_and_nothing_is_double(
    site: Site, shared_postgres: PostgresServer
) -> None:
    url = shared_postgres.make_database()
    variables = site.variables | {"EXPORT_DATABASE_URL": url}
    start = None
    for kill in range(4):
        async with export_process(**variables) as process:
            if start is None:
                start = await begun(url)
            before = len(exported(url))
            load = asyncio.create_task(site.come_and_go(400))
            await eventually(partial(has_more_than, url, before), within=3 * STEP)
            await asyncio.sleep(0.03 * kill)
            process.kill()
            await load
    assert start is not None
    told = await site.told(start)
    async with export_process(**variables):
        await eventually(lambda: len(exported(url)) >= len(told), within=3 * STEP)
    assert exported(url) == told
    check_sessions(url, told)
    assert query(url, "SELECT * FROM presence_gaps") == []


async def test_of_two_gateways_one_exports_and_the_other_when_that_is_killed(
    site: Site, shared_postgres: PostgresServer, spawn: Spawn
) -> None:
    url = shared_postgres.make_database()
    nodes = [await spawn(**site.variables, EXPORT_DATABASE_URL=url) for _ in range(2)]
    start = await begun(url)
    await site.come_and_go(100)
    figures = [await figure(node.url, "presence_export_running") for node in nodes]
    assert sorted(figures) == [0, 1]
    await nodes[figures.index(1)].stop(signal.SIGKILL)
    other = nodes[figures.index(0)]
    await site.come_and_go(100)
    told = await site.told(start)
    await eventually(lambda: len(exported(url)) >= len(told), within=3 * STEP)
    assert exported(url) == told
    check_sessions(url, told)
    assert await figure(other.url, "presence_export_running") == 1
    assert await figure(other.url, "presence_export_changes_total") > 0
    assert PASSWORD not in "".join(node.log for node in nodes)


async def test_two_that_both_believe_it_is_their_turn_export_once(site: Site, shared_postgres: PostgresServer) -> None:
    """A process that is stopped for longer than its lease and then goes on, in the middle of what it did."""
    url = shared_postgres.make_database()
    variables = site.variables | {"EXPORT_DATABASE_URL": url}
    async with export_process(**variables) as first:
        start = await begun(url)
        async with export_process(**variables):
            for _ in range(3):
                load = asyncio.create_task(site.come_and_go(300))
                await asyncio.sleep(0.1)
                first.send_signal(signal.SIGSTOP)
                await load
                await asyncio.sleep(1.5)
                first.send_signal(signal.SIGCONT)
                await site.come_and_go(20)
            told = await site.told(start)
            await eventually(lambda: len(exported(url)) >= len(told), within=3 * STEP)
            await asyncio.sleep(0.5)
    assert exported(url) == told
    check_sessions(url, told)


async def test_a_redis_that_lost_its_data_is_a_gap_and_whoever_stayed_has_one_session(
    shared_postgres: PostgresServer, spawn: Spawn, closing: AsyncExitStack
) -> None:
    url = shared_postgres.make_database()
    redis = await closing.enter_async_context(redis_server())
    variables = {"REDIS_URL": redis.url, "NODE_LEASE": "1", "EXPORT_DATABASE_URL": url}
    node = await spawn(**variables)
    await begun(url)
    await beat(node.url, "stays")
    await eventually(lambda: len(exported(url)) == 1)
    await redis.cli("FLUSHALL")
    await beat(node.url, "comes")
    await eventually(lambda: query(url, "SELECT 1 FROM presence_gaps"), within=4 * STEP)
    await eventually(lambda: len(exported(url)) == 2)
    assert query(url, "SELECT user_id, ended_at FROM presence_sessions ORDER BY id") == [
        ("stays", None),
        ("comes", None),
    ]


async def test_without_its_database_presence_is_as_ever_and_the_export_comes_later(
    spawn: Spawn, redis_url: str
) -> None:
    with postgres_server() as server:
        url = server.make_database()
        server.stop()
        variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "EXPORT_DATABASE_URL": url}
        node = await spawn(**variables)
        await node.logged("presence cannot be exported to its database")
        await beat(node.url, "ann")
        async with aiohttp.ClientSession() as session, session.get(f"{node.url}/health/ready") as response:
            assert response.status == 200
        assert await figure(node.url, "presence_export_errors_total") > 0
        assert await figure(node.url, "presence_export_lag_seconds") > 0
        server.start()
        await eventually(lambda: len(exported(url)) == 1, within=4 * STEP)
        server.stop()
        await beat(node.url, "bob")
        server.start()
        await eventually(lambda: len(exported(url)) == 2, within=4 * STEP)
        assert PASSWORD not in node.log
        assert await node.stop() == 0


async def test_a_gateway_by_itself_exports_to_a_file(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "presence.db"
    running = await serve(export_database_url=f"sqlite:///{path}")
    await running.gateway.presence.heartbeat("ann")
    with sqlite3.connect(path) as connection:

        def found() -> list[Any]:
            try:
                return connection.execute("SELECT user_id, status FROM presence_transitions").fetchall()
            except sqlite3.OperationalError:  # no table yet
                return []

        assert await eventually(found) == [("ann", "online")]
    connection.close()
    assert await figure(running.url, "presence_export_running") == 1


async def test_a_gateway_that_exports_nothing_has_no_figures_of_it(serve: Serve) -> None:
    running = await serve()
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as response:
        assert "presence_export" not in await response.text()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"REDIS_URL": "redis://127.0.0.1:1/0"},
            "EXPORT_DATABASE_URL is not set, where presence is exported to: postgresql://",
        ),
        ({"EXPORT_DATABASE_URL": "sqlite:///presence.db"}, "REDIS_URL is not set"),
        ({"EXPORT_DATABASE_URL": "mysql://u:hunter2@db/presence"}, "EXPORT_DATABASE_URL: takes postgresql://"),
    ],
)
async def test_the_command_says_what_it_lacks(variables: dict[str, str], message: str) -> None:
    async with export_process(**variables) as process:
        _, said = await asyncio.wait_for(process.communicate(), 2 * STEP)
    assert process.returncode == 2
    assert message in said.decode()
    assert "hunter2" not in said.decode()


async def test_the_command_says_that_it_waits_for_redis(tmp_path: Path) -> None:
    async with redis_server() as server:
        variables = {"REDIS_URL": server.url, "EXPORT_DATABASE_URL": f"sqlite:///{tmp_path}/presence.db"}
        server.stop()
        async with export_process(**variables) as process:
            await says(process, "Redis cannot be reached")
            await server.start()
            await says(process, "Redis is back")


async def says(process: asyncio.subprocess.Process, words: str) -> None:
    """Wait until a process logs it."""
    assert process.stderr is not None
    async with asyncio.timeout(4 * STEP):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line, f"it ended, and did not say: {words}"


async def test_the_command_ends_well_when_it_is_asked_to(site: Site, shared_postgres: PostgresServer) -> None:
    url = shared_postgres.make_database()
    async with export_process(**site.variables, EXPORT_DATABASE_URL=url) as process:
        await begun(url)
        process.terminate()
        _, said = await asyncio.wait_for(process.communicate(), 2 * STEP)
    assert process.returncode == 0
    assert "stopped" in said.decode()
    assert PASSWORD not in said.decode()
    assert "Traceback" not in said.decode()


async def beat(url: str, user: str) -> None:
    headers = {"X-API-Key": SERVICE_KEY}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/presence/online", json={"userId": user}) as response,
    ):
        assert response.status == 200, await response.text()


async def figure(url: str, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        found = re.search(rf"^{name} (\S+)$", await response.text(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])
