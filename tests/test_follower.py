import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from conftest import STEP, TIMING, eventually

from gateway.errors import StoreUnavailableError
from gateway.presence import follower as follower_module
from gateway.presence.follower import Follower
from gateway.presence.model import Beat, Entry, Status, Transition, UserStatus
from gateway.presence.store import Snapshot
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import View


class RecordingStore(MemoryStore):
    """A memory store that may be far, may fail, and counts its snapshots."""

    def __init__(self, log_length: int, *, near: bool) -> None:
        super().__init__(TIMING, log_length=log_length)
        self.near = near  # type: ignore[misc]  # as a class has it; here each has its own
        self.failures: list[Exception] = []
        self.snapshots = self.reads = 0

    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        self.reads += 1
        if self.failures:
            raise self.failures.pop(0)
        return await super().read(after, wait=wait)

    async def snapshot(self) -> Snapshot:
        self.snapshots += 1
        await asyncio.sleep(0)  # a round trip
        if self.failures:
            raise self.failures.pop(0)
        return await super().snapshot()


class Followed:
    """A store, and a view that follows it; `heard` is every batch the listeners were given."""

    def __init__(self, log_length: int = 1_000, *, near: bool = True) -> None:
        self.store = RecordingStore(log_length, near=near)
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


@pytest.fixture(params=["near", "far"])
def followed(request: pytest.FixtureRequest) -> Followed:
    return Followed(near=request.param == "near")


@pytest.fixture
def far() -> Followed:
    return Followed(near=False)


def known(user: str, version: int, status: Status = Status.ONLINE) -> UserStatus:
    return UserStatus(tenant="acme", user_id=user, status=status, version=version, active_at=1)


async def turns() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_first_snapshot_is_loaded_and_told_to_nobody(followed: Followed) -> None:
    await followed.online("alice")
    assert not followed.follower.loaded
    await followed.follower.start()
    assert (followed.follower.loaded, followed.follower.resyncs, followed.follower.position) == (True, 0, 1)
    assert followed.view.online_count("acme") == 1
    assert followed.heard == []


async def test_each_batch_is_told_in_order_after_the_view_holds_it(followed: Followed) -> None:
    await followed.follower.start()
    async with followed.running():
        await followed.follower.reach(await followed.online("alice", "bob"))
        await followed.store.release("acme", "alice", 1)
        await followed.follower.reach((await followed.store.release("acme", "bob", 1)).position)
    assert followed.heard == [
        ["alice: offline -> online", "bob: offline -> online"],
        ["alice: online -> offline", "bob: online -> offline"],
    ]
    assert followed.counts == [2, 0]


async def test_activity_alone_is_told_to_nobody(followed: Followed) -> None:
    await followed.follower.start()
    async with followed.running():
        await followed.follower.reach(await followed.online("alice"))
        await followed.follower.reach(await followed.online("alice", at=5))
    assert followed.view.status("acme", "alice").active_at == 5
    assert followed.heard == [["alice: offline -> online"]]


@pytest.mark.parametrize("near", [True, False])
async def test_a_follower_that_fell_behind_takes_a_snapshot_and_tells_the_net_changes(*, near: bool) -> None:
    followed = Followed(log_length=2, near=near)
    await followed.online("alice", "bob")
    await followed.follower.start()
    await followed.store.release("acme", "bob", 1)
    await followed.store.release("acme", "alice", 1)
    await followed.online("alice", "carol", at=2)
    async with followed.running():
        await followed.follower.reach((await followed.store.snapshot()).position)
    assert followed.heard == [["alice: online -> online", "bob: online -> offline", "carol: offline -> online"]]
    assert followed.counts == [2]
    assert (followed.follower.resyncs, followed.follower.lost) == (1, [])


async def test_reach_returns_at_once_where_the_view_has_come_so_far(followed: Followed) -> None:
    position = await followed.online("alice")
    await followed.follower.start()
    await asyncio.wait_for(followed.follower.reach(position), STEP)
    await asyncio.wait_for(followed.follower.reach(0), STEP)


async def test_each_who_waits_is_woken_by_the_position_they_wait_for(followed: Followed) -> None:
    await followed.follower.start()
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


async def test_a_store_that_fails_is_asked_again(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "RETRY", 0.001)
    await followed.follower.start()
    followed.store.failures = [ConnectionError("away"), StoreUnavailableError("still away")]
    async with followed.running():
        await followed.online("alice")
        await eventually(lambda: followed.heard)
    assert (followed.store.failures, followed.heard) == ([], [["alice: offline -> online"]])


async def test_reach_reads_the_log_itself_where_nobody_has_yet() -> None:
    followed = Followed()
    await followed.follower.reach(await followed.online("alice"))  # run() is not running
    assert followed.heard == [["alice: offline -> online"]]


async def test_what_whoever_committed_has_read_is_not_read_again() -> None:
    followed = Followed()
    async with followed.running():
        await eventually(lambda: len(followed.store._readers) == 1)
        for number in range(10):
            await followed.follower.reach(await followed.online(f"user-{number}"))
            await asyncio.sleep(0)
        assert followed.store.reads == 10
        await followed.online("alice")  # which nobody waits for
        await eventually(lambda: followed.heard[-1] == ["alice: offline -> online"])
        assert followed.store.reads == 11


async def test_each_reader_of_a_near_log_is_woken_for_what_it_has_not_read() -> None:
    first = Followed()
    second = Follower(first.store, View(), [])
    async with first.running():
        following = asyncio.create_task(second.run())
        await eventually(lambda: len(first.store._readers) == 2)
        await first.follower.reach(await first.online("alice"))
        await eventually(lambda: second.position == first.follower.position)
        following.cancel()
        await first.online("bob")
        await eventually(lambda: len(first.heard) == 2)
        assert len(first.store._readers) == 1


