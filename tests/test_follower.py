import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from conftest import STEP, TIMING, eventually

from gateway.presence import follower as follower_module
from gateway.presence.follower import Follower
from gateway.presence.model import Beat, Entry, Transition
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import View


class Followed:
    """A store, and a view that follows it; `heard` is every batch the listeners were given."""

    def __init__(self, log_length: int = 1_000) -> None:
        self.store = MemoryStore(TIMING, log_length=log_length)
        self.view = View()
        self.heard: list[list[str]] = []
        self.counts: list[int] = []
        self.follower = Follower(self.store, self.view, [self.hear, self.count])

    def hear(self, transitions: Sequence[Transition]) -> None:
        self.heard.append([f"{t.user_id}: {t.was} -> {t.now.status}" for t in transitions])

    def count(self, transitions: Sequence[Transition]) -> None:
        self.counts.append(self.view.online_count("acme"))

    async def online(self, *users: str, at: int = 0) -> int:
        await self.store.renew("n1", 0)
        beats = [Beat(tenant="acme", user_id=user, at=at, holds=True) for user in users]
        return (await self.store.beat("n1", beats)).position

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.follower.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_the_first_snapshot_is_loaded_and_told_to_nobody() -> None:
    followed = Followed()
    await followed.online("alice")
    await followed.follower.start()
    assert followed.view.online_count("acme") == 1
    assert followed.heard == []


async def test_each_batch_is_told_in_order_after_the_view_holds_it() -> None:
    followed = Followed()
    async with followed.running():
        await followed.follower.reach(await followed.online("alice", "bob"))
        await followed.store.release("acme", "alice", 1)
        await followed.follower.reach((await followed.store.release("acme", "bob", 1)).position)
    assert followed.heard == [
        ["alice: offline -> online", "bob: offline -> online"],
        ["alice: online -> offline", "bob: online -> offline"],
    ]
    assert followed.counts == [2, 0]


async def test_activity_alone_is_told_to_nobody() -> None:
    followed = Followed()
    async with followed.running():
        await followed.follower.reach(await followed.online("alice"))
        await followed.follower.reach(await followed.online("alice", at=5))
    assert followed.view.status("acme", "alice").active_at == 5
    assert followed.heard == [["alice: offline -> online"]]


async def test_a_follower_that_fell_behind_takes_a_snapshot_and_tells_the_net_changes() -> None:
    followed = Followed(log_length=2)
    await followed.online("alice", "bob")
    await followed.follower.start()
    await followed.store.release("acme", "bob", 1)
    await followed.store.release("acme", "alice", 1)
    await followed.online("alice", "carol", at=2)
    async with followed.running():
        await followed.follower.reach((await followed.store.snapshot()).position)
    assert followed.heard == [["alice: online -> online", "bob: online -> offline", "carol: offline -> online"]]
    assert followed.counts == [2]


async def test_reach_returns_at_once_where_the_view_has_come_so_far() -> None:
    followed = Followed()
    position = await followed.online("alice")
    await followed.follower.start()
    await asyncio.wait_for(followed.follower.reach(position), STEP)
    await asyncio.wait_for(followed.follower.reach(0), STEP)


async def test_each_who_waits_is_woken_by_the_position_they_wait_for() -> None:
    followed = Followed()
    waiting = {at: asyncio.create_task(followed.follower.reach(at)) for at in (3, 1, 2)}
    twin = asyncio.create_task(followed.follower.reach(1))
    cancelled = asyncio.create_task(followed.follower.reach(1))
    await asyncio.sleep(0)
    cancelled.cancel()
    async with followed.running():
        await followed.online("alice", "bob")
        await eventually(waiting[2].done)
        assert {at: task.done() for at, task in waiting.items()} == {1: True, 2: True, 3: False}
        assert twin.done()
        await followed.online("carol")
        await asyncio.wait_for(waiting[3], STEP)


async def test_a_store_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "RETRY", 0.001)
    followed = Followed()
    read, failures = followed.store.read, [ConnectionError("away"), ConnectionError("still away")]

    async def fail_first(after: int, *, wait: bool) -> Sequence[Entry]:
        if failures:
            raise failures.pop()
        return await read(after, wait=wait)

    monkeypatch.setattr(followed.store, "read", fail_first)
    async with followed.running():
        await followed.online("alice")
        await eventually(lambda: followed.heard)
    assert (failures, followed.heard) == ([], [["alice: offline -> online"]])


async def test_reach_reads_the_log_itself_where_nobody_has_yet() -> None:
    followed = Followed()
    await followed.follower.reach(await followed.online("alice"))  # run() is not running
    assert followed.heard == [["alice: offline -> online"]]


async def test_a_listener_that_fails_keeps_the_news_from_nobody_else() -> None:
    followed = Followed()

    def fail(_news: Sequence[Transition]) -> None:
        raise RuntimeError("a listener's own fault")

    followed.follower._listeners = [fail, *followed.follower._listeners]
    await followed.follower.reach(await followed.online("alice"))
    assert followed.heard == [["alice: offline -> online"]]
