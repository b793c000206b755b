"""How many connections are in a channel: of all nodes, whichever goes, and told once where it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import cast

import pytest
from conftest import STEP, Clock
from redis_servers import fresh_prefix

from gateway.channels.membership import Membership
from gateway.channels.names import parse_scope, scope_of
from gateway.channels.subscriptions import CHUNK, INTERVAL, RedisSubscriptions, Subscriptions
from gateway.redis.connection import connect

KEEP = 10.0


class Here:
    """What one node counts."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.changed: set[str] = set()

    def put(self, channel: str, count: int) -> None:
        self.counts[scope_of("acme", channel)] = count
        self.changed.add(scope_of("acme", channel))

    def here(self, tenant: str, channel: str) -> int:
        return self.counts.get(scope_of(tenant, channel), 0)

    def all_here(self) -> list[tuple[str, str, int]]:
        return [(*parse_scope(scope), count) for scope, count in self.counts.items() if count]

    def take_changed(self) -> set[str]:
        changed, self.changed = self.changed, set()
        return changed


class Node:
    def __init__(self, make: Callable[[Membership], Subscriptions]) -> None:
        self.here = Here()
        self.subscriptions = make(cast("Membership", self.here))
        self.told: list[tuple[str, str, int]] = []
        self.subscriptions.listeners.append(lambda *change: self.told.append(change))

    async def exchange(self) -> list[tuple[str, str, int]]:
        """Tell and hear, and return what listeners heard of by it."""
        self.told.clear()
        await self.subscriptions.exchange()
        return sorted(self.told)

    def count(self, channel: str = "a") -> int:
        return self.subscriptions.count("acme", channel)


@pytest.fixture
async def join(redis_url: str, clock: Clock) -> AsyncIterator[Callable[..., Node]]:
    async with AsyncExitStack() as stack:
        prefix, names = fresh_prefix(), iter("abcdefgh")

        def make(keep: float = KEEP) -> Node:
            client, name = connect(redis_url, timeout=STEP), next(names)
            node = Node(lambda here: RedisSubscriptions(here, client, prefix, name, keep=keep, clock=clock))
            stack.push_async_callback(client.aclose)
            stack.push_async_callback(node.subscriptions.close)
            return node

        yield make


async def test_one_node_alone_counts_its_own() -> None:
    node = Node(Subscriptions)
    node.here.put("a", 2)
    assert node.count() == 2
    assert await node.exchange() == [("acme", "a", 2)]
    assert await node.exchange() == []
    node.here.put("a", 3)
    node.here.put("a", 2)
    assert await node.exchange() == [], "the same as it was told"
    node.here.put("a", 0)
    assert await node.exchange() == [("acme", "a", 0)]


async def test_nodes_add_up_and_each_hears_of_what_changed(join: Callable[..., Node]) -> None:
    a, b = join(), join()
    a.here.put("a", 2)
    b.here.put("a", 3)
    b.here.put("b", 1)
    assert await a.exchange() == [("acme", "a", 2)]
    assert await b.exchange() == [("acme", "a", 5), ("acme", "b", 1)]
    assert await a.exchange() == [("acme", "a", 5), ("acme", "b", 1)]
    assert (a.count(), b.count(), a.count("b"), a.count("c")) == (5, 5, 1, 0)
    a.here.put("a", 4)
    assert a.count() == 7, "its own it knows at once"
    await a.exchange()
    assert await b.exchange() == [("acme", "a", 7)]
    assert await a.exchange() == await b.exchange() == []
    b.here.put("b", 0)
    await b.exchange()
    assert await a.exchange() == [("acme", "b", 0)]


async def test_a_node_that_comes_later_hears_of_all(join: Callable[..., Node]) -> None:
    a = join()
    for n in range(CHUNK + 10):
        a.here.put(f"room-{n}", 1)
    assert len(await a.exchange()) == CHUNK + 10
    late = join()
    assert len(await late.exchange()) == CHUNK + 10
    assert late.count("room-5") == 1


async def test_what_a_node_with_a_short_lease_counts_holds_until_it_tells_again(
    join: Callable[..., Node], clock: Clock
) -> None:
    a, b = join(keep=1), join(keep=1)
    a.here.put("a", 2)
    await a.exchange()
    clock.advance(s=2 * INTERVAL)  # it was held up
    await b.exchange()
    assert b.count() == 2


async def test_what_a_dead_node_counted_runs_out_once(join: Callable[..., Node], clock: Clock) -> None:
    dead, a, b = join(), join(), join()
    for n in range(CHUNK + 10):
        dead.here.put(f"room-{n}", 1)
    dead.here.put("a", 1)
    a.here.put("a", 1)
    for node in (dead, a, b):
        await node.exchange()
    clock.advance(s=KEEP - 1)
    await a.exchange()
    await b.exchange()
    assert b.count() == 2
    clock.advance(s=2)
    assert len(await a.exchange()) == CHUNK + 11
    assert len(await b.exchange()) == CHUNK + 11
    assert (a.count(), b.count(), b.count("room-1")) == (1, 1, 0)


async def test_a_node_that_was_taken_for_dead_counts_again(join: Callable[..., Node], clock: Clock) -> None:
    slept, other = join(), join()
    slept.here.put("a", 2)
    slept.here.put("b", 1)
    await slept.exchange()
    await other.exchange()
    clock.advance(s=KEEP + 1)
    await other.exchange()
    assert other.count() == 0
    slept.here.put("b", 0)
    assert await slept.exchange() == [("acme", "b", 0)]
    await other.exchange()
    assert (slept.count(), other.count(), other.count("b")) == (2, 2, 0)


async def test_a_node_that_stops_counts_no_more_at_once(join: Callable[..., Node]) -> None:
    a, b = join(), join()
    a.here.put("a", 2)
    await a.exchange()
    await b.exchange()
    await a.subscriptions.close()
    assert await b.exchange() == [("acme", "a", 0)]


async def test_after_redis_lost_all_each_node_tells_its_own_again(join: Callable[..., Node], redis_url: str) -> None:
    a, b = join(), join()
    a.here.put("a", 2)
    b.here.put("a", 1)
    for node in (a, b, a):
        await node.exchange()
    assert isinstance(a.subscriptions, RedisSubscriptions)
    base, client = a.subscriptions._base, connect(redis_url, timeout=STEP)
    names = [f"{base}:{name}" for name in ("nodes", "all", "changes", "node:a", "node:b")]
    assert await client.execute_command("DEL", *names) == 5
    for node in (a, b, a):
        await node.exchange()
    assert (a.count(), b.count()) == (3, 3)
    await client.aclose()
