import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest
from conftest import STEP, TIMING, Clock, eventually

from gateway.errors import LeaseLostError
from gateway.presence import tracker as tracker_module
from gateway.presence.follower import Follower
from gateway.presence.model import Beat, Connection, Ending
from gateway.presence.store import Commit
from gateway.presence.store_memory import MemoryStore
from gateway.presence.tracker import Tracker
from gateway.presence.view import View

LEASE = TIMING.lease


class RecordingStore(MemoryStore):
    """A memory store that remembers what it was asked, and can be slow or out of order."""

    def __init__(self) -> None:
        super().__init__(TIMING)
        self.asked: list[str] = []
        self.slow: asyncio.Event | None = None
        self.failing = 0

    async def renew(self, node: str, now: int) -> bool:
        self.asked.append("renew")
        if self.failing:
            self.failing -= 1
            raise ConnectionError("the store is away")
        return await super().renew(node, now)

    async def sweep(self, now: int) -> Commit:
        self.asked.append("sweep")
        return await super().sweep(now)

    async def connect(self, connection: Connection, now: int) -> Commit:
        self.asked.append(f"connect {connection.id}")
        commit = await super().connect(connection, now)
        if self.slow is not None:
            await self.slow.wait()
        return commit

    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        self.asked.append(f"beat {' '.join(beat.user_id for beat in beats)}")
        return await super().beat(node, beats)


class Node:
    def __init__(self, clock: Clock, store: RecordingStore) -> None:
        self.clock, self.store, self.view = clock, store, View()
        self.follower = Follower(store, self.view, [])
        self.tracker = Tracker("n1", store, self.follower, clock)

    def status(self, user: str) -> str:
        return self.view.status("acme", user).status.value


@pytest.fixture
async def node(clock: Clock) -> AsyncIterator[Node]:
    """A node whose tracker has ticked once, and whose view follows the log."""
    node = Node(clock, RecordingStore())
    await node.tracker.tick()
    node.store.asked.clear()
    following = asyncio.create_task(node.follower.run())
    yield node
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def tab(name: str = "tab", user: str = "alice") -> Connection:
    return Connection(tenant="acme", user_id=user, id=name, node="n1", door="socketio", connected_at=0)


def beat(user: str, at: int, *, holds: bool = True) -> Beat:
    return Beat(tenant="acme", user_id=user, at=at, holds=holds)


async def test_a_command_returns_once_the_view_shows_its_effect(node: Node) -> None:
    commit = await node.tracker.connect(tab())
    assert ([t.reason for t in commit.transitions], node.status("alice")) == (["connected"], "online")
    await node.tracker.disconnect(tab(), Ending.GOODBYE)
    assert node.status("alice") == "offline"
    await node.tracker.beat(beat("alice", node.clock()))
    assert node.status("alice") == "online"
    await node.tracker.release("acme", "alice")
    assert node.status("alice") == "offline"


async def test_commands_carry_the_clock_s_time(node: Node) -> None:
    node.clock.advance(s=3)
    commit = await node.tracker.connect(tab())
    assert commit.transitions[0].at == 1_003_000


async def test_a_beat_is_in_the_view_when_it_returns(node: Node) -> None:
    await asyncio.gather(*(node.tracker.beat(beat(user, 1_000_000)) for user in ("alice", "bob", "carol")))
    assert node.view.online_count("acme") == 3


async def test_who_gives_up_waiting_for_a_beat_stops_nobody_else_s(node: Node) -> None:
    gone = asyncio.create_task(node.tracker.beat(beat("alice", 1_000_000)))
    stays = asyncio.create_task(node.tracker.beat(beat("bob", 1_000_000)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(stays, STEP)
    assert (node.status("alice"), node.status("bob")) == ("online", "online")


async def test_a_tick_renews_before_it_sweeps_so_that_a_node_that_slept_keeps_its_users(node: Node) -> None:
    await node.tracker.connect(tab())
    node.store.asked.clear()
    node.clock.advance(s=80)
    await node.tracker.tick()
    assert node.store.asked == ["renew", "sweep"]
    assert (await node.store.explain("acme", "alice")).connections == (tab(),)
    assert node.status("alice") == "online"


async def test_a_node_that_lost_its_lease_registers_its_connections_again(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.tracker.connect(tab("two", "bob"))
    await node.tracker.connect(tab("gone", "carol"))
    await node.tracker.disconnect(tab("gone", "carol"), Ending.GOODBYE)
    node.clock.advance(ms=LEASE)
    await node.store.sweep(node.clock())  # by another node
    node.store.asked.clear()
    await node.tracker.tick()
    assert node.store.asked == ["renew", "connect one", "connect two", "sweep"]
    assert (await node.store.explain("acme", "alice")).connections == (tab("one"),)


@pytest.mark.parametrize("command", ["connect", "disconnect", "beat"])
async def test_a_command_that_finds_the_lease_lost_gets_it_back_and_is_done(node: Node, command: str) -> None:
    await node.tracker.connect(tab("one"))
    node.clock.advance(ms=LEASE)
    await node.store.sweep(node.clock())
    with pytest.raises(LeaseLostError):
        await node.store.beat("n1", [])
    if command == "connect":
        await node.tracker.connect(tab("two"))
        assert (await node.store.explain("acme", "alice")).connections == (tab("one"), tab("two"))
    elif command == "disconnect":
        await node.tracker.disconnect(tab("one"), Ending.GOODBYE)
        assert (await node.store.explain("acme", "alice")).connections == ()
    else:
        await node.tracker.beat(beat("alice", node.clock(), holds=False))
        assert node.view.status("acme", "alice").active_at == node.clock()
        assert (await node.store.explain("acme", "alice")).connections == (tab("one"),)


async def test_a_connection_that_ends_while_the_node_registers_again_stays_ended(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.tracker.connect(tab("two", "bob"))
    node.clock.advance(ms=LEASE)
    await node.store.sweep(node.clock())
    node.store.slow = asyncio.Event()
    ticking = asyncio.create_task(node.tracker.tick())
    await eventually(lambda: node.store.asked[-1] == "connect one")
    await node.tracker.disconnect(tab("two", "bob"), Ending.GOODBYE)
    node.store.slow.set()
    await asyncio.wait_for(ticking, STEP)
    assert (await node.store.explain("acme", "bob")).connections == ()
    assert (await node.store.explain("acme", "alice")).connections == (tab("one"),)


async def test_a_failing_round_is_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "SWEEP_INTERVAL", 0.001)
    node.store.failing = 2
    running = asyncio.create_task(node.tracker.run())
    await eventually(lambda: "sweep" in node.store.asked)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert node.store.asked[:4] == ["renew", "renew", "renew", "sweep"]


async def test_a_sweep_of_this_node_reaches_its_view(node: Node) -> None:
    await node.tracker.connect(tab())
    await node.tracker.disconnect(tab(), Ending.LOST)
    node.clock.advance(ms=TIMING.grace)
    await node.tracker.tick()
    await eventually(lambda: node.status("alice") == "offline")
