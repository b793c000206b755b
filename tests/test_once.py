"""Hooks called once in the cluster: by one node at a time, each going on where the last had come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import STEP, TIMING, Clock, eventually
from redis_servers import fresh_prefix

from gateway.errors import LogTrimmedError, StoreUnavailableError
from gateway.inprocess import once as once_module
from gateway.inprocess.hooks import Hooks
from gateway.inprocess.once import LocalPositions, OnceHooks, Positions
from gateway.nodes.duty import LocalLeases
from gateway.presence.model import Beat, Transition
from gateway.presence.store_memory import MemoryStore
from gateway.redis.connection import connect
from gateway.redis.positions import RedisPositions
from gateway.runtime.tasks import end


class World:
    """A store that lives on, positions that do, and nodes that come and go."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.store = MemoryStore(TIMING)
        self.positions = LocalPositions()
        self.heard: list[str] = []
        self.follower: Any = SimpleNamespace(loaded=True, position=0)

    async def comes(self, *users: str) -> None:
        await self.store.renew("a", self.clock.now)
        for user in users:
            beat = Beat(tenant="acme", user_id=user, at=self.clock.now, holds=True)
            await self.store.beat("a", [beat])

    def node(self, hook: Callable[[Transition], Any] | None = None, timeout: float = STEP) -> tuple[Hooks, OnceHooks]:
        async def hear(transition: Transition) -> None:
            self.heard.append(transition.user_id)

        hooks = Hooks()
        hooks.add("user-online", hear if hook is None else hook, once=True, name="hear", timeout=timeout)
        return hooks, OnceHooks(
            hooks,
            LocalLeases(),
            ttl=STEP,
            store=self.store,
            follower=self.follower,
            positions=self.positions,
        )


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@asynccontextmanager
async def running(node: OnceHooks) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(node.run())
    try:
        yield task
    finally:
        await end([task])


async def test_what_comes_between_two_holders_is_the_next_one_s(world: World) -> None:
    _, first = world.node()
    await first.begin()
    await world.comes("alice", "bob")
    async with running(first):
        await eventually(lambda: world.heard == ["alice", "bob"])
    await world.comes("carol")
    _, second = world.node()
    world.follower.position = 10**9  # it is there already, and begins where the last one was
    await second.begin()
    async with running(second):
        await world.comes("dave")
        await eventually(lambda: world.heard == ["alice", "bob", "carol", "dave"])


async def test_a_call_that_is_cut_off_is_made_again(world: World) -> None:
    begun = list[str]()

    async def hang(transition: Transition) -> None:
        begun.append(transition.user_id)
        await asyncio.Event().wait()

    await world.comes("alice", "bob")
    async with running(world.node(hang)[1]):
        await eventually(lambda: begun == ["alice"])
    async with running(world.node()[1]):
        await eventually(lambda: world.heard == ["alice", "bob"])


async def test_a_node_that_stops_finishes_its_call_and_begins_no_other(world: World) -> None:
    begun, go_on = list[str](), asyncio.Event()

    async def slow(transition: Transition) -> None:
        begun.append(transition.user_id)
        await go_on.wait()
        world.heard.append(transition.user_id)

    await world.comes("alice", "bob")
    hooks, node = world.node(slow)
    async with running(node):
        await eventually(lambda: begun == ["alice"])
        finishing = asyncio.create_task(node.finish(STEP))
        await asyncio.sleep(0)
        assert not finishing.done()
        go_on.set()
        await finishing
        assert hooks.outcomes["done"] == 1
    async with running(world.node()[1]):
        await eventually(lambda: world.heard == ["alice", "bob"])
    assert begun == ["alice"]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_one_that_fails_or_hangs_is_not_called_again_with_the_same(world: World, how: str) -> None:
    async def bad(transition: Transition) -> None:
        world.heard.append(transition.user_id)
        if how == "fails":
            raise RuntimeError("of the application's")
        await asyncio.Event().wait()

    await world.comes("alice", "bob")
    hooks, node = world.node(bad, timeout=0.05)
    async with running(node):
        await eventually(lambda: hooks.outcomes["failed" if how == "fails" else "timed_out"] == 2)
        await node.finish(STEP)
    async with running(world.node()[1]):
        await world.comes("carol")
        await eventually(lambda: world.heard == ["alice", "bob", "carol"])


async def test_nothing_is_begun_before_the_last_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "RETRY", 0.01)
    failures = [StoreUnavailableError()] * 3
    advance = world.positions.advance

    async def unwilling(name: str, position: int) -> None:
        assert world.heard == ["alice"] or not failures
        if failures:
            raise failures.pop()
        await advance(name, position)

    monkeypatch.setattr(world.positions, "advance", unwilling)
    await world.comes("alice", "bob")
    async with running(world.node()[1]):
        await eventually(lambda: world.heard == ["alice", "bob"])
    assert not failures


async def test_what_is_no_longer_on_the_log_is_counted_as_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "RETRY", 0.01)
    read, trimmed = world.store.read, [LogTrimmedError("trimmed")]

    async def trims(after: int, *, wait: bool) -> Any:
        if trimmed:
            raise trimmed.pop()
        return await read(after, wait=wait)

    monkeypatch.setattr(world.store, "read", trims)
    await world.comes("alice", "bob")
    world.follower.position = (await world.store.snapshot()).position
    await world.positions.reset("hear", 0)
    hooks, node = world.node()
    async with running(node):
        await eventually(lambda: hooks.outcomes["missed"] == 1)
        await world.comes("carol")
        await eventually(lambda: world.heard == ["carol"])


async def test_a_log_that_went_back_is_noticed_while_nothing_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.presence.tail.WATCH", 0.02)
    monkeypatch.setattr(once_module, "RETRY", 0.01)
    await world.positions.reset("hear", 10**9)
    hooks, node = world.node()
    async with running(node):  # which may have begun after the log went back: its view has nothing to find out
        await eventually(lambda: hooks.outcomes["missed"] == 1)
        await world.comes("alice")
        await eventually(lambda: world.heard == ["alice"])


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_position_grows_unless_it_is_reset(kind: str, redis_url: str) -> None:
    client = connect(redis_url, timeout=STEP)
    positions: Positions = LocalPositions() if kind == "memory" else RedisPositions(client, fresh_prefix())
    large = (1_800_000_000_000 << 20) + 7
    assert await positions.begin("a", large) == large
    assert await positions.begin("a", 5) == large
    await positions.advance("a", large + 1)
    await positions.advance("a", large)
    assert await positions.begin("a", 0) == large + 1
    await positions.reset("a", 99)
    await positions.advance("a", 100)
    assert await positions.begin("a", 0) == 100
    assert await positions.begin("b", 0) == 0
    if isinstance(positions, RedisPositions):
        await positions.close()
    await client.aclose()
