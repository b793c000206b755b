"""The log of channels: said once, heard once, in one order by all; and what is kept of it. For every adapter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from chaos.proxy import Proxy
from conftest import STEP, eventually
from redis_servers import RedisServer, fresh_prefix

from gateway.channels import log_redis
from gateway.channels.log import ChannelLog, Kept
from gateway.channels.log_memory import MemoryChannelLog
from gateway.channels.log_redis import RedisChannelLog
from gateway.channels.model import Draft, Said
from gateway.errors import InvalidPayloadError, RateLimitedError, StoreUnavailableError
from gateway.nodes.bus import LocalBus
from gateway.redis.bus import RedisBus
from gateway.redis.commands import Call, Commands
from gateway.redis.connection import connect
from gateway.runtime.tasks import end

KEPT = Kept(events=5, ttl=60_000)


def now() -> int:
    """The time: Redis gives positions by its own."""
    return time.time_ns() // 1_000_000


def draft(data: Any = None, channel: str = "room-1", **fields: Any) -> Draft:
    text = msgspec.Raw(msgspec.json.encode(data))
    return Draft(**({"tenant": "acme", "channel": channel, "event": "message", "data": text} | fields))


def what(said: Sequence[Said]) -> list[Any]:
    return [msgspec.json.decode(each.data) for each in said]


class Node:
    """A log, what is heard of it, and what it runs on."""

    def __init__(self, log: ChannelLog) -> None:
        self.log = log
        self.heard: list[Said] = []
        self.fails = False
        log.hear = self.hear

    def hear(self, said: Said, _own: bool) -> None:  # noqa: FBT001 - the port's
        self.heard.append(said)
        if self.fails:
            raise RuntimeError("a listener's mistake")

    async def hears(self, count: int) -> list[Said]:
        await eventually(lambda: len(self.heard) >= count)
        return self.heard

    async def say(self, *data: Any, channel: str = "room-1", **fields: Any) -> list[Said]:
        return [(await self.log.say([draft(each, channel, **fields)], now()))[0] for each in data]

    async def history(
        self, after: int | None = 0, *, channel: str = "room-1", limit: int = 100, at: int | None = None
    ) -> tuple[list[Any], bool]:
        found = await self.log.history("acme", channel, now() if at is None else at, after=after, limit=limit)
        return what(found.events), found.recovered


Join = Callable[..., Awaitable[Node]]


@pytest.fixture
async def redis_nodes(redis_url: str) -> AsyncIterator[Join]:
    """Make nodes that share a log in Redis, and hear from then on."""
    async with AsyncExitStack() as stack:
        prefix, names = fresh_prefix(), iter("abcdefgh")

        async def make(kept: Kept = KEPT, *, url: str = redis_url) -> Node:
            client, name = connect(url, timeout=1.5), next(names)
            bus = RedisBus(client, prefix, name)
            node = Node(RedisChannelLog(client, prefix, name, bus, kept))
            for close in (client.aclose, bus.close, node.log.close):
                stack.push_async_callback(close)
            running = asyncio.create_task(bus.run())
            stack.push_async_callback(end, [running])
            async with asyncio.timeout(STEP):
                await bus.started()
            return node

        yield make


@pytest.fixture(params=["memory", "redis"])
async def join(request: pytest.FixtureRequest, redis_nodes: Join) -> Join:
    """Make a node; what is true of one is so for either adapter."""
    if request.param == "redis":
        return redis_nodes

    async def make(kept: Kept = KEPT) -> Node:
        return Node(MemoryChannelLog(LocalBus(), kept, begin=now() << 20))

    return make


# What is heard


async def test_what_is_said_is_heard_by_the_one_who_says_it_too_in_order(join: Join) -> None:
    node = await join()
    said = await node.say(*range(20))
    assert await node.hears(20) == said
    assert what(said) == [*range(20)]
    positions = [each.position for each in said]
    assert positions == sorted(set(positions))
    assert positions[0] > 0


async def test_all_of_an_event_arrives(join: Join) -> None:
    node = await join()
    at = now()
    whole = draft({"é": [1, None]}, "presence-a", event="x", sender="alice", source="socket-1")
    [said] = await node.log.say([whole], at)
    assert await node.hears(1) == [said]
    assert said == Said(**msgspec.structs.asdict(whole), position=said.position, at=at)


async def test_the_same_in_several_channels_is_said_in_one_step(join: Join) -> None:
    node = await join()
    said = await node.log.say([draft(1, "a"), draft(2, "b"), draft(3, "a")], now())
    assert await node.hears(3) == list(said)
    assert await node.history(channel="a") == ([1, 3], True)
    assert await node.history(channel="b") == ([2], True)


async def test_what_is_not_kept_is_heard_in_its_turn_and_has_no_position(join: Join) -> None:
    node = await join()
    await node.say("first")
    [typing] = await node.say("typing", keep=False)
    await node.say("last")
    assert typing.position == 0
    assert what(await node.hears(3)) == ["first", "typing", "last"]
    assert node.heard[1] == typing
    assert await node.history() == (["first", "last"], True)


async def test_who_fails_to_hear_one_hears_the_next(join: Join) -> None:
    node = await join()
    node.fails = True
    await node.say(1, 2)
    assert what(await node.hears(2)) == [1, 2]


# What is kept


async def test_a_history_is_read_from_where_one_has_come_and_whether_something_is_missing_is_told(join: Join) -> None:
    node = await join()
    said = await node.say(*range(8))
    kept = [3, 4, 5, 6, 7]
    assert await node.history(None) == (kept, False)
    assert await node.history(0) == (kept, False)
    assert await node.history(said[1].position) == (kept, False)
    assert await node.history(said[2].position) == (kept, True)
    assert await node.history(said[5].position) == ([6, 7], True)
    assert await node.history(said[7].position) == ([], True)
    assert await node.history(said[3].position, limit=2) == ([6, 7], False)
    assert await node.history(said[5].position, limit=2) == ([6, 7], True)
    assert await node.history(None, limit=2) == ([6, 7], False)


async def test_a_history_that_is_read_to_its_end_goes_on_from_there(join: Join) -> None:
    node = await join()
    empty = await node.log.history("acme", "room-1", now(), after=0, limit=10)
    assert (empty.events, empty.recovered) == ([], True)
    said = await node.say("later")
    for after in (empty.position, 0):
        found = await node.log.history("acme", "room-1", now(), after=after, limit=10)
        assert (list(found.events), found.recovered) == (said, True)
        assert found.position == said[0].position
    await node.say("elsewhere", channel="room-2")
    assert await node.history(said[0].position) == ([], True)


async def test_histories_of_tenants_and_channels_are_apart(join: Join) -> None:
    node = await join()
    await node.say("a", channel="a")
    await node.say("b", channel="b")
    await node.say("c", channel="a", tenant="other")
    assert await node.history(channel="a") == (["a"], True)
    assert await node.history(channel="b") == (["b"], True)
    assert await node.history(channel="c") == ([], True)


async def test_what_is_too_old_is_gone_and_that_it_may_be_is_told(join: Join) -> None:
    node = await join()
    said = await node.say(1, 2)
    assert await node.history(said[0].position, at=now() + KEPT.ttl // 2) == ([2], True)
    late = now() + KEPT.ttl + 1000
    assert await node.history(0, at=late) == ([], True)
    assert await node.history(None, at=late) == ([], False)
    assert await node.history(said[0].position, at=late) == ([], False)


async def test_of_a_position_that_nobody_has_reached_all_is_told_and_nothing_recovered(join: Join) -> None:
    node = await join()
    said = await node.say(1, 2)
    assert await node.history(said[1].position + (60_000 << 20)) == ([1, 2], False)
    assert await node.history((1 << 63) - 1) == ([1, 2], False)
    assert await node.history(1) == ([1, 2], False)


async def test_where_nothing_is_kept_nothing_is_recovered(join: Join) -> None:
    node = await join(Kept(events=0))
    said = await node.say(1)
    assert what(await node.hears(1)) == [1]
    assert await node.history() == ([], False)
    assert await node.history(said[0].position) == ([], False)


# What is said once


async def test_what_has_a_name_is_said_once_and_told_as_it_was(join: Join) -> None:
    node = await join()
    first = await node.log.say([draft(1, "a"), draft(1, "b")], 7, once="alice:1")
    again = await node.log.say([draft(2, "a"), draft(2, "b")], 8, once="alice:1")
    other = await node.log.say([draft(3, "a")], 9, once="alice:2")
    assert list(again) == list(first)
    assert await node.hears(3) == [*first, *other]


async def test_of_two_at_once_under_one_name_one_is_said(join: Join) -> None:
    node = await join()
    said = await asyncio.gather(*(node.log.say([draft(n)], now(), once="x") for n in range(20)))
    assert all(list(each) == list(said[0]) for each in said)
    await node.say("end")
    assert len(await node.hears(2)) == 2


async def test_a_name_is_known_for_its_own_time(join: Join) -> None:
    node, at = await join(Kept(events=5, ttl=60_000, again=1000)), now()
    first = await node.log.say([draft(1)], at, once="x")
    assert await node.log.say([draft(2)], at + 900, once="x") == list(first)
    if isinstance(node.log, RedisChannelLog):
        await asyncio.sleep(1.2)  # Redis has a clock of its own
    assert what(await node.log.say([draft(3)], at + 1100, once="x")) == [3]
    await node.hears(2)
    assert await node.history() == ([1, 3], True)


# What one sender may have kept


SPENT = Kept(events=5, ttl=60_000, budget=50_000)


async def spend(node: Node, whose: str, at: int) -> tuple[int, float]:
    """Say as much as is taken, each time somewhere else; how much that was, and after how long there is more."""
    n = 0
    with pytest.raises(RateLimitedError) as refused:  # noqa: PT012 - which of them it is, is what is asked
        for n in range(1000):
            await node.log.say([draft("x" * 1000, f"room-{n}")], at, once=f"{whose}-{n}", budget=whose)
    return n, refused.value.retry_after or 0


async def test_what_is_kept_of_one_sender_is_bounded_and_there_is_room_again_later(join: Join) -> None:
    node, at = await join(SPENT), now()
    taken, wait = await spend(node, "alice", at)
    assert 10 <= taken <= 50
    assert 0 < wait < 60 / 10
    assert await node.history(channel=f"room-{taken}") == ([], True), "what is refused is not said"
    # Sent again it is the first one, whatever else there is no room for.
    [first] = await node.log.say([draft("again", "room-0")], at, once="alice-0", budget="alice")
    assert what([first]) == ["x" * 1000]
    assert (await spend(node, "bob", at))[0] == taken
    await node.log.say([draft("x" * 1000)], at)
    with pytest.raises(RateLimitedError):
        await node.log.say([draft("x" * 1000)], at + int(wait * 900), once="soon", budget="alice")
    await node.log.say([draft("x" * 1000)], at + int(wait * 1000) + 1, once="soon", budget="alice")
    late = at + 60_000
    assert abs((await spend(node, "carol", late))[0] - taken) <= 1


async def test_each_channel_that_something_is_said_in_counts(join: Join) -> None:
    node, at = await join(SPENT), now()
    for _ in range(15):
        await node.log.say([draft("x" * 1000, "a"), draft("x" * 1000, "b")], at, budget="alice")
        await node.log.say([draft("x" * 1000, "a")], at, budget="bob")
    with pytest.raises(RateLimitedError):
        await node.log.say([draft("x" * 1000, "a"), draft("x" * 1000, "b")], at, budget="alice")
    await node.log.say([draft("x" * 1000, "a")], at, budget="bob")


async def test_too_much_is_refused_whole(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_redis, "LARGEST", 1000)
    node = await join()
    if isinstance(node.log, RedisChannelLog):
        with pytest.raises(InvalidPayloadError, match="1000 bytes"):
            await node.log.say([draft(1), draft("x" * 1000)], now())
    await node.say("fits")
    assert what(await node.hears(1)) == ["fits"]


# In memory: nothing grows for ever


async def test_memory_forgets_channels_and_names_that_are_too_old() -> None:
    log = MemoryChannelLog(LocalBus(), Kept(events=3, ttl=1000, again=1000), begin=5000 << 20)
    for n in range(100):
        await log.say([draft(n, f"room-{n}"), draft(n, "all")], 5000 + 100 * n, once=str(n))
    assert set(log._histories) == {("acme", f"room-{n}") for n in range(90, 100)} | {("acme", "all")}
    assert set(log._once) == {str(n) for n in range(90, 100)}
    await log.history("acme", "all", 100_000, after=None, limit=1)
    assert not log._histories
    assert not log._once


async def test_memory_forgets_names_before_it_forgets_what_was_said() -> None:
    log = MemoryChannelLog(LocalBus(), Kept(events=100, ttl=10_000, again=1000), begin=5000 << 20)
    for n in range(100):
        await log.say([draft(n)], 5000 + 100 * n, once=str(n))
    assert set(log._once) == {str(n) for n in range(90, 100)}
    assert len((await log.history("acme", "room-1", 14_900, after=None, limit=100)).events) == 100


# In Redis


async def test_of_what_has_a_name_one_copy_is_kept_and_no_longer_than_it_may_be_sent_again(
    redis_nodes: Join, redis_url: str
) -> None:
    node = await redis_nodes(Kept(events=5, ttl=60_000, again=5000, budget=50_000))
    assert isinstance(node.log, RedisChannelLog)
    text = "x" * 5000
    first = await node.log.say([draft(text, "a", sender="alice"), draft(text, "b", sender="alice")], now(), once="n")
    assert [each.channel for each in first] == ["a", "b"]
    assert list(await node.log.say([draft(1, "c", sender="alice")], now(), once="n")) == list(first)
    client, key = connect(redis_url, timeout=STEP), f"{node.log._base}once:n"
    assert await client.execute_command("STRLEN", key) < len(text) + 300
    assert 0 < await client.execute_command("PTTL", key) <= 5000
    await node.log.say([draft(text)], now(), budget="alice")
    assert 0 < await client.execute_command("PTTL", f"{node.log._base}budget:alice") <= 60_000
    await client.aclose()


async def test_a_budget_is_one_for_all_nodes(redis_nodes: Join) -> None:
    a, b, at = await redis_nodes(SPENT), await redis_nodes(SPENT), now()
    await spend(a, "alice", at)
    with pytest.raises(RateLimitedError):
        await b.log.say([draft("x" * 1000)], at, once="alice-more", budget="alice")


async def test_two_nodes_hear_what_is_said_on_both_at_once_in_one_order(redis_nodes: Join) -> None:
    a, b = await redis_nodes(), await redis_nodes()
    await asyncio.gather(*(node.say(f"{name}{n}") for n in range(200) for node, name in ((a, "a"), (b, "b"))))
    assert await a.hears(400) == await b.hears(400)
    assert len({each.position for each in a.heard}) == 400
    kept = await a.log.history("acme", "room-1", now(), after=None, limit=100)
    assert list(kept.events) == a.heard[-5:]


async def test_a_name_is_known_to_other_nodes(redis_nodes: Join) -> None:
    a, b = await redis_nodes(), await redis_nodes()
    first = await a.log.say([draft("a")], now(), once="x")
    assert await b.log.say([draft("b")], now(), once="x") == list(first)
    await b.say("end")
    assert what(await a.hears(2)) == ["a", "end"]


async def test_what_redis_is_sent_again_is_not_said_twice(
    redis_nodes: Join, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = Commands._deliver

    async def twice(self: Commands, batch: list[Call]) -> None:
        """As where a connection was lost behind a command, and the client makes it anew."""
        if any(call.script is log_redis._SAY for call in batch):
            await deliver(self, [Call(call.script, call.keys, call.arguments) for call in batch])
        await deliver(self, batch)

    node = await redis_nodes()
    await node.say("first")
    monkeypatch.setattr(Commands, "_deliver", twice)
    said = await asyncio.gather(*(node.log.say([draft(n)], now()) for n in range(300)))
    monkeypatch.undo()
    await node.say("end")
    assert what(await node.hears(302)) == ["first", *range(300), "end"]
    assert [each.position for (each,) in said] == [each.position for each in node.heard[1:-1]]


async def test_a_call_that_others_overtook_is_said_all_the_same(redis_nodes: Join) -> None:
    node = await redis_nodes()
    assert isinstance(node.log, RedisChannelLog)
    for calls in (4, 9, 2, 6, 4, 9, 2):
        node.log._calls = calls
        await node.say(calls)
    node.log._calls = 20
    await node.say("end")
    assert what(await node.hears(5)) == [4, 9, 2, 6, "end"]


async def test_while_redis_is_away_that_is_told_in_time(redis_nodes: Join, shared_redis: RedisServer) -> None:
    async with Proxy.start(shared_redis.port) as proxy:
        node = await redis_nodes(url=proxy.url)
        await node.say("before")
        proxy.swallow()
        async with asyncio.timeout(STEP):
            with pytest.raises(StoreUnavailableError):
                await node.say("swallowed")
        await proxy.cut()
        async with asyncio.timeout(STEP):
            with pytest.raises(StoreUnavailableError):
                await node.say("cut")
            with pytest.raises(StoreUnavailableError):
                await node.history()
        proxy.flow()
        await proxy.listen()
        await node.say("after")
        assert what(await node.hears(2))[0] == "before"
        assert what(node.heard)[-1] == "after"


async def test_a_history_that_expired_says_that_something_may_be_gone(redis_nodes: Join, redis_url: str) -> None:
    node = await redis_nodes()
    [said] = await node.say("old")
    assert isinstance(node.log, RedisChannelLog)
    client = connect(redis_url, timeout=STEP)
    assert 0 < await client.execute_command("PTTL", node.log._history_key("acme", "room-1")) <= KEPT.ttl + 60_000
    # It is as if all had expired.
    await client.execute_command("DEL", node.log._history_key("acme", "room-1"))
    ancient = said.position - (10 * KEPT.ttl << 20)
    await node.say("new")
    assert await node.history(ancient) == (["new"], False)
    assert await node.history(0) == (["new"], True)
    await client.aclose()


async def test_after_redis_lost_all_nothing_is_recovered_from_before(redis_nodes: Join, redis_url: str) -> None:
    node = await redis_nodes()
    assert isinstance(node.log, RedisChannelLog)
    client = connect(redis_url, timeout=STEP)
    [said] = await node.say("before")
    base = node.log._base.removesuffix("said:")
    names = [f"{base}bus", f"{base}bus:position", node.log._began, node.log._history_key("acme", "room-1")]
    assert await client.execute_command("DEL", *names) == 4
    assert await node.history(said.position) == ([], False)
    await asyncio.sleep(0.01)
    await node.log.say([draft("other")], now())
    await node.say("after")
    assert await node.history(0) == (["other", "after"], True)
    await client.aclose()


async def test_a_history_outlives_a_bus_that_was_lost_and_came_again_behind_it(
    redis_nodes: Join, redis_url: str
) -> None:
    node = await redis_nodes()
    assert isinstance(node.log, RedisChannelLog)
    client, key = connect(redis_url, timeout=STEP), node.log._history_key("acme", "room-1")
    ahead = f"{now() + 60_000}-0"
    await client.execute_command("XADD", key, ahead, "prev", "0-0", "body", "of a clock that was ahead")
    said = await node.say(1, 2)
    assert await node.history(0) == ([1, 2], False)
    assert await node.history(said[0].position) == ([2], True)
    await client.aclose()
