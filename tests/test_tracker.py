import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from conftest import STEP, TIMING, Clock, eventually

from gateway.errors import LeaseLostError, StoreUnavailableError
from gateway.presence import follower as follower_module
from gateway.presence import tracker as tracker_module
from gateway.presence.clock import SteadyClock
from gateway.presence.follower import Follower
from gateway.presence.model import Beat, Connection, Ending, UserStatus
from gateway.presence.record import Record
from gateway.presence.store import OUTAGE, Commit, Lease
from gateway.presence.store_memory import MemoryStore
from gateway.presence.tracker import Tracker
from gateway.presence.view import View
from gateway.runtime.tasks import end

LEASE = TIMING.lease


STATE = {"_records", "_leases", "_by_node", "_due", "_log", "_position"}
"""What of a memory store says what it knows."""


def _copy(record: Record) -> Record:
    """A copy of its own: what is compiled, `deepcopy` cannot make anew."""
    made = Record(record.status)
    for name in ("shown", "held", "due", "recent", "sessions", "opened"):
        setattr(made, name, deepcopy(getattr(record, name)))
    return made


class RecordingStore(MemoryStore):
    """A memory store that remembers what it was asked, and can be far, slow, away, or lose everything."""

    def __init__(self, *, near: bool = True) -> None:
        super().__init__(TIMING)
        self.near = near  # type: ignore[misc]  # as a class has it; here each has its own
        self.asked: list[str] = []
        self.times: list[tuple[int, int]] = []
        """Time and position of each renewal."""
        self.clock: int | None = None
        self.down = False
        self.failing = 0
        self.failing_at: str | None = None
        """What is asked for, once, before the store goes away."""
        self.answering_no_more = False
        """Commands are done, and the answer is lost."""
        self.slow: asyncio.Event | None = None
        self.sweeping: asyncio.Event | None = None
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """What happens before each command is done."""

    def forget(self) -> None:
        """Lose everything."""
        MemoryStore.__init__(self, TIMING)

    def save(self) -> dict[str, Any]:
        """All that it knows, to `fall_back` to."""
        saved = {name: deepcopy(getattr(self, name)) for name in STATE - {"_records"}}
        return {**saved, "_records": {key: _copy(record) for key, record in self._records.items()}}

    def fall_back(self, saved: dict[str, Any]) -> None:
        """Lose what came later, as in a failover."""
        for name, value in saved.items():
            setattr(self, name, value)

    async def _ask(self, *words: str) -> None:
        asked = " ".join(words)
        self.asked.append(asked)
        if self.meanwhile is not None:
            await self.meanwhile()
        if not self.near:
            await asyncio.sleep(0)  # a round trip
        if asked == self.failing_at:
            self.failing_at, self.down = None, True
        if self.down:
            raise StoreUnavailableError("down")

    async def _answer(self) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.answering_no_more:
            self.down = True
            raise StoreUnavailableError("no answer")

    async def time(self) -> int | None:
        if self.down:
            raise StoreUnavailableError("down")
        return self.clock

    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        await self._ask("renew", *(["returning"] if returning else []))
        self.times.append((now, position))
        if self.failing:
            self.failing -= 1
            raise ConnectionError("the store is away")
        return await super().renew(node, now, position=position, returning=returning)

    async def sweep(self, now: int) -> Commit:
        await self._ask("sweep")
        if self.sweeping is not None:
            await self.sweeping.wait()
        return await super().sweep(now)

    async def connections(self, node: str) -> Sequence[Connection]:
        await self._ask("connections")
        return await super().connections(node)

    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        await self._ask("restore", *(status.user_id for status in known))
        return await super().restore(node, known, now)

    async def connect(self, connection: Connection, now: int) -> Commit:
        await self._ask("connect", connection.id)
        commit = await super().connect(connection, now)
        await self._answer()
        return commit

    async def describe(self, connection: Connection) -> Commit:
        await self._ask("describe", connection.id)
        commit = await super().describe(connection)
        await self._answer()
        return commit

    async def disconnect(
        self, connection: Connection, ending: Ending, now: int, *, active_at: int | None = None
    ) -> Commit:
        await self._ask("disconnect", connection.id)
        commit = await super().disconnect(connection, ending, now, active_at=active_at)
        await self._answer()
        return commit

    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        await self._ask("beat", *(beat.user_id for beat in beats))
        commit = await super().beat(node, beats)
        await self._answer()
        return commit

    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        await self._ask("release", user_id)
        commit = await super().release(tenant, user_id, now)
        await self._answer()
        return commit


