"""Who watches hears of those they watch: exactly once, and at the cost of those who watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from conftest import Clock, make_settings
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loops import Loop
from test_fanout import AWAY, OFFLINE, ONLINE, WORDS, Log, Member, Words

from gateway.access.auth import Identity
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.connections.connections import Connections
from gateway.connections.live import LiveConnection
from gateway.connections.requests import Requests
from gateway.errors import LogTrimmedError
from gateway.nodes.bus import LocalBus
from gateway.presence.fanout import LONGEST_REST, REST, FanOut
from gateway.presence.model import Connection, Ending, Profile, Status, Transition
from gateway.presence.touches import Touches
from gateway.presence.view import View
from gateway.presence.visibility import Visibility
from gateway.presence.watching import Watcher, Watching, WatchList
from gateway.recovery.recovery import Recovery
from gateway.recovery.sessions import Directory, NoDirectory


class World:
    """A log, what is heard of it, and a loop whose time is jumped."""

    def __init__(self, interval: float = 0.5, **options: Any) -> None:
        self.loop, self.log = Loop(), Log()
        self.passed_over: list[tuple[str, str, int, int]] = []
        self.watching = Watching(
            self.loop,
            interval,
            lambda: self.log.position,
            lambda *span: self.passed_over.append(span),
            **options,
        )

    def watcher(self, *users: str, member: Member | None = None, tenant: str = "acme") -> tuple[Member, Watcher]:
        member = Member() if member is None else member
        watcher = self.watching.join(tenant, member, WatchList())
        watcher.watch(users)
        return member, watcher

    def change(self, *changes: tuple[str, Status], tenant: str = "acme") -> None:
        self.watching.publish([self.log(user, status, tenant) for user, status in changes])

    def flush(self) -> None:
        self.loop.run_until(self.loop.now + 10)


def test_only_those_who_are_watched_are_heard_of() -> None:
    world = World()
    member, _ = world.watcher("alice", "bob", "never seen")
    world.change(("alice", ONLINE), ("eve", ONLINE), ("bob", ONLINE))
    world.flush()
    assert member.writes == [["user-online alice v1", "user-online bob v1"]]


def test_a_change_of_one_whom_nobody_watches_needs_no_timer_and_is_kept_nowhere() -> None:
    world = World()
    world.change(("alice", ONLINE))
    world.watcher("bob")
    world.change(("alice", OFFLINE))
    assert world.loop.waiting() == []
    assert world.watching._tenants["acme"].pending == []


def test_a_change_costs_what_its_watchers_are() -> None:
    world = World()
    everyone = [world.watcher(*(f"user-{(n + k) % 1000}" for k in range(10))) for n in range(10_000)]
    world.change(("user-500", ONLINE))
    tenant = world.watching._tenants["acme"]
    looked_at: list[str] = []

    class Counted(dict[str, Any]):
        def get(self, user_id: str, default: Any = None) -> Any:
            found = super().get(user_id, default)
            looked_at.extend(watcher for watcher in found)
            return found

    tenant.watchers_of = Counted(tenant.watchers_of)
    encoded = WORDS.encoded
    world.flush()
    written = [member for member, _ in everyone if member.writes]
    assert len(written) == len(looked_at) == 100
    assert all(member.writes == [["user-online user-500 v1"]] for member in written)
    assert WORDS.encoded - encoded == 1


def test_those_who_are_told_the_same_share_one_encoding_for_each_codec() -> None:
    world, one, other = World(), Words(), Words()
    same = [world.watcher("alice", "bob", f"own-{n}", member=Member(one))[0] for n in range(20)]
    less = [world.watcher("bob", member=Member(one))[0] for _ in range(20)]
    else_ = [world.watcher("alice", "bob", member=Member(other))[0] for _ in range(20)]
    world.change(("alice", ONLINE), ("bob", ONLINE))
    world.flush()
    assert (one.encoded, other.encoded) == (3, 2)
    assert [member.writes for member in same + else_] == [[["user-online alice v1", "user-online bob v1"]]] * 40
    assert [member.writes for member in less] == [[["user-online bob v1"]]] * 20


def test_the_net_effect_of_an_interval_is_written_once() -> None:
    world = World()
    member, _ = world.watcher("alice", "bob", "carol", "dave")
    world.change(("alice", ONLINE), ("dave", ONLINE))
    world.loop.run_until(100.0)
    world.change(("bob", ONLINE), ("carol", ONLINE))
    world.change(("carol", OFFLINE), ("bob", AWAY))
    assert world.loop.waiting() == [100.5]
    world.loop.run_until(100.5)
    assert member.writes == [["user-online alice v1", "user-online dave v1"], ["user-online bob v2"]]
    assert world.passed_over == [("acme", "carol", 3, 5)]


def test_a_lone_change_is_told_at_once_though_another_users_has_just_been() -> None:
    world = World(stopwatch=lambda: 5.0)
    member, _ = world.watcher("alice", "bob", "carol")
    world.change(("alice", ONLINE), ("nobody watches", ONLINE))
    world.loop.run_until(100.0)
    world.loop.now = 100.1
    world.change(("bob", ONLINE))
    assert world.loop.waiting() == [100.1]
    world.loop.run_until(100.1)
    world.change(("bob", OFFLINE), ("carol", ONLINE))
    assert world.loop.waiting() == [100.6]
    world.flush()
    assert member.writes == [
        ["user-online alice v1"],
        ["user-online bob v1"],
        ["user-offline bob v2", "user-online carol v1"],
    ]


def test_who_begins_to_watch_within_an_interval_hears_only_of_what_comes_then() -> None:
    world = World()
    early, _ = world.watcher("alice")
    world.change(("alice", ONLINE))
    late, _ = world.watcher("alice")
    world.change(("alice", AWAY))
    world.flush()
    assert (early.writes, late.writes) == ([["user-online alice v2"]], [["user-status-changed alice v2"]])


def test_who_watches_more_is_told_before_of_what_is_pending() -> None:
    world = World()
    member, watcher = world.watcher("alice")
    world.watcher("bob")
    world.change(("alice", ONLINE), ("bob", ONLINE))
    watcher.watch(["bob", "alice"])
    assert member.writes == [["user-online alice v1"]]
    world.change(("bob", AWAY))
    world.flush()
    assert member.writes == [["user-online alice v1"], ["user-status-changed bob v2"]]


def test_who_is_unwatched_is_heard_of_for_the_last_time_before() -> None:
    world = World()
    member, watcher = world.watcher("alice", "bob")
    world.change(("alice", ONLINE))
    assert watcher.unwatch(["alice", "alice", "a stranger"]) == 1
    assert member.writes == [["user-online alice v1"]]
    world.change(("alice", AWAY), ("bob", ONLINE))
    assert watcher.unwatch() == 1
    assert watcher.unwatch() == 0
    world.change(("alice", OFFLINE), ("bob", OFFLINE))
    world.flush()
    assert member.writes == [["user-online alice v1"], ["user-online bob v1"]]
    watcher.watch(["alice"])
    world.change(("alice", ONLINE))
    world.flush()
    assert member.writes[2:] == [["user-online alice v4"]]


def test_who_comes_back_with_a_list_hears_of_it_what_is_not_pending_already() -> None:
    world = World()
    world.watcher("alice")
    world.change(("alice", ONLINE))
    member = Member()
    watcher = world.watching.join("acme", member, WatchList({"alice": 0, "bob": 0}))
    assert watcher.told() == 1
    world.change(("bob", ONLINE))
    world.flush()
    assert member.writes == [["user-online bob v1"]]


def test_what_it_says_of_the_log_goes_with_what_was_told() -> None:
    world = World()
    _, watcher = world.watcher("alice")
    world.change(("eve", ONLINE))
    assert watcher.told() == 1
    world.change(("eve", OFFLINE), ("alice", ONLINE), ("eve", ONLINE))
    assert watcher.told() == 1, "nothing of these has been told"
    watcher.catch_up()
    assert watcher.told() == 3
    world.flush()
    assert watcher.told() == 4
    assert watcher.watched == WatchList({"alice": 0})
    watcher.watch(["bob"])
    watcher.unwatch(["alice"])
    assert watcher.watched == WatchList({"bob": 4}, narrowed=4)


def test_who_leaves_leaves_nothing_behind() -> None:
    world = World()
    member, watcher = world.watcher("alice", "bob")
    other, another = world.watcher("alice")
    world.change(("alice", ONLINE))
    watcher.catch_up()
    watcher.leave()
    watcher.leave()
    assert set(world.watching._tenants["acme"].watchers_of) == {"alice"}
    assert world.watching._tenants["acme"].ahead == set()
    for act in (watcher.catch_up, watcher.unwatch, lambda: watcher.watch(["carol"])):
        act()
    another.leave()
    assert (world.watching._tenants, world.loop.waiting()) == ({}, [])
    world.flush()
    assert (len(member.writes), other.writes) == (1, [])


def test_a_watcher_who_leaves_while_another_is_written_to_harms_nobody() -> None:
    world = World()
    (first, _), (second, leaves), (third, _) = (world.watcher("alice") for _ in range(3))
    first.on_write = leaves.leave
    world.change(("alice", ONLINE))
    world.flush()
    assert (first.writes, second.writes, third.writes) == ([["user-online alice v1"]], [], [["user-online alice v1"]])


def test_tenants_never_mix() -> None:
    world = World()
    (acme, _), (other, _) = world.watcher("alice"), world.watcher("alice", tenant="other")
    world.change(("alice", ONLINE), tenant="other")
    world.flush()
    assert (acme.writes, other.writes) == ([], [["user-online alice v1"]])


@pytest.mark.parametrize(("took", "rest"), [(0.001, 0.02), (0.03, 0.03 * REST), (0.5, LONGEST_REST)])
def test_the_longer_a_flush_takes_the_more_the_next_one_gathers(took: float, rest: float) -> None:
    world = World(0.02, stopwatch=iter([5.0, 5.0 + took]).__next__)
    world.watcher("alice")
    world.change(("alice", ONLINE))
    world.loop.run_until(100.0)
    world.change(("alice", OFFLINE))
    assert world.loop.waiting() == [pytest.approx(100.0 + rest)]


# What clients see, whatever comes between


class _Plain:
    """Leaves events as they are."""

    def encode(self, events: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return list(events)

    def write_all(self, batch: Sequence[tuple[str, Any]], sinks: Sequence[Page]) -> None:
        for page in sinks:
            page.write(batch)


class Page:
    """A client: what it asks, what it hears, and the picture that it has of users."""

    def __init__(self, gateway: Site, tenant: str) -> None:
        self.site = gateway
        self.tenant = tenant
        self.heard: list[tuple[str, Any]] = []
        self.hears: set[str] | None = None if gateway.everyone else set()
        """Those it watches; None for everyone."""
        self.picture = {user: self.of_view(user) for user in USERS} if gateway.everyone else {}
        made = Connection(tenant=tenant, user_id="asker", id=str(id(self)), node="n", door="socketio", connected_at=0)
        identity = Identity(tenant=tenant, user_id="asker", profile=Profile(), expires_at=None)
        bucket = TokenBucket(Rate(1_000_000, 1.0), 0)
        self.live = LiveConnection(identity, made, cast("Any", self), bucket)
        key = (tenant, "asker")
        gateway.connections._by_user.setdefault(key, {})[made.id] = self.live
        gateway.connections._per_tenant[tenant] = gateway.connections._per_tenant.get(tenant, 0) + 1
        gateway.connections.greet(self.live)
        self.read()

    codec = _Plain()

    @property
    def sink(self) -> Page:
        return self

    def write(self, batch: Sequence[tuple[str, Any]]) -> None:
        self.heard.extend(batch)

    def of_view(self, user: str) -> tuple[Status, int]:
        status = self.site.view.status(self.tenant, user)
        return status.status, status.version

    def read(self) -> None:
        for event, data in self.heard:
            if event == "connected":
                continue
            assert self.hears is None or data.user_id in self.hears, f"{data} is of nobody it watches"
            assert data.version > self.picture[data.user_id][1], f"{data} is known already"
            self.picture[data.user_id] = (data.status, data.version)
        self.heard.clear()

    def ask(self, event: str, payload: Any) -> Any:
        answer: Any = self.site.requests.answer(self.live, event, payload)
        self.read()  # it was written before the answer
        return msgspec.json.decode(msgspec.json.encode(answer.data))

    def watch(self, users: list[str]) -> None:
        statuses = self.ask("watch-users", {"userIds": users})["statuses"]
        assert [status["userId"] for status in statuses] == users
        self.hears = set(users) | (self.hears or set())
        for status in statuses:
            self.picture[status["userId"]] = (Status(status["status"]), status["version"])

    def unwatch(self, users: list[str] | None) -> None:
        count = self.ask("unwatch-users", None if users is None else {"userIds": users})["count"]
        leaving = (self.hears or set()) if users is None else (self.hears or set()) & set(users)
        assert count == len(leaving)
        if self.hears is not None:
            self.hears -= leaving

    def check(self, users: list[str]) -> None:
        for status in self.ask("check-users-status", {"userIds": users})["statuses"]:
            user = status["userId"]
            if self.hears is None or user in self.hears:
                assert self.picture[user][0] == status["status"], "what it heard before agrees with the answer"
                self.picture[user] = (Status(status["status"]), status["version"])

    async def leave(self) -> None:
        await self.site.connections.end(self.live, Ending.GOODBYE)

    def close(self, code: object) -> None:
        """Nobody is at the other end."""


async def trimmed(*_: object, **__: object) -> None:
    raise LogTrimmedError("only what the node keeps is to be had")


class Site:
    """A node, from its requests to its log, in a loop whose time is jumped.

    Args:
        everyone: whether clients hear of everyone.
        rule: whether there is a rule about who may see whom: that all may.
        name: the end of its own name.
        directory: where it finds the sessions of others.
    """

    def __init__(
        self, *, everyone: bool, rule: bool = False, name: str = "12345678", directory: Directory | None = None
    ) -> None:
        self.everyone = everyone
        self.rule = rule
        self.loop, self.log, self.view = Loop(), Log(), View()
        bus, store, clock = LocalBus(), cast("Any", SimpleNamespace(near=True, read=trimmed)), Clock()
        visibility = Visibility(lambda _v, _u: True, None, ttl=1, limit=5, clock=clock) if rule else None
        self.recovery = Recovery(
            f"node-{name}",
            window=3_600_000,
            horizon=3_600_000,
            buffer=1_000_000,
            memory=100_000_000,
            clock=clock,
            bus=bus,
            store=store,
            view=self.view,
            directory=directory or NoDirectory(),
            visibility=visibility,
            hears_everyone=everyone,
        )
        history = self.recovery.history
        at: Callable[[], int] = lambda: self.view.position  # noqa: E731
        fanout = FanOut(self.loop, 0.5, at, history.pass_over)
        self.watching = Watching(self.loop, 0.5, at, history.pass_over_of, visibility=visibility)
        self.listeners = [history.publish, fanout.publish, self.watching.publish]

        async def disconnect(*_: object) -> None: ...

        tracker: Any = SimpleNamespace(now=lambda: 1_000, touches=Touches(self.view, 60_000), disconnect=disconnect)
        audience: Any = "everyone" if everyone else "watchers"
        self.connections = Connections(
            make_settings(presence_audience=audience),
            tracker,
            self.view,
            fanout,
            self.watching,
            cast("Any", None),
            rules=rule,
        )
        self.requests = Requests(self.connections, tracker, self.view, cast("Any", None), visibility)

    def change(self, changes: list[tuple[str, str, Status]]) -> None:
        """One batch of the log, as the follower reads it."""
        self.follow(
            [
                self.log(user, status, tenant)
                for tenant, user, status in changes
                if self.view.status(tenant, user).status is not status
            ]
        )

    def follow(self, entries: list[Transition]) -> None:
        """Take in what a node has committed."""
        self.committed = entries
        news = self.view.apply(entries)
        for listener in self.listeners:
            listener(news)


USERS = ["alice", "bob", "carol"]
TENANTS = ["acme", "acme", "acme", "other"]

_users = st.lists(st.sampled_from(USERS), max_size=3)
_pages = st.integers(0, 3)
_changes = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.sampled_from(USERS), st.sampled_from([ONLINE, AWAY, OFFLINE])),
    min_size=1,
    max_size=4,
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("change"), _changes),
        st.tuples(st.just("change"), _changes),
        st.tuples(st.just("wait"), st.sampled_from([0.2, 0.6])),
        st.tuples(st.just("watch"), _pages, _users),
        st.tuples(st.just("watch"), _pages, _users),
        st.tuples(st.just("unwatch"), _pages, st.none() | _users),
        st.tuples(st.just("check"), _pages, _users),
        st.tuples(st.just("leave"), _pages),
    ),
    min_size=20,
    max_size=50,
)


def unique(changes: list[tuple[str, str, Status]]) -> list[tuple[str, str, Status]]:
    """Each user once: what a batch does to one twice, two batches do as well."""
    return list({(tenant, user): (tenant, user, status) for tenant, user, status in changes}.values())


@given(st.booleans(), st.booleans(), _steps)
@example(
    everyone=True,
    rule=False,
    steps=[
        ("change", [("acme", "alice", ONLINE)]),
        ("watch", 0, ["alice"]),
        ("change", [("acme", "alice", OFFLINE)]),
        ("change", [("acme", "alice", ONLINE)]),
        ("watch", 2, ["alice"]),
    ],
)
@settings(max_examples=200, deadline=None)
async def test_whatever_comes_between_every_watcher_ends_with_the_view_and_hears_nothing_twice(
    everyone: bool,  # noqa: FBT001
    rule: bool,  # noqa: FBT001
    steps: list[Any],
) -> None:
    site = Site(everyone=everyone, rule=rule)
    pages = [Page(site, TENANTS[n]) for n in range(4)]
    for step, *arguments in steps:
        match step:
            case "change":
                site.change(unique(arguments[0]))
            case "wait":
                site.loop.run_until(site.loop.now + arguments[0])
            case "leave":
                await pages[arguments[0]].leave()
                pages[arguments[0]] = Page(site, pages[arguments[0]].tenant)
            case _:
                getattr(pages[arguments[0]], step)(arguments[1])
        for page in pages:
            page.read()
    site.loop.run_until(site.loop.now + 10)
    for page in pages:
        page.read()
        for user in USERS if page.hears is None else page.hears:
            status, version = page.picture[user]
            assert (status, version <= page.of_view(user)[1]) == (page.of_view(user)[0], True)
        await page.leave()
    assert site.watching._tenants == {}
    assert site.loop.waiting() == []


# What a request may ask


@pytest.fixture
def page() -> Page:
    return Page(Site(everyone=True), "acme")


def refused(page: Page, event: str, payload: Any) -> str:
    answer: Any = page.site.requests.answer(page.live, event, payload)
    assert answer.error.code == "INVALID_PAYLOAD"
    return str(answer.error.message)


def test_past_the_cap_a_request_is_refused_whole(page: Page) -> None:
    page.watch([f"user-{n}" for n in range(999)])
    assert "may watch 1000 users" in refused(page, "watch-users", {"userIds": ["one", "two"]})
    assert "may watch 1000" in refused(page, "watch-users", {"userIds": [str(n) for n in range(1001)]})
    assert page.live.watcher is not None
    assert len(page.live.watcher.watched.users) == 999
    page.watch(["user-1", "one", "one", "user-2"])
    assert len(page.live.watcher.watched.users) == 1000
    page.unwatch(["one"])
    page.watch(["two"])


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("watch-users", None),
        ("watch-users", {}),
        ("watch-users", {"userIds": "alice"}),
        ("watch-users", {"userIds": ["alice", ""]}),
        ("watch-users", {"userIds": ["alice", "a\nb"]}),
        ("watch-users", {"userIds": ["alice", 7]}),
        ("unwatch-users", {"userIds": "alice"}),
        ("unwatch-users", {"userIds": ["a\x00b"]}),
        ("unwatch-users", []),
    ],
)
def test_what_is_wrong_changes_nothing(page: Page, event: str, payload: Any) -> None:
    refused(page, event, payload)
    assert page.live.watcher is None
    page.site.change([("acme", "carol", ONLINE)])
    page.site.loop.run_until(200)
    page.read()
    assert page.picture["carol"] == (ONLINE, 1)


async def test_a_request_that_outlives_its_connection_leaves_nothing(page: Page) -> None:
    await page.leave()
    page.ask("watch-users", {"userIds": ["alice"]})
    assert page.site.watching._tenants == {}


def test_to_unwatch_where_nobody_was_watched_changes_nothing(page: Page) -> None:
    page.unwatch(None)
    page.site.change([("acme", "carol", ONLINE)])
    page.site.loop.run_until(200)
    page.read()
    assert page.picture["carol"] == (ONLINE, 1)


def test_to_watch_nobody_is_to_hear_of_nobody(page: Page) -> None:
    page.watch([])
    page.site.change([("acme", "carol", ONLINE)])
    page.site.loop.run_until(200)
    assert page.heard == []
