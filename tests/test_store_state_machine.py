"""Drives a store with whatever Hypothesis thinks of, beside a few lines of plain Python that say what must come out.

Nodes have clocks of their own that disagree by seconds. The model repeats the rules of presence in its own words,
and shares none with the gateway.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stores import STORES, MakeStore

from gateway.errors import LeaseLostError
from gateway.presence.model import (
    NOBODY,
    Activity,
    Beat,
    Choice,
    Chosen,
    Connection,
    Ending,
    Entry,
    PrivateChange,
    Profile,
    Retention,
    Timing,
    Transition,
    parted,
)
from gateway.presence.store import Commit, Store
from gateway.presence.view import View

PROFILE = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)

START = 1_000_000
NODES = ("n0", "n1", "n2")
TENANTS = ("acme", "other")
USERS = ("alice", "bob", "carol")
RETENTION = Retention(sessions=4, sessions_ttl=10**12)
TIMINGS = (
    Timing(away_after=90_000, ttl=120_000, grace=5_000, lease=10_000, retention=RETENTION),
    Timing(away_after=30_000, ttl=7_000, grace=0, drain_grace=4_000, lease=10_000, retention=RETENTION),
    Timing(away_after=8_000, ttl=20_000, grace=40_000, lease=3_000, retention=RETENTION),
)
VIEWS = 4
"""How many snapshots of one run are followed to its end."""

Key = tuple[str, str]
_Result = TypeVar("_Result")

nodes = st.sampled_from(NODES)
keys = st.one_of(st.just(("acme", "alice")), st.tuples(st.sampled_from(TENANTS), st.sampled_from(USERS)))
"""Half of what happens happens to one user, so that much happens to somebody."""
tabs = st.sampled_from(("tab", "other tab"))
numbers = st.integers(0, 9)
picks = st.integers(0, 99)
"""One of what there is, counted around."""
endings = st.sampled_from(Ending)
choices = st.sampled_from((*Chosen, Chosen.INVISIBLE, Chosen.INVISIBLE))
texts = st.sampled_from((None, "lunch", "Zmittag ☕"))
BY_HAND = {"away", "busy", "dnd"}
steps = st.one_of(
    st.sampled_from((1, 999, 1_000, 3_000, 4_000, 4_999, 5_000, 7_000, 8_000, 10_000, 15_000, 30_000, 90_000, 120_000)),
    st.integers(1, 10_000),
    st.integers(1, 130_000),
)
pulses = st.fixed_dictionaries(
    {"key": keys, "holds": st.booleans(), "age": st.integers(0, 500)},
    optional={
        "meta": st.builds(lambda n: b'{"n":%d}' % n, numbers),
        "profile": st.builds(lambda n: Profile(name=f"{n}"), numbers),
    },
)


@dataclass
class Standstill:
    """When nobody could reach the store."""

    begin: int = 0
    end: int = 0
    """Nothing that had not run out before it runs out until then."""
    missing: int = 0
    """Until when nodes may know of connections that the store does not."""

    def late(self, time: int) -> int:
        return max(time, self.end) if time >= self.begin else time


@dataclass
class User:
    """What must be so of one user."""

    standstill: Standstill = field(default_factory=Standstill)
    tabs: set[tuple[str, str]] = field(default_factory=set)
    """Node and tab of each live connection."""
    grace: int = 0
    meant: bool = False
    """Whether the grace runs only since connections may be missing."""
    lost: int = 0
    """When a tab was lost last while others were there."""
    ttl: int = 0
    online: bool = False
    since: int | None = None
    active_at: int | None = None
    meta: bytes | None = None
    profile: Profile = NOBODY
    known: bool = False
    chosen: str = "online"
    text: str | None = None
    until: int | None = None
    shown: tuple[int | None, bytes | None, Profile] | None = None
    """What others see of one who is invisible: last seen, what the last heartbeat said, and who it is."""

    sessions: list[tuple[int, int | None, int]] = field(default_factory=list)
    """From, to, and how many tabs were opened in each."""
    looked_at: int = 0
    """How many of them there were when they were looked at, an end counting as one more."""

    def pass_time(self, now: int, *, swept: bool = False) -> None:
        """Whoever nothing holds any more is offline; what was set until now is not set any more."""
        looked_at = self.online or not swept
        if not self.tabs and now >= max(self.grace_end(), self.standstill.late(self.ttl) if self.ttl else 0):
            if self.online:
                begun, _, opened = self.sessions[-1]
                self.sessions[-1] = begun, now, opened
            self.online, self.since, self.lost, self.ttl = False, None, 0, 0
            self.grace, self.meant = 0, False
        if looked_at and self.until is not None and now >= self.until:
            self.choose("online", None, None, now)

    def grace_end(self) -> int:
        if self.meant and self.grace >= self.standstill.begin:
            return max(self.grace, self.standstill.missing)
        return self.standstill.late(self.grace) if self.grace and not self.meant else self.grace

    def choose(self, chosen: str, text: str | None, until: int | None, now: int) -> None:
        if (chosen, text, until) == (self.chosen, self.text, self.until):
            return
        self.chosen, self.text, self.until, self.known = chosen, text, until, True
        if chosen == "invisible" and self.shown is None:
            if self.online:
                self.act(now)
            self.shown = self.active_at, self.meta, self.profile
        elif chosen != "invisible" and self.shown is not None:
            if self.online:
                self.since = now
                self.act(now)
            else:
                self.active_at, self.meta, self.profile = self.shown
            self.shown = None

    def appear(self, now: int, *, late: bool = False) -> None:
        """`late` where the store may hear of it after they have gone: then they come after that."""
        self.known = True
        if not self.online:
            ended = self.sessions[-1][1] if late and self.sessions else None
            self.online, self.since = True, max(now, ended or 0)
            self.sessions.append((self.since, None, 0))
            self.act(now)

    def away(self, timing: Timing) -> tuple[int, ...]:
        """When the user turns away."""
        return () if self.active_at is None else (self.active_at + timing.away_after,)

    def act(self, at: int) -> None:
        self.active_at = max(self.active_at or 0, at)

    def lose(self, node: str, tab: str, at: int, hold: int, *, meant: bool) -> None:
        self.tabs.remove((node, tab))
        hold = max(hold, self.standstill.missing - at)
        if not self.tabs:
            self.grace, self.meant = (max(at, self.lost) + hold, meant) if hold > 0 else (0, False)
        elif hold > 0:
            self.lost = max(self.lost, at)


class StoreMachine(RuleBasedStateMachine):
    """One store, used by three nodes."""

    make_store: MakeStore
    redis_url: str

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    @initialize(
        timing=st.sampled_from(TIMINGS),
        skews=st.tuples(*[st.one_of(st.just(0), st.integers(-4_000, 4_000))] * len(NODES)),
    )
    def begin(self, timing: Timing, skews: tuple[int, ...]) -> None:
        self.timing = timing
        self.skew = dict(zip(NODES, skews, strict=True))
        self.opened = self.make_store(timing, 100_000, self.redis_url)
        self.store: Store = self.run(self.opened.__aenter__())
        self.real = START
        self.latest = START
        """The latest that any clock has said."""
        self.standstill = Standstill()
        self.attended = 0
        """When any node renewed last."""
        self.users: dict[Key, User] = {(tenant, user): User(self.standstill) for tenant in TENANTS for user in USERS}
        self.leases: dict[str, int] = {}
        self.running = set(NODES)
        self.log: list[Entry] = []
        self.views = [View()]
        self.swept_at: int | None = None
        self.checked = self.position = 0
        self.before: dict[Key, tuple[str, str | None, int]] = {}
        self.renew_running()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.opened.__aexit__(None, None, None))
        self.loop.close()

    def run(self, command: Awaitable[_Result]) -> _Result:
        return self.loop.run_until_complete(command)

    def clock(self, node: str) -> int:
        now = self.real + self.skew[node]
        self.latest = max(self.latest, now)
        return now

    def commit(self, node: str, command: Awaitable[Commit]) -> Commit | None:
        """What a command of a node committed; None where it rightly was refused."""
        try:
            commit = self.run(command)
        except LeaseLostError:
            assert node not in self.leases
            return None
        assert node in self.leases
        self.check(commit)
        return commit

    def check(self, commit: Commit) -> None:
        """The commit tells just what it put on the log."""
        known = self.log[-1].position if self.log else 0
        entries = self.run(self.store.read(known, wait=False))
        self.log.extend(entries)
        assert [entry for entry in entries if isinstance(entry, Transition)] == list(commit.transitions)
        assert commit.position == (self.log[-1].position if self.log else 0)
        for view in self.views:
            view.apply(entries)
            view.apply(entries[-2:])  # applying twice changes nothing

    def connection(self, key: Key, node: str, tab: str, number: int = 0) -> Connection:
        return Connection(
            tenant=key[0],
            user_id=key[1],
            id=f"{key}/{node}/{tab}",
            node=node,
            door="websocket",
            connected_at=START,
            profile=Profile(name=str(number)),
        )

    def renew_running(self) -> None:
        for node in sorted(self.running):
            self.renew(node)

    def renew(self, node: str, *, returning: bool = False) -> None:
        now, position = self.clock(node), self.log[-1].position if self.log else 0
        lease = self.run(self.store.renew(node, now, position=position, returning=returning))
        assert lease.held == (node in self.leases)
        assert lease.log_continues
        self.leases[node] = max(self.leases.get(node, 0), now + self.timing.lease)
        if returning and now - self.attended >= 1_000:
            still, attended = self.standstill, self.attended
            still.begin = min(still.begin, attended) if attended < still.end else attended
            still.end, still.missing = now + self.timing.lease, max(still.missing, now + 2_500)
        self.attended = max(self.attended, now)

    # What happens

    @rule(key=keys, node=nodes, tab=tabs, number=numbers)
    def connect(self, key: Key, node: str, tab: str, number: int) -> None:
        connection = self.connection(key, node, tab, number)
        now = self.clock(node)
        commit = self.commit(node, self.store.connect(connection, now))
        if commit is None:
            return
        user = self.users[key]
        user.pass_time(now)
        assert commit.resumed == (not user.tabs and now < user.grace_end())
        if (node, tab) not in user.tabs:
            user.tabs.add((node, tab))
            user.grace = user.lost = 0
            user.meant = False
            user.profile = connection.profile
            was_online = user.online
            user.appear(now, late=True)
            if not was_online:
                user.pass_time(user.since or now)  # what was set may have run out by when they come
            begun, ended, opened = user.sessions[-1]
            user.sessions[-1] = begun, ended, opened + 1

    @precondition(lambda self: self.held())
    @rule(pick=picks, node=nodes, tab=tabs)
    def come_back(self, pick: int, node: str, tab: str) -> None:
        held = self.held()
        self.connect(held[pick % len(held)], node, tab, pick % 10)

    @rule(key=keys, node=nodes, tab=tabs, ending=endings)
    def disconnect_perhaps(self, key: Key, node: str, tab: str, ending: Ending) -> None:
        self.disconnect(key, node, tab, ending)

    @precondition(lambda self: self.live())
    @rule(pick=picks, ending=endings, active=st.booleans())
    def disconnect_one(self, pick: int, ending: Ending, *, active: bool) -> None:
        live = self.live()
        self.disconnect(*live[pick % len(live)], ending, active=active)

    @precondition(lambda self: self.live())
    @rule(pick=picks, ending=endings)
    def disconnect_all_of_a_user(self, pick: int, ending: Ending) -> None:
        live = self.live()
        for key, node, tab in live:
            if key == live[pick % len(live)][0]:
                self.disconnect(key, node, tab, ending)

    def live(self) -> list[tuple[Key, str, str]]:
        """Every connection that lives."""
        return [(key, *where) for key, user in self.users.items() for where in sorted(user.tabs)]

    def held(self) -> list[Key]:
        """Every user who is online without a connection."""
        return [key for key, user in self.users.items() if user.online and not user.tabs]

    def disconnect(self, key: Key, node: str, tab: str, ending: Ending, *, active: bool = False) -> None:
        connection = self.connection(key, node, tab)
        now = self.clock(node)
        active_at = now if active else None
        if self.commit(node, self.store.disconnect(connection, ending, now, active_at=active_at)) is None:
            return
        user = self.users[key]
        user.pass_time(now)
        if (node, tab) not in user.tabs:
            return
        if active or ending.value == "goodbye":
            user.act(now)
        if ending.value in {"goodbye", "kicked", "token expired", "token revoked"}:
            hold = 0
        elif ending.value == "node drained":
            hold = max(self.timing.grace, self.timing.drain_grace)
        else:
            hold = self.timing.grace
        meant = ending.value in {"goodbye", "kicked", "token expired", "token revoked"}
        user.lose(node, tab, now, hold, meant=meant)
        user.pass_time(now)

    @rule(node=nodes, pulses=st.lists(pulses, min_size=1, max_size=4))
    def beat(self, node: str, pulses: list[dict[str, Any]]) -> None:
        now = self.clock(node)
        beats = [
            Beat(
                tenant=pulse["key"][0],
                user_id=pulse["key"][1],
                at=now - pulse["age"],
                holds=pulse["holds"],
                meta_json=pulse.get("meta"),
                profile=pulse.get("profile"),
            )
            for pulse in pulses
        ]
        if self.commit(node, self.store.beat(node, beats)) is None:
            return
        for beat in beats:
            user = self.users[beat.tenant, beat.user_id]
            user.pass_time(beat.at)
            if beat.holds:
                user.ttl = max(user.ttl, beat.at + self.timing.ttl)
                user.appear(beat.at)
            if user.online:
                user.act(beat.at)
                user.meta = beat.meta_json or user.meta
                user.profile = beat.profile or user.profile

    @rule(key=keys, node=nodes, chosen=choices, text=texts, lasts=st.one_of(st.none(), steps))
    def set_status(self, key: Key, node: str, chosen: Chosen, text: str | None, lasts: int | None) -> None:
        now = self.clock(node)
        until = None if lasts is None else now + lasts
        self.check(self.run(self.store.set_status(*key, Choice(chosen, text, until), now)))
        user = self.users[key]
        user.pass_time(now)
        user.choose(chosen.value, text, until, now)

    @rule(key=keys, node=nodes)
    def release(self, key: Key, node: str) -> None:
        now = self.clock(node)
        self.check(self.run(self.store.release(*key, now)))
        user = self.users[key]
        user.pass_time(now)
        user.grace = user.ttl = 0
        user.meant = False
        user.pass_time(now)

    @rule(ms=steps, sweeper=st.one_of(st.none(), nodes, nodes))
    def time_passes(self, ms: int, sweeper: str | None) -> None:
        self.real += ms
        self.renew_running()
        if sweeper is not None:
            self.sweep(sweeper)

    @rule(pick=picks, sweeper=nodes, early=st.booleans())
    def time_comes(self, *, pick: int, sweeper: str, early: bool) -> None:
        """Sweep just when something is due, or a millisecond before."""
        now = self.clock(sweeper)
        times = {
            time
            for user in self.users.values()
            for time in (user.grace, user.grace_end(), user.ttl, user.until or 0, *user.away(self.timing))
        }
        times |= {*self.leases.values(), self.standstill.end, self.standstill.missing}
        due = sorted(time for time in times if time > now)
        if due:
            self.time_passes(due[pick % len(due)] - now - early, sweeper)

    @rule(node=nodes)
    def node_stops_renewing(self, node: str) -> None:
        self.running.discard(node)

    @rule(node=nodes)
    def node_renews_again(self, node: str) -> None:
        self.running.add(node)
        self.renew_running()

    @rule(ms=steps, first=nodes)
    def nobody_reaches_the_store(self, ms: int, first: str) -> None:
        """Until one node does, and the others after it."""
        self.real += ms
        self.running.add(first)
        self.renew(first, returning=True)

    @precondition(lambda self: self.latest < self.standstill.missing and self.live())
    @rule(pick=picks, ending=endings)
    def disconnect_right_after_it(self, pick: int, ending: Ending) -> None:
        self.disconnect_all_of_a_user(pick, ending)

    def sweep(self, node: str) -> None:
        now = self.clock(node)
        self.check(self.run(self.store.sweep(now)))
        ends = {node: self.standstill.late(until) for node, until in self.leases.items()}
        dead = {node: until for node, until in ends.items() if now >= until}
        for user in self.users.values():
            ended = [dead[node] for node, _ in user.tabs if node in dead]
            if ended and len(user.tabs) > 1 and user.until is not None and now >= user.until:
                user.choose("online", None, None, now)  # each ends by itself: while there is another, they are there
            user.tabs = {(node, tab) for node, tab in user.tabs if node not in dead}
            if ended and not user.tabs:
                hold = max(self.timing.grace, self.standstill.missing - max(ended))
                user.grace = max(*ended, user.lost) + hold if hold > 0 else 0
            user.pass_time(now, swept=True)
        self.leases = {node: until for node, until in self.leases.items() if node not in dead}
        self.swept_at = now

    @rule(node=nodes)
    def sweep_twice(self, node: str) -> None:
        self.sweep(node)
        again = self.run(self.store.sweep(self.clock(node)))
        assert again.transitions == ()

    @rule()
    def take_a_snapshot(self) -> None:
        if len(self.views) <= VIEWS:
            view = View()
            assert all(transition.now.version > 0 for transition in view.load(self.run(self.store.snapshot())))
            self.views.append(view)

    # What must hold

    @invariant()
    def the_log_rebuilds_the_snapshot_from_every_position(self) -> None:
        snapshot = self.run(self.store.snapshot())
        statuses = {(status.tenant, status.user_id): status for status in snapshot.statuses}
        assert len(statuses) == len(snapshot.statuses)
        for view in self.views:
            assert view.position == snapshot.position
            assert {key: view.status(*key) for key in statuses} == {
                key: msgspec.structs.replace(status, own=None) for key, status in statuses.items()
            }
            assert view._own == {key: status.own for key, status in statuses.items() if status.own is not None}
            assert view.hidden == {key: parted(status)[0] for key, status in statuses.items() if parted(status)[1]}
            assert view.ahead_of(snapshot) == []
            for tenant in TENANTS:
                online = sorted(user for where, user in statuses if where == tenant and statuses[tenant, user].online)
                assert [status.user_id for status in view.online(tenant)] == online

    @invariant()
    def users_are_as_the_model_says(self) -> None:
        swept_at, self.swept_at = self.swept_at, None
        seen = {(status.tenant, status.user_id): status for status in self.run(self.store.snapshot()).statuses}
        assert set(seen) == {key for key, user in self.users.items() if user.known}
        for key, published in seen.items():
            user = self.users[key]
            status, shown = parted(published)
            choice = Choice() if status.own is None else status.own.choice
            assert (choice.status.value, choice.text, choice.until) == (user.chosen, user.text, user.until)
            assert status.status_text == (user.text if user.online else None)
            if shown is None:
                assert user.shown is None
            else:
                assert (shown.active_at, shown.meta_json, shown.profile) == user.shown
                assert (shown.status.value, shown.status_text, shown.online_since, shown.ttl_until) == (
                    *("offline", None, None, None),
                )
            assert status.online == user.online
            assert status.online_since == user.since
            assert status.ttl_until == (user.ttl or None)
            assert status.active_at == user.active_at
            assert status.meta_json == user.meta
            assert status.profile == user.profile
            if user.online and user.chosen in BY_HAND:
                assert status.status.value == user.chosen
            if not user.online or swept_at is None or user.chosen in BY_HAND:
                continue
            # While clocks disagree on whether it is time, either is right.
            assert user.active_at is not None
            if swept_at - user.active_at >= self.timing.away_after:
                assert status.status.value == "away"
            elif self.latest - user.active_at < self.timing.away_after:
                assert status.status.value == "online"

    @invariant()
    def a_node_s_connections_are_those_of_its_users(self) -> None:
        async def registered() -> list[Sequence[Connection]]:
            return await asyncio.gather(*(self.store.connections(node) for node in NODES))

        live = self.live()
        for node, connections in zip(NODES, self.run(registered()), strict=True):
            expected = [f"{key}/{where}/{tab}" for key, where, tab in live if where == node]
            assert sorted(connection.id for connection in connections) == sorted(expected)

    @invariant()
    def sessions_are_when_users_were_there(self) -> None:
        for (tenant, user_id), user in self.users.items():
            counts = sum(1 + opened + (ended is not None) for _, ended, opened in user.sessions)
            if counts != user.looked_at:
                user.looked_at = counts
                kept = self.run(self.store.sessions(tenant, user_id, self.latest, 100))
                said = [(session.begun_at, session.ended_at, session.connections) for session in kept]
                assert said == user.sessions[: -RETENTION.sessions - 1 : -1]
                assert [session.reason is None for session in kept] == [session.ended_at is None for session in kept]

    @invariant()
    def every_change_is_one_transition_with_the_next_version(self) -> None:
        for entry in self.log[self.checked :]:
            assert entry.position > self.position
            self.position = entry.position
            if isinstance(entry, Activity):
                continue
            key = (entry.tenant, entry.user_id)
            was, was_text, version = self.before.get(key, ("offline", None, 0))
            seen = entry.now.status.value, entry.now.status_text
            if isinstance(entry, PrivateChange):
                assert (*seen, entry.now.version) == (was, was_text, version)
                continue
            assert isinstance(entry, Transition)
            assert (entry.was.value, entry.was_text) == (was, was_text)
            assert seen != (was, was_text)
            assert entry.event is not None
            assert entry.now.version == version + 1
            self.before[key] = (*seen, entry.now.version)
        self.checked = len(self.log)


@pytest.mark.parametrize("store", STORES)
def test_a_store_does_what_the_model_says(store: str, redis_url: str) -> None:
    members = {"make_store": staticmethod(STORES[store]), "redis_url": redis_url}
    machine = type(f"StoreMachine[{store}]", (StoreMachine,), members)
    run_state_machine_as_test(machine, settings=PROFILE)