class Node:
    def __init__(self, clock: Clock, store: RecordingStore) -> None:
        self.clock, self.store, self.view = clock, store, View()
        self.heard: list[str] = []
        self.follower = Follower(
            store, self.view, [lambda news: self.heard.extend(f"{t.user_id} {t.event} ({t.reason})" for t in news)]
        )
        self.tracker = Tracker("n1", store, self.follower, clock, away_after=TIMING.away_after)

    def status(self, user: str) -> str:
        return self.view.status("acme", user).status.value

    async def registered(self) -> list[str]:
        return [connection.id for connection in await MemoryStore.connections(self.store, "n1")]

    async def lose_touch(self) -> None:
        """The store goes away, and a round of the tracker finds that out."""
        self.store.down = True
        with pytest.raises(StoreUnavailableError):
            await self.tracker.tick()
        self.store.asked.clear()

    async def come_back(self) -> list[str]:
        """The store is there again; return what the next round of the tracker asks it, but the sweep."""
        self.store.down = self.store.answering_no_more = False
        self.store.asked.clear()
        await self.tracker.tick()
        return [asked for asked in self.asked if asked != "sweep"]

    @property
    def asked(self) -> list[str]:
        """What the store was asked, without how the lease was prolonged meanwhile."""
        renewals = [index for index, asked in enumerate(self.store.asked) if asked.startswith("renew")]
        return [asked for index, asked in enumerate(self.store.asked) if index not in renewals[1:]]

    async def lose_lease(self) -> None:
        """Another node sweeps this one away."""
        self.clock.advance(ms=LEASE)
        await MemoryStore.sweep(self.store, self.clock())
        self.store.asked.clear()


@pytest.fixture(params=["near", "far"])
async def node(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Node]:
    """A node whose tracker has ticked once, and whose view follows the log."""
    node = Node(clock, RecordingStore(near=request.param == "near"))
    await node.tracker.tick()
    await node.follower.start()
    node.store.asked.clear()
    following = asyncio.create_task(node.follower.run())
    yield node
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def tab(name: str = "tab", user: str = "alice") -> Connection:
    return Connection(tenant="acme", user_id=user, id=name, node="n1", door="socketio", connected_at=0)


def beat(user: str, at: int, *, holds: bool = True, meta_json: bytes | None = None) -> Beat:
    return Beat(tenant="acme", user_id=user, at=at, holds=holds, meta_json=meta_json)


async def turns() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


# Commands


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
    await eventually(lambda: "beat bob" in node.store.asked)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(stays, STEP)
    assert (node.status("alice"), node.status("bob")) == ("online", "online")


async def test_a_command_that_is_committed_is_no_failure_though_the_view_does_not_show_it_yet(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "PATIENCE", 0.001)
    node = Node(clock, RecordingStore(near=False))  # whose log nobody follows
    await node.tracker.tick()
    commit = await asyncio.wait_for(node.tracker.connect(tab()), STEP)
    assert [t.reason for t in commit.transitions] == ["connected"]
    assert (node.tracker.away, node.status("alice")) == (None, "offline")


# The lease


async def test_a_tick_renews_before_it_sweeps_so_that_a_node_that_slept_keeps_its_users(node: Node) -> None:
    await node.tracker.connect(tab())
    node.store.asked.clear()
    node.clock.advance(s=80)
    await node.tracker.tick()
    assert node.store.asked == ["renew", "connections", "sweep"]  # once a minute it looks what the store has of it
    assert (await node.store.explain("acme", "alice")).connections == (tab(),)
    assert node.status("alice") == "online"


