"""The bus: every message reaches every other node, once, in order; what a node missed, it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from chaos.proxy import Proxy
from conftest import STEP, eventually
from redis_servers import RedisServer, fresh_prefix, redis_sentinel, redis_server
from structlog.testing import capture_logs

from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.nodes.bus import LocalBus, Message, written
from gateway.redis import bus as bus_module
from gateway.redis.bus import RedisBus
from gateway.redis.commands import Commands
from gateway.redis.connection import connect
from gateway.redis.stream import to_id
from gateway.runtime.tasks import end
from gateway.runtime.traces import Trace


class Node:
    """A bus that runs, and what it has heard."""

    def __init__(self, bus: RedisBus) -> None:
        self.bus = bus
        self.heard: list[Any] = []
        bus.subscribe("topic", object, self.hear)
        self.running: asyncio.Task[None] | None = None

    async def hear(self, data: Any) -> None:
        self.heard.append(data)

    def run(self) -> None:
        self.running = asyncio.create_task(self.bus.run())

    async def stop(self) -> None:
        if self.running is not None:
            await end([self.running])
        await self.bus.close()

    async def hears(self, count: int) -> list[Any]:
        await eventually(lambda: len(self.heard) >= count)
        return self.heard

    def say(self, *data: Any) -> None:
        for each in data:
            self.bus.publish("topic", each)


Join = Callable[..., Node]


@pytest.fixture
async def join(redis_url: str) -> AsyncIterator[Join]:
    """Make nodes of one gateway; `started` ones hear from then on."""
    async with AsyncExitStack() as stack:
        prefix = fresh_prefix()
        names = iter("abcdefgh")

        def make(url: str = redis_url, *, runs: bool = True) -> Node:
            client = connect(url, timeout=1.5)
            node = Node(RedisBus(client, prefix, next(names)))
            stack.push_async_callback(client.aclose)
            stack.push_async_callback(node.stop)
            if runs:
                node.run()
            return node

        yield make


async def started(*nodes: Node) -> None:
    async with asyncio.timeout(STEP):
        for node in nodes:
            await node.bus.started()


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def proxy(shared_redis: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy.start(shared_redis.port) as proxy:
        yield proxy


# What arrives


async def test_every_other_node_hears_in_order_and_the_sender_does_not(join: Join) -> None:
    nodes = a, b, c = join(), join(), join()
    await started(*nodes)
    said = [{"n": n, "text": "é" * n, "list": [n, None]} for n in range(250)]
    a.say(*said)
    for hearer in (b, c):
        assert await hearer.hears(250) == said
    b.say("from b")
    await eventually(lambda: a.heard)
    assert a.heard == ["from b"]


async def test_two_prefixes_are_two_buses(join: Join, redis_url: str) -> None:
    a, b = join(), join()
    client = connect(redis_url, timeout=STEP)
    stranger = Node(RedisBus(client, fresh_prefix(), "a"))
    stranger.run()
    await started(a, b, stranger)
    stranger.say("elsewhere")
    await stranger.bus.flush(STEP)
    a.say("here")
    await eventually(lambda: b.heard)
    assert (b.heard, stranger.heard) == (["here"], [])
    await stranger.stop()
    await client.aclose()


async def test_what_was_said_before_a_node_started_is_not_for_it(join: Join) -> None:
    a = join()
    a.say("early")
    await a.bus.flush(STEP)
    b = join(runs=False)
    await b.bus.start()
    a.say("after it started, before it runs")
    await a.bus.flush(STEP)
    b.run()
    await eventually(lambda: b.heard)
    assert b.heard == ["after it started, before it runs"]


async def test_who_hears_nothing_reads_nothing(join: Join, redis_url: str) -> None:
    client = connect(redis_url, timeout=STEP)
    bus = RedisBus(client, fresh_prefix(), "client")
    running = asyncio.create_task(bus.run())
    bus.publish("topic", 1)
    await bus.flush(STEP)
    assert not bus._started.is_set()
    await end([running])
    await bus.close()
    await client.aclose()


async def test_a_message_is_handled_before_the_next_one_is(join: Join) -> None:
    a, b = join(), join(runs=False)
    said: list[str] = []

    async def slowly(data: int) -> None:
        said.append(f"{data} begins")
        await asyncio.sleep(0.01)
        said.append(f"{data} ends")

    b.bus.subscribe("topic", int, slowly)
    b.run()
    await started(b)
    a.say(1, 2)
    await eventually(lambda: len(said) == 4)
    assert said == ["1 begins", "1 ends", "2 begins", "2 ends"]


async def test_what_cannot_be_handled_costs_only_itself(join: Join, shared_redis: RedisServer) -> None:
    a, b = join(), join(runs=False)

    async def handler(data: int) -> None:
        if data == 2:
            raise LookupError("two")
        b.heard.append(data)

    b.bus.subscribe("topic", int, handler)
    b.run()
    await started(b)
    with capture_logs() as logs:
        a.say(1, "no number", 2)
        a.bus.publish("unknown topic", 3)
        await a.bus.flush(STEP)
        for body in ("", "[", '["x"]', "[1,2,3]", "\xff", '["a stranger","topic",4]'):
            await append(shared_redis, a.bus, body)
        a.say(5)
        await eventually(lambda: b.heard == [1, 4, 5])
    failures = [line["event"] for line in logs if line["log_level"] == "error"]
    assert failures.count("a message could not be handled") == 2
    assert failures.count("a message on the bus is none") == 2 * 5  # both nodes read them


async def append(server: RedisServer, bus: RedisBus, body: str, *, entry_id: str = "*") -> None:
    """Put an entry on the stream as the script does, whatever is in it."""
    last = await server.cli("GET", bus._position_key) or "0-0"
    position = await server.cli("XADD", bus._base, entry_id, "prev", last, "body", body)
    await server.cli("SET", bus._position_key, position)


# What may go wrong on the way


async def test_an_answer_that_was_lost_brings_nothing_twice(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = join(), join()
    await started(a, b)
    answer, lost = Commands.answer, 0

    async def lossy(self: Commands, call: Any) -> Any:
        nonlocal lost
        result = await answer(self, call)
        if self is a.bus._commands and call.script is not None and lost < 3:
            lost += 1
            a.say(f"while the answer was lost {lost}")
            raise StoreUnavailableError("lost")
        return result

    monkeypatch.setattr(Commands, "answer", lossy)
    monkeypatch.setattr(bus_module, "RETRY", 0.01)
    a.say(*range(150))
    await a.bus.flush(STEP)
    await eventually(lambda: len(b.heard) >= 153)
    a.say("end")
    await eventually(lambda: b.heard[-1] == "end")
    assert b.heard == [*range(150), *(f"while the answer was lost {n}" for n in (1, 2, 3)), "end"]


async def test_what_is_said_while_the_sender_is_cut_off_arrives_later(join: Join, proxy: Proxy) -> None:
    a, b = join(proxy.url), join()
    await started(a, b)
    a.say("before")
    await a.bus.flush(STEP)
    await proxy.cut()
    a.say(*range(300))
    await asyncio.sleep(0.4)
    assert b.heard == ["before"]
    await proxy.listen()
    await eventually(lambda: len(b.heard) == 301)
    assert b.heard == ["before", *range(300)]
    assert (a.bus.gaps, b.bus.gaps) == (0, 0)


async def test_what_is_said_while_the_hearer_is_cut_off_arrives_later(join: Join, proxy: Proxy) -> None:
    a, b = join(), join(proxy.url)
    await started(a, b)
    await proxy.cut()
    a.say(*range(2500))
    await a.bus.flush(STEP)
    await proxy.listen()
    await eventually(lambda: len(b.heard) == 2500)
    assert b.heard == [*range(2500)]
    assert b.bus.gaps == 0


async def test_what_arrives_very_late_and_again_is_not_there_twice(join: Join, proxy: Proxy) -> None:
    a, b = join(proxy.url), join()
    await started(a, b)
    proxy.swallow()
    a.say(1, 2, 3)
    await asyncio.sleep(bus_module.RETRY + 2)  # it has given up at least one attempt, which the proxy holds
    proxy.flow()
    await a.bus.flush(STEP)
    a.say(4)
    await eventually(lambda: 4 in b.heard)
    assert b.heard == [1, 2, 3, 4]


async def test_a_node_that_was_away_for_longer_than_the_bus_is_is_told_so(
    join: Join, proxy: Proxy, shared_redis: RedisServer
) -> None:
    a, b = join(), join(proxy.url)
    await started(a, b)
    await proxy.cut()
    a.say(*range(10))
    await a.bus.flush(STEP)
    await shared_redis.cli("XTRIM", a.bus._base, "MAXLEN", 3)
    with capture_logs() as logs:
        await proxy.listen()
        await eventually(lambda: b.heard == [7, 8, 9])
    assert b.bus.gaps == 1
    assert [line["event"][:33] for line in logs if "missed" in line["event"]] == ["messages of other nodes may have "]
    a.say(10)
    await eventually(lambda: b.heard == [7, 8, 9, 10])
    assert b.bus.gaps == 1


async def test_redis_keeps_about_so_many_messages(
    join: Join, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = join()
    await started(a)
    for _ in range(3):
        a.say(*range(5000))
        await a.bus.flush(STEP)
    assert bus_module.LENGTH <= await shared_redis.cli("XLEN", a.bus._base) < bus_module.LENGTH + 200


async def test_an_emptied_redis_is_a_gap_and_the_bus_goes_on(join: Join, server: RedisServer) -> None:
    a, b = join(server.url), join(server.url)
    await started(a, b)
    a.say(1)
    await eventually(lambda: b.heard == [1])
    await server.kill()
    a.say(2)  # waits here, and so is not lost
    await server.start()
    await eventually(lambda: b.heard == [1, 2])
    assert (a.bus.gaps, b.bus.gaps) == (1, 1)
    a.say(3)
    b.say(4)
    await eventually(lambda: (a.heard, b.heard) == ([4], [1, 2, 3]))
    assert (a.bus.gaps, b.bus.gaps) == (1, 1)


async def test_a_bus_that_began_again_behind_is_found_out(join: Join, server: RedisServer) -> None:
    a, b = join(server.url), join(server.url)
    await started(a, b)
    future = f"{round((time.time() + 3600) * 1000)}-0"
    await append(server, a.bus, '["ahead","topic","from a clock that is ahead"]', entry_id=future)
    await eventually(lambda: b.heard and a.heard)
    await server.cli("FLUSHALL")
    await eventually(lambda: a.bus.gaps == 1 and b.bus.gaps == 1, within=bus_module.WATCH + STEP)
    a.say("goes on")
    await eventually(lambda: "goes on" in b.heard)
    assert (a.bus.gaps, b.bus.gaps) == (1, 1)


async def test_it_goes_on_after_a_failover(join: Join) -> None:
    async with redis_sentinel() as servers:
        a, b = join(servers.url), join(servers.url)
        await started(a, b)
        managers: list[Any] = [node.bus._commands._client.connection_pool.sentinel_manager for node in (a, b)]  # type: ignore[union-attr]
        sentinels = [sentinel for manager in managers for sentinel in manager.sentinels]
        a.say("before")
        await b.hears(1)
        deadline = time.monotonic() + STEP
        while await servers.replica.cli("GET", a.bus._position_key) != to_id(b.bus._heard or 0):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await servers.kill_master()
        a.say(*range(200))
        await servers.wait_for_new_master()
        await eventually(lambda: len(b.heard) == 201, within=2 * STEP)
        b.say("back")
        await a.hears(1)
        assert (a.heard, b.heard) == (["back"], ["before", *range(200)])
        assert (a.bus.gaps, b.bus.gaps) == (0, 0)
        for node in (a, b):
            await node.stop()
        for sentinel in sentinels:  # where redis-py is asked twice at once, it may forget one of them
            await sentinel.aclose()


async def test_a_redis_that_refuses_is_asked_again(
    join: Join, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "RETRY_REFUSED", 0.05)
    a, b = join(), join()
    await started(a, b)
    await shared_redis.cli("SET", a.bus._base, "no stream")
    with capture_logs() as logs:
        a.say(1)
        await eventually(lambda: {"messages could not be published; trying again"} <= {line["event"] for line in logs})
    await shared_redis.cli("DEL", a.bus._base)
    await eventually(lambda: b.heard == [1])


# What waits


async def test_what_waits_is_bounded_in_number_and_the_loss_is_told(
    join: Join, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "LENGTH", 200)
    a, b = join(proxy.url), join()
    await started(a, b)
    await proxy.cut()
    with capture_logs() as logs:
        a.say(*range(250))
        assert len(a.bus._outbox) == 200
        await proxy.listen()
        await a.bus.flush(STEP)
        a.say("after")
        await eventually(lambda: "after" in b.heard)
    assert b.heard == [*range(200), "after"]
    assert a.bus.gaps == 1
    assert [line.get("messages") for line in logs if "dropped" in line["event"]] == [None, 50]


async def test_what_waits_is_bounded_in_bytes(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "SIZE", 10_000)
    a, b = join(runs=False), join()
    await started(b)
    a.say(*("x" * 3000 for _ in range(5)))
    assert (len(a.bus._outbox), a.bus.gaps) == (3, 1)
    a.run()
    await a.bus.flush(STEP)
    assert a.bus._size == 0
    a.say("after")
    await eventually(lambda: len(b.heard) == 4)


async def test_large_messages_go_a_few_at_a_time(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = join(), join()
    await started(a, b)
    append, counts = a.bus._append, []

    async def counted(messages: Sequence[bytes]) -> None:
        counts.append(len(messages))
        await append(messages)

    monkeypatch.setattr(a.bus, "_append", counted)
    said = [str(n) + "x" * size for n, size in enumerate([400_000] * 5 + [1_000_000, 400_000, 1, 1])]
    a.say(*said)
    assert await b.hears(len(said)) == said
    assert counts == [2, 2, 1, 1, 3]


def test_a_message_that_is_too_large_is_refused(join: Join) -> None:
    a = join(runs=False)
    with pytest.raises(InvalidPayloadError, match="1048576"):
        a.say("x" * bus_module.LARGEST)
    with pytest.raises(TypeError):
        a.say(object())
    assert not a.bus._outbox


async def test_flush_waits_for_what_was_said_before_it_and_no_longer(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = join(), join()
    await started(a, b)
    append = a.bus._append

    async def talkative(messages: Sequence[bytes]) -> None:
        await append(messages)
        a.say("one more")  # so that there is always something to send

    monkeypatch.setattr(a.bus, "_append", talkative)
    a.say(*range(250))
    async with asyncio.timeout(STEP):
        await a.bus.flush(2 * STEP)
    assert a.bus._outbox
    assert [data for data in await b.hears(252) if data != "one more"] == [*range(250)]


async def test_flush_gives_up_and_says_so(join: Join, proxy: Proxy) -> None:
    a = join(proxy.url)
    await started(a)
    await a.bus.flush(STEP)  # with nothing to wait for
    await proxy.cut()
    a.say(1, 2)
    with capture_logs() as logs:
        await a.bus.flush(0.05)
    assert [line["waiting"] for line in logs if "not left" in line["event"]] == [2]


async def test_of_all_who_claim_a_name_one_has_it(join: Join) -> None:
    nodes = [join() for _ in range(3)]
    claims = await asyncio.gather(*(node.bus.claim("x") for node in nodes))
    assert sorted(claims) == [False, False, True]
    assert await nodes[claims.index(True)].bus.claim("x")  # as it asks again, the answer being lost
    assert await nodes[claims.index(False)].bus.claim("y")


async def test_alone_there_is_nobody_to_tell() -> None:
    bus = LocalBus()
    await bus.start()
    await bus.started()
    await bus.run()
    bus.publish("topic", 1)
    await bus.flush(0)
    assert await bus.claim("x")
    assert bus.gaps == 0
    await bus.close()


# Other versions


class Before(msgspec.Struct, frozen=True, array_like=True):
    """A message, as versions have it that know of no traces."""

    sender: str
    topic: str
    data: msgspec.Raw
    number: int = 0


def test_what_is_part_of_a_trace_is_read_by_versions_that_know_of_none_and_what_is_not_is_written_as_by_them() -> None:
    trace = Trace("00-a-b-01", "us=1")
    traced = written("n1", "said", b'{"a":1}', 7, trace)
    before = Before("n1", "said", msgspec.Raw(b'{"a":1}'), 7)
    assert msgspec.json.decode(traced, type=Before) == before
    assert msgspec.json.decode(traced, type=Message).trace == trace
    assert written("n1", "said", b'{"a":1}', 7) == msgspec.json.encode(before)
    assert msgspec.json.decode(msgspec.json.encode(before), type=Message).trace is None
