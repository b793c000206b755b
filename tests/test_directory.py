"""Where other nodes find sessions: as they are as soon as that is known to anybody, whatever becomes of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from chaos.proxy import Proxy
from conftest import STEP, eventually
from redis_servers import RedisServer, fresh_prefix, redis_server

from gateway.errors import StoreUnavailableError
from gateway.recovery.sessions import NoDirectory, RoomName, Session
from gateway.redis.commands import Commands
from gateway.redis.connection import Client, connect
from gateway.redis.directory import _WRITE, RedisDirectory
from gateway.redis.keys import base_of
from gateway.runtime.tasks import end

OWNER = ("acme", "alice")
NEAR, FAR = "aaaaaaaa", "ffffffff"
SLOW = 0.05
"""Seconds that a far node's commands, and Redis's answers, take."""


def session(pid: str, *rooms: RoomName) -> Session:
    return Session(pid, "/", OWNER, f"sid of {pid}", rooms=list(rooms))


class Pair:
    """The directories of two nodes, of which one has a proxy before Redis."""

    def __init__(self, client: Client, far_client: Client, proxy: Proxy) -> None:
        self.commands = Commands(client)
        self.proxy = proxy
        prefix = fresh_prefix()
        self.key = f"{base_of(prefix)}sessions:{FAR}"
        self.near = RedisDirectory(client, prefix, NEAR, 60, Session)
        self.far = RedisDirectory(far_client, prefix, FAR, 60, Session)

    async def found(self, pid: str) -> list[RoomName] | None:
        """The rooms of the far node's session as the near one takes it; None for no session."""
        taken = await self.near.take(FAR, pid, OWNER)
        return None if taken is None else taken.rooms

    async def settle(self, pid: str) -> None:
        async with asyncio.timeout(STEP):
            if (waiting := self.far.settling(pid)) is not None:
                await waiting


@asynccontextmanager
async def pair_at(server: RedisServer) -> AsyncIterator[Pair]:
    async with Proxy.start(server.port) as proxy, AsyncExitStack() as closing:
        client, far_client = connect(server.url, timeout=STEP), connect(proxy.url, timeout=STEP)
        pair = Pair(client, far_client, proxy)
        for each in (client, far_client):
            closing.push_async_callback(each.aclose)
        closing.push_async_callback(pair.commands.close)
        for directory in (pair.near, pair.far):
            closing.push_async_callback(directory.close)
            closing.push_async_callback(end, [asyncio.create_task(directory.run())])
        yield pair


@pytest.fixture
async def pair(shared_redis: RedisServer) -> AsyncIterator[Pair]:
    async with pair_at(shared_redis) as made:
        yield made


async def test_when_it_has_settled_a_session_is_found_as_it_is_now(pair: Pair) -> None:
    pair.far.put(session("pid"))
    await pair.settle("pid")
    assert pair.far.settling("pid") is None
    pair.proxy.slow(SLOW)
    pair.far.put(session("pid", "one"))
    first = pair.far.settling("pid")
    await asyncio.sleep(SLOW / 2)
    pair.far.put(session("pid", "one", "two"))  # while the one before is on its way
    await pair.settle("pid")
    assert first is not None
    await first
    assert await pair.found("pid") == ["one", "two"]
    assert await pair.found("pid") is None, "of several, one has it"


async def test_what_is_on_its_way_is_waited_for(pair: Pair) -> None:
    pair.proxy.slow(SLOW)
    pair.far.put(session("pid", "one"))
    await asyncio.sleep(SLOW / 2)
    await pair.settle("pid")
    assert await pair.found("pid") == ["one"]


async def test_when_it_has_settled_a_session_that_was_dropped_is_not_found(pair: Pair) -> None:
    pair.far.put(session("pid"))
    await pair.settle("pid")
    pair.proxy.slow(SLOW)
    pair.far.drop("pid")
    await pair.settle("pid")
    assert await pair.found("pid") is None
    pair.far.drop("pid")
    assert pair.far.settling("pid") is None


async def test_while_redis_is_away_only_what_it_may_have_is_waited_for(pair: Pair) -> None:
    pair.far.put(session("old"))
    await pair.settle("old")
    await pair.proxy.cut()
    pair.far.put(session("old", "one"))
    with pytest.raises(StoreUnavailableError):
        await pair.settle("old")
    pair.far.put(session("new"))  # of this Redis has nothing, which nobody could take for what it is
    assert pair.far.settling("new") is None
    pair.far.put(session("new", "one"))
    with pytest.raises(StoreUnavailableError):  # it was tried once more, and not with the new one
        await pair.settle("old")
    assert pair.far.settling("new") is None
    await pair.proxy.listen()
    await eventually(lambda: not pair.far._changed and not pair.far._writing)
    assert (await pair.found("old"), await pair.found("new")) == (["one"], ["one"])
    pair.far.put(session("new", "two"))
    await pair.settle("new")
    assert await pair.found("new") == ["two"]


async def test_a_change_that_comes_late_undoes_none_that_came_after_it(pair: Pair) -> None:
    pair.far.put(session("left", "one"))
    pair.far.put(session("gone"))
    await pair.settle("gone")
    pair.far.put(session("left"))
    pair.far.drop("gone")
    await pair.settle("gone")
    late = [1, 60_000, 0, "left", b'{"left": "as it was"}', "gone", b'{"gone": "as it was"}']
    call = pair.commands.start(_WRITE, [pair.key, f"{pair.key}:number"], late)
    await pair.commands.answer(call)
    assert (await pair.found("left"), await pair.found("gone")) == ([], None)


async def test_what_redis_has_lost_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.redis.directory.KEEP", 0.1)
    async with redis_server() as server, pair_at(server) as pair:
        for pid in ("one", "two"):
            pair.far.put(session(pid, f"of {pid}"))
        await pair.settle("two")
        await pair.commands.send("FLUSHALL")
        pair.far.put(session("two", "another"))
        number = pair.far._number
        await eventually(lambda: pair.far._number > number + 1)
        assert (await pair.found("one"), await pair.found("two")) == (["of one"], ["another"])


async def test_a_node_that_is_alone_waits_for_nobody() -> None:
    assert NoDirectory().settling("pid") is None