async def test_a_node_that_lost_its_lease_registers_its_connections_again(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.tracker.connect(tab("two", "bob"))
    await node.tracker.connect(tab("gone", "carol"))
    await node.tracker.disconnect(tab("gone", "carol"), Ending.GOODBYE)
    await node.lose_lease()
    await node.tracker.tick()
    assert node.asked == ["renew", "connections", "connect one", "connect two", "sweep"]
    assert (await node.store.explain("acme", "alice")).connections == (tab("one"),)


@pytest.mark.parametrize("command", ["connect", "disconnect"])
async def test_a_command_that_finds_the_lease_lost_gets_it_back_and_is_done(node: Node, command: str) -> None:
    await node.tracker.connect(tab("one"))
    await node.lose_lease()
    with pytest.raises(LeaseLostError):
        await MemoryStore.beat(node.store, "n1", [])
    if command == "connect":
        await node.tracker.connect(tab("two"))
        assert (await node.store.explain("acme", "alice")).connections == (tab("one"), tab("two"))
        given, again = "connect two", ["connect one", "connect two"]
    elif command == "disconnect":
        await node.tracker.disconnect(tab("one"), Ending.GOODBYE)
        assert (await node.store.explain("acme", "alice")).connections == ()
        given, again = "disconnect one", []
    else:
        await node.tracker.beat(beat("alice", node.clock(), holds=False))
        assert node.view.status("acme", "alice").active_at == node.clock()
        assert (await node.store.explain("acme", "alice")).connections == (tab("one"),)
        given, again = "beat alice", ["connect one"]
    assert node.asked == [given, "renew", "connections", *again, given]
    assert node.tracker.away is None


async def test_commands_that_find_the_lease_lost_are_done_after_the_connections_are_registered_again(
    clock: Clock,
) -> None:
    node = Node(clock, RecordingStore(near=False))
    await node.tracker.tick()
    await node.follower.start()
    following = asyncio.create_task(node.follower.run())
    names = [f"tab-{number}" for number in range(3)]
    for name in names:
        await node.tracker.connect(tab(name, user=name))
    await node.lose_lease()
    position = (await node.store.snapshot()).position
    await asyncio.gather(
        node.tracker.connect(tab("new", "dave")),
        node.tracker.beat(beat("erin", node.clock())),
        node.tracker.disconnect(tab("tab-0", "tab-0"), Ending.LOST),
        node.tracker.beat(beat("tab-1", node.clock(), holds=False)),
    )
    given = ["connect new", "beat erin", "disconnect tab-0", "beat tab-1"]
    assert node.asked[:9] == [*given, "renew", "connections", "connect tab-1", "connect tab-2", "connect new"]
    assert sorted(node.asked[9:]) == sorted(given)
    # Those that came back are no news; what was commanded is, once.
    entries = await node.store.read(position, wait=False)
    assert [entry.user_id for entry in entries] == ["dave", "erin", "tab-1"]
    assert await node.registered() == ["tab-1", "tab-2", "new"]
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def test_a_lease_that_is_lost_over_and_over_is_given_up_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    renew = node.store.renew

    async def renew_in_vain(name: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        lease = await renew(name, now, position=position, returning=returning)
        node.clock.advance(ms=LEASE)
        await MemoryStore.sweep(node.store, node.clock())
        return lease

    await node.lose_lease()
    monkeypatch.setattr(node.store, "renew", renew_in_vain)
    assert await node.tracker.beat(beat("alice", node.clock())) == Commit(0)
    assert node.store.asked.count("beat alice") == tracker_module.RETRIES + 1
    assert node.tracker.away == "node n1 holds no lease"
    monkeypatch.setattr(node.store, "renew", renew)
    await node.tracker.tick()  # and is done when it is over
    assert node.store.asked.count("beat alice") == tracker_module.RETRIES + 2
    assert node.tracker.away is None


async def test_a_connection_that_ends_while_its_lease_is_got_back_is_not_registered_after_all(node: Node) -> None:
    await node.lose_lease()
    async with node.tracker._recovering:  # as by a round that has much to register
        connecting = asyncio.create_task(node.tracker.connect(tab("late", "bob")))
        await eventually(lambda: "connect late" in node.store.asked)
        await node.tracker._recover()
        await node.tracker.disconnect(tab("late", "bob"), Ending.KICKED)
    assert await asyncio.wait_for(connecting, STEP) == Commit(0)
    assert await node.registered() == []


async def test_a_command_that_fails_by_a_mistake_leaves_the_store_to_be_looked_at_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.tracker.connect(tab())
    disconnect = node.store.disconnect

    async def fail(*_arguments: object, **_options: object) -> Commit:
        raise RuntimeError("a mistake of the store's")

    monkeypatch.setattr(node.store, "disconnect", fail)
    with pytest.raises(RuntimeError):
        await node.tracker.disconnect(tab(), Ending.GOODBYE)
    monkeypatch.setattr(node.store, "disconnect", disconnect)
    await node.tracker.tick()
    assert await node.registered() == []


async def test_a_connection_that_ends_while_the_node_registers_again_stays_ended(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.tracker.connect(tab("two", "bob"))
    await node.lose_lease()
    node.store.slow = asyncio.Event()
    ticking = asyncio.create_task(node.tracker.tick())
    await eventually(lambda: "connect one" in node.store.asked)
    ending = asyncio.create_task(node.tracker.disconnect(tab("two", "bob"), Ending.GOODBYE))
    await turns()
    node.store.slow.set()
    await asyncio.wait_for(asyncio.gather(ticking, ending), STEP)
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


async def test_rounds_go_on_while_the_store_is_away(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "SWEEP_INTERVAL", 0.001)
    node.store.failing_at = "renew"
    running = asyncio.create_task(node.tracker.run())
    await eventually(lambda: node.tracker.away)
    node.store.down = False
    await eventually(lambda: node.tracker.away is None)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_sweep_of_this_node_reaches_its_view(node: Node) -> None:
    await node.tracker.connect(tab())
    await node.tracker.disconnect(tab(), Ending.LOST)
    node.clock.advance(ms=TIMING.grace)
    await node.tracker.tick()
    await eventually(lambda: node.status("alice") == "offline")


# The clock


async def test_the_store_s_clock_is_taken_over_before_the_first_renewal() -> None:
    store, wall = RecordingStore(), [5_000_000_000]
    clock = SteadyClock(lambda: wall[0], lambda: wall[0])
    follower = Follower(store, View(), [])
    tracker = Tracker("n1", store, follower, clock, away_after=TIMING.away_after)
    store.clock = 70_000
    await tracker.tick()
    assert store.times == [(70_000, 0)]
    assert (tracker.now(), tracker.clock_offset) == (70_000, 65_000)
    wall[0] += 1_000_000_000
    store.clock = 71_000
    await tracker.tick()
    assert store.times[1:] == [(71_000, 0)]


async def test_a_store_without_a_clock_is_told_the_node_s_own(node: Node) -> None:
    await node.tracker.connect(tab())
    node.clock.advance(s=1)
    await node.tracker.tick()
    assert node.store.times == [(1_000_000, 0), (1_001_000, 1)]
    assert node.tracker.clock_offset == 0


# The store away


async def test_a_node_is_away_until_the_store_has_answered_and_ready_from_its_first_snapshot(clock: Clock) -> None:
    node = Node(clock, RecordingStore())
    assert (node.tracker.away, node.tracker.ready) == ("not connected to the store yet", False)
    node.store.down = True
    with pytest.raises(StoreUnavailableError):
        await node.tracker.tick()
    assert (node.tracker.away, node.tracker.ready) == ("down", False)
    node.store.down = False
    await node.tracker.tick()
    assert (node.tracker.away, node.tracker.ready) == (None, False)
    await node.follower.start()
    await node.lose_touch()
    assert (node.tracker.away, node.tracker.ready) == ("down", True)


async def test_a_renewal_says_whether_the_node_comes_back_and_where_it_is(clock: Clock) -> None:
    node = Node(clock, RecordingStore())
    await node.tracker.tick()
    await node.follower.start()
    assert node.store.asked[0] == "renew returning"
    position = (await node.tracker.connect(tab())).position
    node.store.asked.clear()
    await node.tracker.tick()
    assert (node.store.asked[0], node.store.times[-1][1]) == ("renew", position)
    await node.lose_touch()
    assert (await node.come_back())[0] == "renew returning"
    assert (await node.come_back())[0] == "renew"


async def test_while_the_store_is_away_commands_return_at_once_and_ask_it_nothing(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.lose_touch()
    commands: list[Callable[[], Awaitable[Commit]]] = [
        lambda: node.tracker.connect(tab("two", "bob")),
        lambda: node.tracker.disconnect(tab("one"), Ending.GOODBYE),
        lambda: node.tracker.beat(beat("carol", node.clock())),
        lambda: node.tracker.release("acme", "dave"),
    ]
    for command in commands:
        assert await asyncio.wait_for(command(), STEP) == Commit(0)
    assert node.store.asked == []
    assert (node.status("alice"), node.status("bob")) == ("online", "offline")


@pytest.mark.parametrize("answered", [True, False], ids=["not done", "done, and the answer was lost"])
async def test_a_command_that_finds_the_store_away_returns_and_is_so_when_it_is_back(
    node: Node, *, answered: bool
) -> None:
    async def go_away_at(command: Awaitable[Commit]) -> None:
        node.store.down, node.store.answering_no_more = answered, not answered
        assert await asyncio.wait_for(command, STEP) == Commit(0)
        assert node.tracker.away is not None

    await go_away_at(node.tracker.connect(tab()))
    assert ("connect tab" in await node.come_back()) == answered
    assert await node.registered() == ["tab"]
    await go_away_at(node.tracker.beat(beat("bob", node.clock())))
    assert "beat bob" in await node.come_back()
    assert await MemoryStore.beat(node.store, "n1", []) == Commit(2)
    await go_away_at(node.tracker.release("acme", "bob"))
    assert "release bob" in await node.come_back()
    await go_away_at(node.tracker.disconnect(tab(), Ending.GOODBYE))
    assert ("disconnect tab" in await node.come_back()) == answered
    assert await node.registered() == []
    await eventually(lambda: node.status("alice") == "offline" or answered)
    assert node.heard == [
        "alice user-online (connected)",
        "bob user-online (active)",
        "bob user-offline (released)",
        *([] if answered else ["alice user-offline (goodbye)"]),
    ]


async def test_a_connection_that_came_and_went_while_the_store_was_away_is_never_told(node: Node) -> None:
    await node.lose_touch()
    await node.tracker.connect(tab("stays"))
    await node.tracker.connect(tab("went", "bob"))
    await node.tracker.disconnect(tab("went", "bob"), Ending.GOODBYE)
    assert await node.come_back() == ["renew returning", "connections", "connect stays"]
    await eventually(lambda: node.heard)
    assert node.heard == ["alice user-online (connected)"]
    assert await node.come_back() == ["renew"]


@pytest.mark.parametrize("ending", Ending)
async def test_a_connection_that_ended_while_the_store_was_away_ends_with_a_grace_however_it_ended(
    node: Node, ending: Ending
) -> None:
    await node.tracker.connect(tab())
    await node.lose_touch()
    await node.tracker.disconnect(tab(), ending)
    node.clock.advance(ms=OUTAGE - 1)
    assert await node.come_back() == ["renew returning", "connections", "disconnect tab"]
    explanation = await node.store.explain("acme", "alice")
    assert (explanation.connections, explanation.grace_until) == ((), node.clock() + TIMING.grace)
    assert await node.come_back() == ["renew"]


async def test_a_connection_that_only_the_store_knows_of_ends_with_a_grace(node: Node) -> None:
    await node.tracker.connect(tab())
    await MemoryStore.connect(node.store, tab("stranger", "bob"), node.clock())
    await node.lose_touch()
    assert await node.come_back() == ["renew returning", "connections", "disconnect stranger"]
    assert (await node.store.explain("acme", "bob")).grace_until == node.clock() + TIMING.grace
    assert await node.registered() == ["tab"]


async def test_who_came_back_while_the_store_was_away_is_told_before_who_went(node: Node) -> None:
    await node.tracker.connect(tab("one"))
    await node.lose_touch()
    await node.tracker.disconnect(tab("one"), Ending.GOODBYE)
    await node.tracker.connect(tab("two"))
    assert await node.come_back() == ["renew returning", "connections", "connect two", "disconnect one"]
    assert [t.reason for t in (await node.store.explain("acme", "alice")).transitions] == ["connected"]


async def test_of_who_came_while_the_store_was_away_it_is_heard_later_that_something_waits(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = node.store.connect

    async def told(connection: Connection, now: int) -> Commit:
        commit = await connect(connection, now)
        return msgspec.structs.replace(commit, queued=connection.user_id == "alice")

    monkeypatch.setattr(node.store, "connect", told)
    found: list[str] = []
    node.tracker.found_queued = lambda connection: found.append(connection.user_id)
    assert (await node.tracker.connect(tab("one"))).queued
    assert found == [], "whoever connected knows it"
    await node.lose_touch()
    for name, user in (("two", "alice"), ("three", "bob")):
        assert (await node.tracker.connect(tab(name, user))).queued is None
    await node.come_back()
    assert found == ["alice"]


async def test_beats_while_the_store_was_away_are_one_for_each_user(node: Node) -> None:
    await node.tracker.connect(tab())
    await node.lose_touch()
    now = node.clock()
    await node.tracker.beat(beat("bob", now + 1, meta_json=b'{"a":1}'))
    await node.tracker.beat(beat("alice", now + 2, holds=False, meta_json=b"{}"))
    await node.tracker.beat(beat("bob", now + 3, holds=False))
    assert await node.come_back() == ["renew returning", "connections", "beat bob alice"]
    bob, alice = [(await node.store.explain("acme", user)).status for user in ("bob", "alice")]
    assert (bob.active_at, bob.meta_json, bob.ttl_until) == (now + 3, b'{"a":1}', now + 3 + TIMING.ttl)
    assert (alice.active_at, alice.meta_json, alice.ttl_until) == (now + 2, b"{}", None)
    assert await node.come_back() == ["renew"]


async def test_a_release_drops_the_beats_before_it_and_comes_before_those_after(node: Node) -> None:
    now = node.clock()
    for user in ("alice", "bob"):
        await node.tracker.beat(beat(user, now))
    await node.lose_touch()
    for user in ("alice", "bob", "carol"):
        await node.tracker.beat(beat(user, now + 1))
        await node.tracker.release("acme", user)
    await node.tracker.beat(beat("bob", now + 2))
    await node.tracker.beat(beat("bob", now + 3))
    asked = await node.come_back()
    assert asked == ["renew returning", "connections", "release alice", "release bob", "release carol", "beat bob"]
    await eventually(lambda: len(node.heard) == 5)
    assert node.heard[2:] == [
        "alice user-offline (released)",
        "bob user-offline (released)",
        "bob user-online (active)",
    ]
    assert node.view.status("acme", "bob").active_at == now + 3


async def test_what_is_to_be_told_is_told_in_pieces(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "CHUNK", 2)
    old, new = ([tab(f"{kind}-{number}", f"{kind}-{number}") for number in range(5)] for kind in ("old", "new"))
    for connection in old:
        await node.tracker.connect(connection)
    await node.lose_touch()
    for connection in old:
        await node.tracker.disconnect(connection, Ending.LOST)
    for connection in new:
        await node.tracker.connect(connection)
    for number in range(7):
        await node.tracker.beat(beat(f"user-{number}", node.clock()))
    asked = await node.come_back()
    assert [words for words in asked if words.startswith("beat")] == [
        "beat user-0 user-1",
        "beat user-2 user-3",
        "beat user-4 user-5",
        "beat user-6",
    ]
    assert await node.registered() == [connection.id for connection in new]
    assert sorted(status.user_id for status in (await node.store.snapshot()).statuses if status.online) == [
        *(f"new-{number}" for number in range(5)),
        *(f"old-{number}" for number in range(5)),  # for their grace
        *(f"user-{number}" for number in range(7)),
    ]


async def test_what_happens_while_the_store_is_told_is_told_as_well(node: Node) -> None:
    await node.tracker.connect(tab("ends", "erin"))
    await node.lose_touch()
    now = node.clock()
    await node.tracker.connect(tab("one"))
    await node.tracker.beat(beat("bob", now))
    await node.tracker.beat(beat("carol", now))
    node.store.slow = asyncio.Event()
    coming_back = asyncio.create_task(node.come_back())
    await eventually(lambda: "connect one" in node.store.asked)
    await node.tracker.connect(tab("two", "dave"))
    await node.tracker.disconnect(tab("one"), Ending.KICKED)
    await node.tracker.disconnect(tab("ends", "erin"), Ending.KICKED)
    await node.tracker.beat(beat("bob", now + 5))
    await node.tracker.release("acme", "carol")
    node.store.slow.set()
    await asyncio.wait_for(coming_back, STEP)
    assert node.tracker.away is None
    assert await node.registered() == ["two"]
    transitions = {
        user: [t.reason for t in (await node.store.explain("acme", user)).transitions]
        for user in ("alice", "bob", "carol", "dave", "erin")
    }
    assert transitions == {
        "alice": ["connected"],
        "bob": ["active"],
        "carol": ["active", "released"],
        "dave": ["connected"],
        "erin": ["connected"],
    }
    for user in ("alice", "erin"):
        assert (await node.store.explain("acme", user)).grace_until == now + TIMING.grace
    assert (await node.store.explain("acme", "bob")).status.active_at == now + 5


async def test_a_node_keeps_its_lease_while_a_sweep_takes_longer_than_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "SWEEP_INTERVAL", 0.001)
    node.store.sweeping = asyncio.Event()
    running = asyncio.create_task(node.tracker.run())
    await eventually(lambda: "sweep" in node.store.asked)
    for _ in range(3):
        node.clock.advance(ms=LEASE - 1)
        before = node.store.asked.count("renew")
        await eventually(lambda before=before: node.store.asked.count("renew") > before + 1)  # type: ignore[misc]
    assert node.store.asked.count("sweep") == 1
    assert "connections" not in node.store.asked  # the lease was never lost
    node.store.sweeping.set()
    await eventually(lambda: node.store.asked.count("sweep") > 1)
    await end([running])


async def test_a_node_keeps_its_lease_while_a_slow_store_is_told(node: Node) -> None:
    await node.lose_touch()
    await node.tracker.connect(tab("one"))

    async def a_slow_round_trip_and_another_node_s_sweep() -> None:
        node.clock.advance(ms=LEASE // 6)
        await MemoryStore.sweep(node.store, node.clock())

    async def a_tab_opens_each_time() -> None:
        await a_slow_round_trip_and_another_node_s_sweep()
        if node.store.asked[-1].startswith("connect ") and len(node.store.asked) < 30:
            await node.tracker.connect(tab(f"tab-{len(node.store.asked)}", "bob"))

    node.store.meanwhile = a_tab_opens_each_time
    await node.come_back()
    node.store.meanwhile = None
    assert len(node.store.asked) > 30
    assert node.tracker.away is None
    assert len(await node.registered()) == sum(asked.startswith("connect ") for asked in node.store.asked)
    assert [transition.reason for transition in (await node.store.explain("acme", "alice")).transitions] == [
        "connected"
    ]


async def test_a_lease_that_is_lost_while_the_store_is_told_is_no_lease_though_it_can_be_had_again(node: Node) -> None:
    await node.lose_touch()
    await node.tracker.connect(tab("one"))
    await node.tracker.connect(tab("two", "bob"))

    async def another_node_sweeps_late() -> None:
        if node.store.asked[-1] == "renew":
            node.store.meanwhile = None
            await node.lose_lease()

    node.store.meanwhile = another_node_sweeps_late
    with pytest.raises(LeaseLostError):
        await node.come_back()
    await node.come_back()
    assert (await node.registered(), node.tracker.away) == (["one", "two"], None)


async def test_a_beat_that_is_given_while_another_of_its_user_is_told_is_told_after_it(node: Node) -> None:
    await node.lose_touch()
    now = node.clock()
    await node.tracker.beat(beat("alice", now, meta_json=b'{"a":1}'))
    node.store.slow = asyncio.Event()
    coming_back = asyncio.create_task(node.come_back())
    await eventually(lambda: "beat alice" in node.store.asked)
    await node.tracker.beat(beat("alice", now + 5))
    node.store.slow.set()
    asked = await asyncio.wait_for(coming_back, STEP)
    assert asked == ["renew returning", "connections", "beat alice", "beat alice"]
    alice = (await node.store.explain("acme", "alice")).status
    assert (alice.active_at, alice.meta_json) == (now + 5, b'{"a":1}')


async def test_after_the_store_was_away_sweeps_wait_until_the_other_nodes_have_had_their_say(node: Node) -> None:
    await node.tracker.tick()
    assert "sweep" in node.store.asked
    await node.lose_touch()
    await node.come_back()
    assert "sweep" not in node.store.asked
    node.clock.advance(ms=OUTAGE - 1)
    await node.tracker.tick()
    assert "sweep" not in node.store.asked
    node.clock.advance(ms=1)
    await node.tracker.tick()
    assert node.store.asked[-1] == "sweep"


async def test_a_node_that_starts_sweeps_at_once(clock: Clock) -> None:
    node = Node(clock, RecordingStore())
    await node.tracker.tick()
    assert node.store.asked == ["renew returning", "connections", "sweep"]


@pytest.mark.parametrize(
    "failing_at", ["renew returning", "connections", "connect new", "release carol", "beat bob", "disconnect old"]
)
async def test_a_store_that_goes_away_while_it_is_told_is_told_again(node: Node, failing_at: str) -> None:
    await node.tracker.connect(tab("old", "erin"))
    await node.tracker.beat(beat("carol", node.clock()))
    await node.lose_touch()
    await node.tracker.connect(tab("new"))
    await node.tracker.disconnect(tab("old", "erin"), Ending.KICKED)
    await node.tracker.beat(beat("bob", node.clock()))
    await node.tracker.release("acme", "carol")
    node.store.failing_at = failing_at
    with pytest.raises(StoreUnavailableError):
        await node.come_back()
    assert node.tracker.away == "down"
    await node.come_back()
    assert node.tracker.away is None
    assert await node.registered() == ["new"]
    await eventually(lambda: len(node.heard) == 5)
    assert sorted(node.heard) == [
        "alice user-online (connected)",
        "bob user-online (active)",
        "carol user-offline (released)",
        "carol user-online (active)",
        "erin user-online (connected)",
    ]
    assert (await node.store.explain("acme", "erin")).grace_until is not None
    assert await node.come_back() == ["renew"]


async def test_what_a_connection_says_of_itself_is_told_when_the_store_is_back(node: Node) -> None:
    await node.tracker.connect(tab())
    await node.tracker.connect(tab("other"))
    await node.lose_touch()
    said = msgspec.structs.replace(tab(), meta_json=b'{"page":"inbox"}')
    await node.tracker.describe(said)
    assert node.store.asked == []
    assert await node.come_back() == ["renew returning", "connections", "describe tab"]
    assert list(await MemoryStore.connections(node.store, "n1")) == [said, tab("other")]
    node.store.asked.clear()
    await node.tracker.describe(tab())
    await node.tracker.describe(tab("a stranger's"))
    assert node.store.asked == ["describe tab"]
    assert list(await MemoryStore.connections(node.store, "n1")) == [tab(), tab("other")]


async def test_what_a_connection_says_of_itself_is_told_again_where_that_failed(node: Node) -> None:
    await node.tracker.connect(tab())
    node.store.failing_at = "describe tab"
    said = msgspec.structs.replace(tab(), meta_json=b'{"page":"inbox"}')
    await node.tracker.describe(said)
    assert await node.come_back() == ["renew returning", "connections", "describe tab"]
    assert list(await MemoryStore.connections(node.store, "n1")) == [said]


@pytest.mark.parametrize("failing_at", ["connections", "connect one"])
async def test_a_store_that_goes_away_while_connections_are_registered_again_is_told_again(
    node: Node, failing_at: str
) -> None:
    for name, user in (("one", "alice"), ("two", "bob")):
        await node.tracker.connect(tab(name, user))
    await node.lose_lease()
    node.store.failing_at = failing_at
    assert await node.tracker.beat(beat("carol", node.clock())) == Commit(0)
    assert (node.tracker.away, await node.registered()) == ("down", [])
    await node.come_back()
    assert await node.registered() == ["one", "two"]
    await eventually(lambda: node.status("carol") == "online")


# A store that lost something


@pytest.fixture
async def alone(clock: Clock) -> Node:
    """A node that has started, and whose view is brought further by its commands alone."""
    node = Node(clock, RecordingStore())
    await node.tracker.tick()
    await node.follower.start()
    return node


async def test_what_the_store_lost_is_given_back_before_connections_are_registered_again(alone: Node) -> None:
    await alone.tracker.connect(tab("one"))
    await alone.tracker.connect(tab("two", "bob"))
    await alone.tracker.disconnect(tab("two", "bob"), Ending.KICKED)
    before = {user: alone.view.status("acme", user) for user in ("alice", "bob")}
    alone.store.forget()
    alone.heard.clear()
    assert await alone.come_back() == ["renew", "restore alice bob", "connections", "connect one"]
    assert {status.user_id: status for status in (await alone.store.snapshot()).statuses} == before
    assert (await alone.store.explain("acme", "alice")).grace_until is None
    await alone.tracker.connect(tab("three", "carol"))
    assert alone.heard == ["carol user-online (connected)"]
    assert alone.follower.resyncs == 1
    assert await alone.come_back() == ["renew"]


@pytest.mark.parametrize("failing_at", ["restore alice", "connections", "connect one"])
async def test_what_could_not_be_given_back_is_given_back_later(alone: Node, failing_at: str) -> None:
    await alone.tracker.beat(beat("alice", alone.clock()))
    await alone.tracker.release("acme", "alice")
    await alone.tracker.connect(tab("one"))
    alone.heard.clear()
    alone.store.forget()
    alone.store.failing_at = failing_at
    with pytest.raises(StoreUnavailableError):
        await alone.come_back()
    await alone.come_back()
    assert await alone.registered() == ["one"]
    assert alone.status("alice") == "online"
    assert [(s.user_id, s.version) for s in (await alone.store.snapshot()).statuses] == [("alice", 3)]
    assert alone.heard == []
    assert await alone.come_back() == ["renew"]


async def test_a_command_that_finds_that_the_store_lost_everything_is_done_after_it_was_given_back(
    alone: Node,
) -> None:
    await alone.tracker.connect(tab("one"))
    alone.store.forget()
    alone.store.asked.clear()
    await alone.tracker.connect(tab("two", "bob"))
    assert alone.asked == [
        "connect two",
        "renew",
        "restore alice",
        "connections",
        "connect one",
        "connect two",
        "connect two",
    ]
    assert alone.heard == ["alice user-online (connected)", "bob user-online (connected)"]


async def test_a_connection_that_the_store_lost_while_it_kept_the_lease_is_registered_again(alone: Node) -> None:
    await alone.tracker.connect(tab("one"))
    saved = alone.store.save()
    await alone.tracker.connect(tab("two"))
    await alone.tracker.connect(tab("three", "bob"))
    alone.store.fall_back(saved)
    assert await alone.come_back() == ["renew", "restore bob", "connections", "connect two", "connect three"]
    assert await alone.registered() == ["one", "two", "three"]
    assert alone.heard == ["alice user-online (connected)", "bob user-online (connected)"]
    assert await alone.come_back() == ["renew"]


async def test_a_connection_that_the_store_has_again_though_it_ended_is_ended_again(alone: Node) -> None:
    await alone.tracker.connect(tab("one"))
    await alone.tracker.connect(tab("two"))
    saved = alone.store.save()
    await alone.tracker.disconnect(tab("two"), Ending.GOODBYE)
    await alone.tracker.beat(beat("bob", alone.clock()))
    alone.store.fall_back(saved)
    assert await alone.come_back() == ["renew", "restore bob", "connections", "disconnect two"]
    assert await alone.registered() == ["one"]
    assert await alone.come_back() == ["renew"]


# Activity that changes nothing else


async def online(node: Node, user: str = "alice") -> int:
    """Let a user come online, and some time pass; return when it is."""
    await node.tracker.connect(tab(user, user))
    node.store.asked.clear()
    node.clock.advance(ms=1_500)
    return node.clock()


async def test_a_touch_is_in_the_view_at_once_and_in_the_store_with_a_later_round(node: Node) -> None:
    now = await online(node)
    assert node.tracker.touches.touch("acme", "alice", now) == now
    assert node.view.status("acme", "alice").active_at == now
    await node.tracker.tick()
    assert (await node.store.explain("acme", "alice")).status.active_at == now - 1_500
    node.clock.advance(ms=tracker_module.TOUCH_INTERVAL)
    await node.tracker.tick()
    assert (await node.store.explain("acme", "alice")).status.active_at == now
    assert node.store.asked.count("beat alice") == 1


async def test_many_touches_are_one_beat_for_each_user(node: Node) -> None:
    await online(node)
    now = await online(node, "bob")
    for later in range(5):
        assert node.tracker.touches.touch("acme", "alice", now + later) == now + later
    node.tracker.touches.touch("acme", "bob", now)
    assert node.tracker.touches.touch("acme", "bob", now - 10) == now  # what was later stays
    node.clock.advance(ms=tracker_module.TOUCH_INTERVAL)
    await node.tracker.tick()
    assert [asked for asked in node.store.asked if asked.startswith("beat")] == ["beat alice bob"]
    assert (await node.store.explain("acme", "alice")).status.active_at == now + 4


async def test_activity_that_may_change_more_is_no_touch(node: Node) -> None:
    assert node.tracker.touches.touch("acme", "alice", node.clock()) is None  # nobody knows the user
    now = await online(node)
    assert (
        node.tracker.touches.touch("acme", "alice", now - 1_500 + TIMING.away_after // 2) is None
    )  # soon away, perhaps
    node.clock.advance(ms=TIMING.away_after)
    await node.tracker.tick()
    await eventually(lambda: node.status("alice") == "away")
    assert node.tracker.touches.touch("acme", "alice", node.clock()) is None
    await node.tracker.disconnect(tab("alice"), Ending.GOODBYE)
    assert node.tracker.touches.touch("acme", "alice", node.clock()) is None


async def test_who_leaves_was_last_active_when_they_were_touched(node: Node) -> None:
    now = await online(node)
    node.tracker.touches.touch("acme", "alice", now)
    node.clock.advance(ms=10)
    await node.tracker.disconnect(tab("alice"), Ending.LOST)
    assert node.view.status("acme", "alice").active_at == now
    assert (await node.store.explain("acme", "alice")).status.active_at == now


async def test_of_two_that_end_in_one_moment_the_last_decides_whenever_their_user_was_active(node: Node) -> None:
    now = await online(node)
    await node.tracker.connect(tab("two", "alice"))
    node.tracker.touches.touch("acme", "alice", now)
    await asyncio.gather(
        node.tracker.disconnect(tab("alice"), Ending.GOODBYE), node.tracker.disconnect(tab("two", "alice"), Ending.LOST)
    )
    assert node.status("alice") == "online"  # in the grace of a lost connection


async def test_who_left_while_the_store_was_away_was_last_active_when_they_were_touched(node: Node) -> None:
    now = await online(node)
    node.tracker.touches.touch("acme", "alice", now)
    await node.lose_touch()
    await node.tracker.disconnect(tab("alice"), Ending.LOST)
    await node.come_back()
    assert (await node.store.explain("acme", "alice")).status.active_at == now


async def test_who_is_released_was_last_active_when_they_were_touched(node: Node) -> None:
    now = await online(node)
    node.tracker.touches.touch("acme", "alice", now)
    await node.tracker.disconnect(tab("alice"), Ending.LOST)
    await node.tracker.release("acme", "alice")
    status = (await node.store.explain("acme", "alice")).status
    assert (status.status.value, status.active_at) == ("offline", now)


async def test_a_beat_tells_of_the_touches_before_it(node: Node) -> None:
    now = await online(node)
    node.tracker.touches.touch("acme", "alice", now)
    await node.tracker.beat(beat("alice", now + 5, meta_json=b"{}"))
    node.clock.advance(ms=tracker_module.TOUCH_INTERVAL)
    await node.tracker.tick()
    assert [asked for asked in node.store.asked if asked.startswith("beat")] == ["beat alice"]


async def test_touches_while_the_store_is_away_are_told_when_it_is_back(node: Node) -> None:
    now = await online(node)
    await node.lose_touch()
    assert node.tracker.touches.touch("acme", "alice", now) == now
    assert node.view.status("acme", "alice").active_at == now
    node.clock.advance(ms=tracker_module.TOUCH_INTERVAL)
    await node.come_back()
    node.clock.advance(ms=tracker_module.TOUCH_INTERVAL)
    await node.tracker.tick()
    assert (await node.store.explain("acme", "alice")).status.active_at == now
