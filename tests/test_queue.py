"""What every adapter of the queues' port does, by the port alone; and what is Redis's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from conftest import STEP, TIMING
from redis.asyncio import Redis
from redis.crc import key_slot
from redis_servers import RedisServer, fresh_prefix, redis_cluster, redis_server
from structlog.testing import capture_logs
from test_store_redis import monitored

from gateway.delivery.queue import REMEMBERED, Limits, Queued, Queues, read_item, size_of
from gateway.delivery.queue_memory import MemoryQueues
from gateway.delivery.queue_redis import RedisQueues
from gateway.errors import StoreUnavailableError
from gateway.presence.model import Connection, Ending
from gateway.presence.store_redis import RedisStore
from gateway.redis.connection import connect
from gateway.runtime.traces import Trace

T = 1_000_000
TTL = 60_000
LIMITS = Limits(size=3, bytes=1000, ttl=TTL, largest=500)
ALICE = ("acme", "alice")
MakeQueues = Callable[..., Awaitable[Queues]]


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[MakeQueues]:
    async with AsyncExitStack() as stack:

        async def make(limits: Limits = LIMITS) -> Queues:
            if request.param == "memory":
                return MemoryQueues(limits)
            client = connect(redis_url, timeout=STEP)
            stack.push_async_callback(client.aclose)
            queues = RedisQueues(client, fresh_prefix(), limits)
            stack.push_async_callback(queues.close)
            return queues

        yield make


def item(name: str, data: bytes = b"{}") -> Queued:
    return Queued(name, "notification", msgspec.Raw(data))


async def ids(queues: Queues, user: tuple[str, str] = ALICE, now: int = T) -> list[str]:
    return [each.id for each in (await queues.read(*user, now)).items]


async def test_what_is_put_is_read_in_order_and_as_it_was(make: MakeQueues) -> None:
    queues = await make()
    items = [
        item("b", b'{"a":["\\u0000\xc3\xa4"]}'),
        item("a", b"null"),
        Queued("c", "or der", msgspec.Raw(b'" 5 "')),
    ]
    for each in items:
        put = await queues.put(*ALICE, each, T)
        assert (put.queued, put.dropped, put.expired) == (True, 0, 0)
    found = (await queues.read(*ALICE, T)).items
    assert [(each.id, each.event, bytes(each.data)) for each in found] == [
        (each.id, each.event, bytes(each.data)) for each in items
    ]
    assert await ids(queues) == ["b", "a", "c"], "reading takes nothing out"
    assert await queues.depth() == 3


async def test_what_cannot_be_read_is_put_aside_and_the_others_are_read(make: MakeQueues) -> None:
    queues = await make()
    for each in (item("a"), item("w-b", b'{"half'), item("c")):
        await queues.put(*ALICE, each, T)
    with capture_logs() as logs:
        assert await ids(queues) == ["a", "c"]
    [logged] = [each for each in logs if each["log_level"] == "error"]
    assert (logged["user"], logged["tenant"], logged["count"]) == ("alice", "acme", 1)
    assert queues.unreadable == 1
    assert await queues.depth() == 2
    assert not await queues.was_acknowledged("w-b")
    assert await ids(queues) == ["a", "c"]
    assert queues.unreadable == 1, "once"
    assert await queues.acknowledge(*ALICE, ["a", "w-b", "c"], T) == ["a", "c"]
    await queues.put(*ALICE, item("d", b"half"), T)
    assert await ids(queues) == []
    assert (await queues.depth(), queues.waits(*ALICE)) == (0, False)


async def test_each_user_of_each_tenant_has_their_own(make: MakeQueues) -> None:
    queues = await make()
    users = [("acme", "alice"), ("acme", "bob"), ("red", "alice")]
    for number, user in enumerate(users):
        await queues.put(*user, item(str(number)), T)
    assert [await ids(queues, user) for user in users] == [["0"], ["1"], ["2"]]
    assert await queues.acknowledge("red", "alice", ["0"], T) == [], "it is another's"
    assert await ids(queues) == ["0"]
    assert await ids(queues, ("acme", "nobody")) == []


async def test_what_is_acknowledged_is_gone_whatever_its_place(make: MakeQueues) -> None:
    queues = await make()
    for name in ("a", "b", "c"):
        await queues.put(*ALICE, item(name), T)
    assert await queues.acknowledge(*ALICE, ["b", "x"], T) == ["b"]
    assert await queues.acknowledge(*ALICE, ["b"], T) == []
    assert (await ids(queues), await queues.depth()) == (["a", "c"], 2)
    await queues.put(*ALICE, item("d"), T)
    assert await ids(queues) == ["a", "c", "d"]
    assert await queues.acknowledge(*ALICE, ["d", "a", "c"], T) == ["d", "a", "c"]
    assert (await ids(queues), await queues.depth()) == ([], 0)
    await queues.put(*ALICE, item("e"), T)
    assert await ids(queues) == ["e"]


async def test_what_is_put_again_under_its_id_is_there_once(make: MakeQueues) -> None:
    queues = await make()
    for _ in range(2):
        await queues.put(*ALICE, item("a"), T)
        await queues.put(*ALICE, item("b"), T)
    assert (await ids(queues), await queues.depth()) == (["a", "b"], 2)


async def test_past_its_number_the_oldest_go(make: MakeQueues) -> None:
    queues = await make()
    dropped = [(await queues.put(*ALICE, item(str(n)), T)).dropped for n in range(5)]
    assert dropped == [0, 0, 0, 1, 1]
    assert (await ids(queues), await queues.depth()) == (["2", "3", "4"], 3)


async def test_past_its_bytes_the_oldest_go(make: MakeQueues) -> None:
    queues = await make()
    large = b'"' + b"x" * 400 + b'"'
    assert [(await queues.put(*ALICE, item(name, large), T)).dropped for name in "abc"] == [0, 0, 1]
    assert await ids(queues) == ["b", "c"]
    # What is gone, by whatever way, takes no room.
    await queues.acknowledge(*ALICE, ["b"], T)
    assert (await queues.put(*ALICE, item("d", large), T)).dropped == 0
    whole = b'"' + b"x" * (LIMITS.bytes - size_of(item("e", b'""'))) + b'"'
    assert (await queues.put(*ALICE, item("e", whole), T)).dropped == 2
    assert await ids(queues) == ["e"]


async def test_what_is_over_its_time_is_gone(make: MakeQueues) -> None:
    queues = await make()
    await queues.put(*ALICE, item("a"), T)
    await queues.put(*ALICE, item("b"), T + 10)
    assert await ids(queues, now=T + TTL - 1) == ["a", "b"]
    found = await queues.read(*ALICE, T + TTL)
    assert ([each.id for each in found.items], found.expired) == (["b"], 1)
    assert await queues.depth() == 1
    put = await queues.put(*ALICE, item("c"), T + TTL + 10)
    assert (put.expired, put.dropped) == (1, 0)
    assert (await ids(queues, now=T + TTL + 10), await queues.depth()) == (["c"], 1)


async def test_a_sweep_lets_go_of_what_nobody_asks_for(make: MakeQueues) -> None:
    queues = await make()
    for n, user in enumerate(("alice", "bob", "carol", "alice")):
        await queues.put("acme", user, item(str(n)), T + n)
    await queues.acknowledge("acme", "carol", ["2"], T + 4)
    assert await queues.sweep(T + TTL - 1) == 0
    assert await queues.sweep(T + TTL + 1) == 2
    assert (await queues.depth(), await ids(queues, now=T + TTL + 1)) == (1, ["3"])
    assert await queues.sweep(T + TTL + 1) == 0
    assert await queues.sweep(T + TTL + 3) == 1
    assert await queues.depth() == 0


async def test_an_acknowledgement_that_somebody_waits_for_is_remembered(make: MakeQueues) -> None:
    queues = await make()
    for name in ("w-1", "n-1", "w-2"):
        await queues.put(*ALICE, item(name), T)
    await queues.acknowledge(*ALICE, ["w-1", "n-1"], T)
    assert [await queues.was_acknowledged(name) for name in ("w-1", "n-1", "w-2")] == [True, False, False]


async def test_one_that_was_dropped_or_expired_was_not_acknowledged(make: MakeQueues) -> None:
    queues = await make()
    for n in range(4):
        await queues.put(*ALICE, item(f"w-{n}"), T)
    await queues.sweep(T + TTL)
    assert await queues.acknowledge(*ALICE, ["w-0", "w-1"], T + TTL) == []
    assert not any([await queues.was_acknowledged(f"w-{n}") for n in range(4)])


async def test_the_memory_of_acknowledgements_is_not_for_ever() -> None:
    queues = MemoryQueues(LIMITS)
    await queues.put(*ALICE, item("w-1"), T)
    await queues.acknowledge(*ALICE, ["w-1"], T)
    await queues.acknowledge(*ALICE, ["w-2"], T + REMEMBERED)
    assert not await queues.was_acknowledged("w-1")


async def test_what_waits_is_known_without_a_question_where_that_is_free() -> None:
    queues = MemoryQueues(LIMITS)
    assert not queues.waits(*ALICE)
    await queues.put(*ALICE, item("a"), T)
    assert queues.waits(*ALICE)
    await queues.acknowledge(*ALICE, ["a"], T)
    assert not queues.waits(*ALICE)
    assert (queues._queues, len(queues._due)) == ({}, 1)
    for n in range(100):  # come and gone: there is one time to look for each user
        await queues.put(*ALICE, item(str(n)), T)
        await queues.acknowledge(*ALICE, [str(n)], T)
    assert len(queues._due) == 1


# Redis


class Shared:
    """A store and queues of one prefix."""

    def __init__(self, url: str, prefix: str) -> None:
        client = connect(url, timeout=STEP)
        self.prefix = prefix
        self.store = RedisStore(client, prefix, TIMING)
        self.queues = RedisQueues(client, prefix, LIMITS)

    async def close(self) -> None:
        await self.queues.close()
        await self.store.close()


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[Shared]:
    shared = Shared(redis_url, fresh_prefix())
    await shared.store.renew("n1", T)
    yield shared
    await shared.close()


TAB = Connection(tenant="acme", user_id="alice", id="tab", node="n1", door="socketio", connected_at=T)


async def test_counting_a_connection_says_whether_something_waits(shared: Shared) -> None:
    assert (await shared.store.connect(TAB, T)).queued is False
    await shared.queues.put(*ALICE, item("a"), T)
    assert (await shared.store.connect(msgspec.structs.replace(TAB, id="other"), T)).queued is True
    await shared.queues.acknowledge(*ALICE, ["a"], T)
    assert (await shared.store.connect(msgspec.structs.replace(TAB, id="third"), T)).queued is False


async def test_what_is_for_those_who_are_away_is_left_alone_where_the_user_is_connected(shared: Shared) -> None:
    queues = shared.queues
    assert (await queues.put(*ALICE, item("a"), T, node="n2", unless_connected=True)).queued
    await shared.store.connect(TAB, T)
    put = await queues.put(*ALICE, item("b"), T, node="n2", unless_connected=True)
    assert (put.queued, put.nodes) == (False, ("n1",))
    put = await queues.put(*ALICE, item("c"), T, node="n2")
    assert (put.queued, put.nodes) == (True, ("n1",))
    # The node of the connection knows it better: that it is about to end, say.
    put = await queues.put(*ALICE, item("d"), T, node="n1", unless_connected=True)
    assert (put.queued, put.nodes) == (True, ())
    await shared.store.disconnect(TAB, Ending.LOST, T)
    assert (await queues.put(*ALICE, item("e"), T, node="n2", unless_connected=True)).queued, "though a grace runs"
    assert await ids(queues) == ["c", "d", "e"]


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize(
    "body", [None, "", "no item", "x y {}", f'{T + TTL} 5 {{"id":"a"}}', f'{T + TTL} 5 {{"id":5,"event":"e","data":1}}']
)
async def test_whatever_somebody_else_wrote_into_a_queue_it_goes_on(
    shared: Shared, redis_url: str, place: str, body: str | None
) -> None:
    queues = shared.queues
    await queues.put(*ALICE, item("a" if place == "first" else "z"), T)
    await queues.put(*ALICE, item("z" if place == "first" else "a"), T)
    [bodies] = await commanded(redis_url, "KEYS", f"*{shared.prefix}*alice*bodies")
    if body is None:
        await commanded(redis_url, "HDEL", bodies, "a")
    else:
        await commanded(redis_url, "HSET", bodies, "a", body)
    await queues.put("acme", "bob", item("b"), T)
    assert await queues.sweep(T + 1) == 0
    await queues.put(*ALICE, item("c"), T + 1)
    assert await ids(queues) == ["z", "c"]
    assert await queues.acknowledge(*ALICE, ["z"], T + 1) == ["z"]
    assert (await ids(queues), await queues.depth()) == (["c"], 2)
    assert queues.unreadable == 1
    [(_place, aside)] = await commanded(redis_url, "XRANGE", f"{{{shared.prefix}}}:queues:unreadable", "-", "+")
    assert aside == {b"user": b"acme\x1falice", b"id": b"a", b"body": (body or "").encode()}
    assert await queues.sweep(T + 2 * TTL) == 2
    assert await queues.depth() == 0


async def commanded(url: str, *command: str) -> Any:
    client = Redis.from_url(url, protocol=2)
    async with client:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def a_life(shared: Shared) -> None:
    await shared.store.renew("n1", T)
    for n in range(5):
        await shared.queues.put(*ALICE, item(f"w-{n}"), T + n, node="n2", unless_connected=True)
    await shared.store.connect(TAB, T)
    await shared.queues.put(*ALICE, item("x"), T, unless_connected=True)
    assert await ids(shared.queues) == ["w-2", "w-3", "w-4"]
    await shared.queues.acknowledge(*ALICE, ["w-2"], T)
    assert await shared.queues.was_acknowledged("w-2")
    await shared.queues.put("{a}", "b}", item("b"), T)
    assert await shared.queues.depth() == 3
    assert await shared.queues.sweep(T + TTL + 3) == 2
    assert await shared.queues.depth() == 1


async def test_scripts_touch_only_keys_that_they_are_given_and_all_have_one_slot() -> None:
    async with redis_server() as server:
        shared = Shared(server.url, "gateway")
        try:
            async with monitored(server) as seen:
                await a_life(shared)
        finally:
            await shared.close()
        keys = await server.cli("KEYS", "*")
    declared: set[str] = set()
    touched: set[str] = set()
    for name, *words in seen:
        if name in {"EVAL", "EVALSHA"}:
            declared = set(words[2 : 2 + int(words[1])])
        elif name == "lua" and words[0] != "TIME":
            assert words[1] in declared, words
            touched.add(words[1].split(":")[1])
    assert {"queue", "queues", "acknowledged", "user"} <= touched
    assert {key_slot(key.encode()) for key in keys} == {key_slot(b"gateway")}


async def test_nothing_is_left_of_what_is_gone(server: RedisServer) -> None:
    shared = Shared(server.url, "gateway")
    try:
        for name in ("a", "b"):
            await shared.queues.put(*ALICE, item(name), T)
            await shared.queues.put("acme", "bob", item(name), T)
        await shared.queues.acknowledge(*ALICE, ["a", "b"], T)
        await shared.queues.sweep(T + TTL)
        assert await server.cli("KEYS", "*") == ["{gateway}:queues:depths"]
        assert await server.cli("HGETALL", "{gateway}:queues:depths") == {"": "0"}
    finally:
        await shared.close()


async def test_on_a_cluster() -> None:
    async with redis_cluster() as cluster:
        shared = Shared(cluster.url, "gateway")
        try:
            await a_life(shared)
        finally:
            await shared.close()


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


async def test_without_redis_the_caller_is_told(server: RedisServer) -> None:
    shared = Shared(server.url, "gateway")
    try:
        await shared.queues.put(*ALICE, item("a"), T)
        await server.kill()
        with pytest.raises(StoreUnavailableError):
            await shared.queues.put(*ALICE, item("b"), T)
        with pytest.raises(StoreUnavailableError):
            await shared.queues.read(*ALICE, T)
        with pytest.raises(StoreUnavailableError):
            await shared.queues.sweep(T)
    finally:
        await shared.close()


def test_an_item_of_no_trace_is_written_as_before_and_one_of_a_trace_is_read() -> None:
    assert msgspec.json.encode(item("a")) == b'{"id":"a","event":"notification","data":{}}'
    traced = msgspec.structs.replace(item("a"), trace=Trace("00-a-b-01", "us=1"))
    assert read_item(msgspec.json.encode(traced)) == traced
