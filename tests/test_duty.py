"""A duty: one node at a time does it, and another when that one stops, dies, or cannot renew its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from conftest import STEP, eventually
from loops import Loop
from redis_servers import fresh_prefix

from gateway.errors import StoreUnavailableError
from gateway.nodes.duty import BEATS, PAUSE, Duty, LocalLeases
from gateway.redis.connection import connect
from gateway.redis.leases import RedisLeases
from gateway.runtime.tasks import end

TTL = 9.0


class SharedLeases:
    """Leases of several nodes, on a clock that jumps; any answer can be held up or refused."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.holders: dict[str, tuple[str, float]] = {}
        self.away: set[str] = set()
        self.refused: set[str] = set()
        """Whose giving back fails in a way that nobody expects."""
        self.late: asyncio.Event | None = None

    def of(self, node: str) -> NodeLeases:
        return NodeLeases(self, node)


class NodeLeases:
    def __init__(self, shared: SharedLeases, node: str) -> None:
        self.shared = shared
        self.node = node

    async def take(self, name: str, ttl: float) -> bool:
        if self.shared.late is not None:
            await self.shared.late.wait()
        if self.node in self.shared.away:
            raise StoreUnavailableError
        holder, until = self.shared.holders.get(name, (self.node, 0.0))
        if holder != self.node and self.shared.loop.now < until:
            return False
        self.shared.holders[name] = self.node, self.shared.loop.now + ttl
        return True

    async def give_back(self, name: str) -> None:
        if self.node in self.shared.away:
            raise StoreUnavailableError
        if self.node in self.shared.refused:
            raise RuntimeError("a refusal")
        if self.shared.holders.get(name, ("", 0.0))[0] == self.node:
            del self.shared.holders[name]

    async def close(self) -> None:
        """Nothing to let go of."""


class Node:
    """A node with one duty, and whether it does it."""

    def __init__(self, leases: NodeLeases | LocalLeases | RedisLeases, loop: Loop | None, ttl: float = TTL) -> None:
        self.duty = Duty("sending", leases, ttl=ttl, scheduler=loop)
        self.working = 0
        self.begun = 0
        self.fail: Exception | None = None
        self.stopped = asyncio.Event()
        self.task = asyncio.create_task(self.duty.run(self.work))

    async def work(self) -> None:
        self.begun += 1
        self.working += 1
        try:
            if self.fail is not None:
                raise self.fail
            await self.stopped.wait()
        finally:
            self.working -= 1


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def shared(loop: Loop) -> SharedLeases:
    return SharedLeases(loop)


@pytest.fixture
async def start(shared: SharedLeases, loop: Loop) -> AsyncIterator[Callable[[str], Node]]:
    nodes: list[Node] = []

    def start(name: str) -> Node:
        nodes.append(Node(shared.of(name), loop))
        return nodes[-1]

    yield start
    await end([node.task for node in nodes])