async def test_a_listener_that_fails_keeps_the_news_from_nobody_else() -> None:
    followed = Followed()

    def fail(_news: Sequence[Transition]) -> None:
        raise RuntimeError("a listener's own fault")

    followed.follower._listeners = [fail, *followed.follower._listeners]
    await followed.follower.reach(await followed.online("alice"))
    assert followed.heard == [["alice: offline -> online"]]


# A store that is far


async def test_reach_leaves_the_reading_of_a_far_log_to_whoever_follows_it(far: Followed) -> None:
    await far.follower.start()
    reaching = asyncio.create_task(far.follower.reach(await far.online("alice")))
    await turns()
    assert (reaching.done(), far.heard) == (False, [])
    async with far.running():
        await asyncio.wait_for(reaching, STEP)
    assert far.heard == [["alice: offline -> online"]]


async def test_who_waits_for_a_position_that_the_store_lost_is_let_go_by_a_snapshot(far: Followed) -> None:
    await far.follower.start()
    position = await far.online("alice")
    async with far.running():
        await far.follower.reach(position)
        reaching = asyncio.create_task(far.follower.reach(position + 1_000))
        await turns()
        assert not reaching.done()
        await far.follower.resync()
        await asyncio.wait_for(reaching, STEP)
    assert far.follower.position == position


async def test_who_waits_is_let_go_by_a_snapshot_after_what_was_missed_is_told() -> None:
    followed = Followed(log_length=1, near=False)
    await followed.follower.start()
    position = await followed.online("alice", "bob")
    told: list[list[list[str]]] = []

    async def reach() -> None:
        await followed.follower.reach(position)
        told.append(list(followed.heard))

    async with asyncio.timeout(STEP), followed.running():
        await reach()
    assert told == [[["alice: offline -> online", "bob: offline -> online"]]]


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a mistake")])
async def test_who_waits_hears_that_the_log_cannot_be_read(
    far: Followed, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(follower_module, "RETRY", 0.001)
    await far.follower.start()
    position = await far.online("alice")
    waiting = [asyncio.create_task(far.follower.reach(at)) for at in (position, position + 1)]
    await turns()
    far.store.failures = [error]
    async with far.running():
        for reaching in waiting:
            with pytest.raises(StoreUnavailableError, match=str(error)):
                await asyncio.wait_for(reaching, STEP)
        await asyncio.wait_for(far.follower.reach(position), STEP)
    assert far.heard == [["alice: offline -> online"]]


async def test_a_position_is_waited_for_so_long_and_no_longer(far: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "PATIENCE", 0.01)
    await far.follower.start()
    position = await far.online("alice")
    with pytest.raises(StoreUnavailableError):
        await asyncio.wait_for(far.follower.reach(position), STEP)
    monkeypatch.setattr(follower_module, "PATIENCE", STEP)
    async with far.running():
        await asyncio.wait_for(far.follower.reach(position), STEP)
    assert far.heard == [["alice: offline -> online"]]


# Snapshots


async def test_a_follower_that_could_not_start_does_when_the_store_is_there(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "RETRY", 0.001)
    followed.store.failures = [StoreUnavailableError("away"), StoreUnavailableError("still away")]
    await followed.online("alice")
    with pytest.raises(StoreUnavailableError):
        await followed.follower.start()
    assert not followed.follower.loaded
    async with followed.running():
        await eventually(lambda: followed.follower.loaded)
    assert (followed.view.online_count("acme"), followed.heard, followed.follower.resyncs) == (1, [], 0)


async def test_of_two_who_ask_for_a_snapshot_at_once_one_takes_it(followed: Followed) -> None:
    await followed.follower.start()
    await followed.online("alice")
    await asyncio.gather(followed.follower.resync(), followed.follower.resync())
    assert (followed.store.snapshots, followed.follower.resyncs) == (2, 1)
    assert followed.heard == [["alice: offline -> online"]]
    await followed.follower.resync()
    assert (followed.store.snapshots, followed.follower.resyncs) == (3, 2)


async def test_a_snapshot_that_fails_is_none(followed: Followed) -> None:
    await followed.follower.start()
    await followed.online("alice")
    followed.store.failures = [StoreUnavailableError("away")]
    with pytest.raises(StoreUnavailableError):
        await followed.follower.resync()
    assert (followed.follower.resyncs, followed.follower.position, followed.heard) == (0, 0, [])
    await followed.follower.resync()
    assert (followed.follower.resyncs, followed.follower.position) == (1, 1)


async def test_a_follower_is_loaded_by_any_snapshot(followed: Followed) -> None:
    await followed.online("alice")
    await followed.follower.resync()
    assert followed.follower.loaded


async def test_what_the_view_knows_and_the_store_has_lost_is_noted_and_stays(followed: Followed) -> None:
    ahead, gone = known("alice", 9), known("bob", 4, Status.OFFLINE)
    followed.view.load(Snapshot(1, (ahead, gone, known("carol", 1))))
    await followed.online("alice")
    await followed.online("carol")
    await followed.online("dave")
    await followed.follower.resync()
    assert followed.follower.lost == [ahead, gone]
    assert [followed.view.status("acme", user) for user in ("alice", "bob")] == [ahead, gone]
    assert followed.heard == [["dave: offline -> online"]]
    await followed.store.restore("n1", followed.follower.lost, 0)
    await followed.follower.resync()
    assert followed.follower.lost == []