async def settle() -> None:
    """Let every task come to where it waits for time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def run_until(loop: Loop, now: float) -> None:
    await settle()
    while due := [when for when in loop.waiting() if when <= now]:
        loop.run_until(min(due))
        await settle()
    loop.run_until(now)
    await settle()


async def test_one_node_works_and_goes_on_working(start: Callable[[str], Node], loop: Loop) -> None:
    first = start("first")
    await settle()
    second = start("second")
    await run_until(loop, loop.now + 100 * TTL)
    assert (first.working, first.begun, second.begun) == (1, 1, 0)
    assert (first.duty.held, second.duty.held) == (True, False)


async def test_a_node_that_stops_hands_on_at_once(start: Callable[[str], Node], loop: Loop) -> None:
    first = start("first")
    await settle()
    second = start("second")
    await settle()
    await end([first.task])
    await run_until(loop, loop.now + TTL / BEATS)
    assert (first.working, second.working) == (0, 1)


async def test_another_takes_over_when_the_lease_of_a_dead_node_has_run_out(
    start: Callable[[str], Node], shared: SharedLeases, loop: Loop
) -> None:
    shared.holders["sending"] = "dead", loop.now + TTL
    second = start("second")
    await run_until(loop, loop.now + TTL - 0.1)
    assert second.begun == 0
    await run_until(loop, loop.now + TTL / BEATS + 0.1)
    assert second.working == 1


async def test_two_lost_renewals_change_nothing(start: Callable[[str], Node], shared: SharedLeases, loop: Loop) -> None:
    node = start("first")
    await settle()
    shared.away.add("first")
    await run_until(loop, loop.now + TTL * 2 / BEATS + 0.1)
    shared.away.clear()
    await run_until(loop, loop.now + 10 * TTL)
    assert (node.working, node.begun) == (1, 1)


async def test_a_node_that_cannot_renew_stops_before_another_begins(
    start: Callable[[str], Node], shared: SharedLeases, loop: Loop
) -> None:
    first, began = start("first"), loop.now
    await settle()
    second = start("second")
    shared.away.add("first")
    seen = []
    while loop.now < began + 2 * TTL:
        await run_until(loop, loop.now + 0.1)
        seen.append((first.working, second.working))
    assert (1, 1) not in seen
    assert (seen[0], seen[-1]) == ((1, 0), (0, 1))


async def test_the_work_ends_with_the_lease_where_the_renewal_hangs(
    start: Callable[[str], Node], shared: SharedLeases, loop: Loop
) -> None:
    node = start("first")
    await settle()
    shared.late = asyncio.Event()
    await run_until(loop, loop.now + TTL)
    assert node.working == 0
    shared.late.set()
    shared.late = None
    await run_until(loop, loop.now + TTL)
    assert (node.working, node.begun) == (1, 2)


async def test_work_that_fails_or_ends_begins_again_after_a_pause(start: Callable[[str], Node], loop: Loop) -> None:
    node = start("first")
    node.fail = RuntimeError("the work's own")
    await settle()
    assert (node.working, node.begun, node.duty.held) == (0, 1, False)
    node.fail = None
    await run_until(loop, loop.now + PAUSE)
    assert (node.working, node.begun) == (1, 2)
    node.stopped.set()
    await settle()
    assert (node.working, node.duty.held) == (0, False)


async def test_a_lease_that_cannot_be_given_back_does_not_end_the_duty(
    start: Callable[[str], Node], shared: SharedLeases, loop: Loop
) -> None:
    first = start("first")
    first.fail = RuntimeError("a mistake")
    shared.refused.add("first")
    await settle()
    first.fail = None
    await run_until(loop, loop.now + PAUSE)
    assert (first.begun, first.working) == (2, 1)


async def test_a_node_that_is_alone_works() -> None:
    node = Node(LocalLeases(), None)
    await settle()
    assert node.working == 1
    await end([node.task])
    assert node.working == 0


async def test_over_redis_one_works_until_it_stops(redis_url: str) -> None:
    prefix = fresh_prefix()
    clients = [connect(redis_url, timeout=STEP) for _ in range(2)]
    leases = [RedisLeases(client, prefix, name) for client, name in zip(clients, ("first", "second"), strict=True)]
    first = Node(leases[0], None, ttl=0.3)
    await eventually(lambda: first.working == 1)
    second = Node(leases[1], None, ttl=0.3)
    assert not await leases[1].take("sending", 0.3)
    await leases[1].give_back("sending")  # which is not its own
    assert not await leases[1].take("sending", 0.3)
    await end([first.task])
    await eventually(lambda: second.working == 1)
    assert (first.begun, second.begun) == (1, 1)
    await end([second.task])
    assert await leases[0].take("sending", 60.0)
    assert not await leases[1].take("sending", 0.3)
    for each, client in zip(leases, clients, strict=True):
        await each.close()
        await client.aclose()
