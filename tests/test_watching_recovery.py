"""Whoever watches, loses the connection at any moment and comes back, ends with the view and hears nothing twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from test_fanout import AWAY, OFFLINE, ONLINE, Member
from test_watching import Site

from gateway import wire
from gateway.access.auth import Identity
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.connections.live import LiveConnection
from gateway.engine.batch import Batch
from gateway.engine.namespace import MarkingCodec, Resumption
from gateway.presence.model import RESTORED, Connection, Ending, Profile, Status
from gateway.presence.watching import WatchList
from gateway.recovery.offsets import Offset
from gateway.recovery.sessions import NoDirectory, Session

OWNER = ("acme", "asker")
USERS = ["alice", "bob", "carol"]
ALL = frozenset(USERS)

_names = itertools.count()


class Listed(NoDirectory):
    """A directory that tells at once: the sessions of all nodes, by the end of a node's name."""

    def __init__(self, name: str, of_all: dict[str, dict[str, bytes]]) -> None:
        self.of_all = of_all
        self.own = of_all.setdefault(name, {})

    def put(self, session: Session) -> None:
        self.own[session.pid] = msgspec.json.encode(session)

    def drop(self, pid: str) -> None:
        self.own.pop(pid, None)

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> Session | None:
        encoded = self.of_all[node].pop(pid, None)
        return None if encoded is None else msgspec.json.decode(encoded, type=Session)


class Codec(MarkingCodec):
    """The real one, which writes to lines."""

    def write_all(self, batch: Batch, sinks: Sequence[Any]) -> None:
        for line in sinks:
            line.write(batch)


class Line:
    """A connection: what was written to it, of which its client has read some."""

    def __init__(self, codec: MarkingCodec) -> None:
        self.codec = codec
        self.sent: list[tuple[str, Any]] = []
        """Each ``event`` with its JSON, or an answer: the name of the request, and what it asked and was answered."""

    @property
    def sink(self) -> Line:
        return self

    def write(self, batch: Batch) -> None:
        for text in batch.texts:
            name, data, offset = json.loads(text[text.index(b"[") :])
            self.sent.append(("event", (name, data, offset)))

    def close(self, code: object) -> None:
        """It is closed by its test."""


class Tab:
    """A client that can recover: what it believes, by what it has read."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.codecs: dict[Site, Codec] = {}
        self.pid: str | None = None
        self.offset: str | None = None
        self.sessions: dict[str, Session] = {}
        self.unsure: set[str] = set()
        """Whom it asked for without having read the answer, before it lost the connection."""
        self.again: list[tuple[str, Any]] = []
        """What it asks again then."""

    def _keep(self, sid: str, watched: WatchList) -> None:
        session = self.sessions[sid]
        session.watched = watched
        self.site.recovery.sessions.change(session)

    async def connect(self) -> bool:
        """Connect; whether it recovered."""
        site, sid = self.site, str(next(_names))
        auth = {"pid": self.pid, "offset": self.offset}
        found = await site.recovery.find("/", OWNER, auth, presence=True)
        made = Connection(tenant=OWNER[0], user_id=OWNER[1], id=sid, node="n", door="socketio", connected_at=0)
        identity = Identity(tenant=OWNER[0], user_id=OWNER[1], profile=Profile(), expires_at=None)
        bucket = TokenBucket(Rate(1_000_000, 1.0), 0)
        codec = self.codecs.setdefault(site, Codec("/", site.recovery))
        site.connections.on_watch = self._keep
        self.line = Line(codec)
        self.live = LiveConnection(identity, made, cast("Any", self.line), bucket)
        site.connections._by_user.setdefault(OWNER, {})[sid] = self.live
        site.connections._per_tenant["acme"] = 1
        session, recovered = site.recovery.begin("/", OWNER, sid, found, presence=True)
        self.sessions[sid], self.session, self.pid = session, session, session.pid
        site.connections.greet(self.live, None if recovered is None else Resumption(codec, recovered))
        if recovered is None:
            self.hears = set(ALL) if site.everyone else set()
            self.picture = {user: self._of_view(user) for user in self.hears}
            self.unsure.clear()
        return recovered is not None

    def _of_view(self, user: str) -> tuple[str, int]:
        status = self.site.view.status("acme", user)
        return status.status.value, status.version

    def ask(self, request: str, users: list[str] | None) -> None:
        payload = None if users is None else {"userIds": users}
        answer: Any = self.site.requests.answer(self.live, request, payload)
        self.line.sent.append((request, (users, json.loads(wire.encode(answer.data)))))

    def read(self, count: int | None = None) -> None:
        """Read so much of what was sent, or all."""
        sent = self.line.sent
        for kind, what in sent[:count]:
            if kind == "event":
                self._hear(*what)
            else:
                self._take(kind, *what)
        del sent[:count]

    def _hear(self, name: str, data: Any, offset: str) -> None:
        self.offset = offset
        user = data["userId"]
        if name == "connected" or user in self.unsure:
            return
        assert user in self.hears, f"{user} is not watched"
        assert data["version"] > self.picture[user][1], f"{data} is known already"
        self.picture[user] = (data["status"], data["version"])

    def _take(self, request: str, users: list[str] | None, answer: Any) -> None:
        if request == "watch-users":
            self.hears = set(users or ()) | (self.hears if self.watches else set())
            self.watches = True
            for status in answer["statuses"]:
                self.picture[status["userId"]] = (status["status"], status["version"])
                self.unsure.discard(status["userId"])
        elif request == "check-users-status":
            for status in answer["statuses"]:
                user = status["userId"]
                if user in self.hears - self.unsure:
                    assert self.picture[user][0] == status["status"], "what it heard before agrees with the answer"
                    self.picture[user] = (status["status"], status["version"])
        elif self.watches:
            self.hears -= ALL if users is None else set(users)
            self.unsure -= ALL if users is None else set(users)

    watches = False
    """Whether it knows that it has watched."""

    def forsake(self) -> Callable[[], Awaitable[None]]:
        """Lose the connection with all that was not read; its node finds out by what is returned."""
        self.again = [(kind, what[0]) for kind, what in self.line.sent if kind != "event"]
        for kind, users in self.again:
            # A page that never watched knows nobody of everyone, once it has asked to.
            self.unsure |= ALL if users is None or (kind == "watch-users" and not self.watches) else set(users)
        site, session, live = self.site, self.session, self.live

        async def found() -> None:
            site.recovery.lose(session, live.told)
            await site.connections.end(live, Ending.LOST)

        return found

    async def lose(self) -> None:
        """Lose the connection, as its node sees."""
        await self.forsake()()

    async def back(self, site: Site | None = None) -> None:
        """Come back, to the same node or another; ask again what was not answered."""
        self.site = site or self.site
        offset = Offset.parse(self.offset)
        narrowed = self.session.watched is not None and self.session.watched.narrowed
        recovered = await self.connect()
        event(f"recovered: {recovered}")
        if recovered:
            for request, users in self.again:
                self.ask(request, users)
        else:
            by_rule = self.site.rule and offset is not None and offset.to > 0  # a batch that was heard in part
            assert by_rule or offset is None or (narrowed and 0 < offset.to <= narrowed), "there was no reason to"
            self.offset, self.watches = None, False


_users = st.lists(st.sampled_from(USERS), max_size=3)
_change = st.tuples(
    st.just("change"),
    st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from([ONLINE, AWAY, OFFLINE])), min_size=1, max_size=4),
)
_steps = st.lists(
    st.one_of(
        _change,
        _change,
        st.tuples(st.just("wait"), st.sampled_from([0.2, 0.6])),
        st.tuples(st.just("watch-users"), _users),
        st.tuples(st.just("unwatch-users"), st.none() | _users),
        st.tuples(st.just("check-users-status"), _users),
        st.tuples(st.just("read"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.none()),
        st.tuples(st.just("away"), st.lists(_change, max_size=4)),
    ),
    min_size=15,
    max_size=50,
)


def change(site: Site, changes: list[tuple[str, Status]]) -> None:
    site.change([("acme", user, status) for user, status in dict(changes).items()])


@given(st.booleans(), st.booleans(), _steps)
@example(  # began to watch in the middle of what was over, for those who watched before
    everyone=False,
    rule=False,
    steps=[
        ("change", [("alice", ONLINE)]),
        ("wait", 0.2),
        ("change", [("alice", OFFLINE)]),
        ("watch-users", ["alice"]),
        ("read", None),
        ("change", [("alice", ONLINE)]),
        ("wait", 0.6),
        ("away", []),
    ],
)
@example(  # has read the half of a batch, and the server knows already that it wants less
    everyone=False,
    rule=False,
    steps=[
        ("watch-users", USERS),
        ("read", None),
        ("change", [(user, ONLINE) for user in USERS]),
        ("wait", 0.6),
        ("read", 1),
        ("unwatch-users", ["alice"]),
        ("away", []),
    ],
)
@settings(max_examples=200, deadline=None)
async def test_whoever_comes_back_ends_with_the_view_and_hears_nothing_twice(
    everyone: bool,  # noqa: FBT001
    rule: bool,  # noqa: FBT001
    steps: list[Any],
) -> None:
    site = Site(everyone=everyone, rule=rule)
    change(site, [("before", ONLINE)])  # from here on the node keeps what is published
    # Who watches everyone, so that a change may be pending that the tab has no part in.
    other = site.watching.join("acme", Member(), WatchList(dict.fromkeys(USERS, 0)))
    tab = Tab(site)
    await tab.connect()
    tab.read()
    for step, argument in steps:
        match step:
            case "change":
                change(site, argument)
            case "wait":
                site.loop.run_until(site.loop.now + argument)
            case "read":
                tab.read(argument)
            case "away":
                await tab.lose()
                for _, changes in argument:
                    change(site, changes)
                await tab.back()
            case _:
                tab.ask(step, argument)
    tab.read()
    await tab.lose()
    await tab.back()
    site.loop.run_until(site.loop.now + 10)
    tab.read()
    for user in tab.hears - tab.unsure:
        assert (tab.picture[user][0], tab.picture[user][1] <= tab._of_view(user)[1]) == (tab._of_view(user)[0], True)
    if tab.watches:
        assert tab.live.watcher is not None
        assert set(tab.live.watcher.watched.users) == tab.hears
    await site.connections.end(tab.live, Ending.GOODBYE)
    other.leave()
    assert site.watching._tenants == {}


_on_two = st.lists(
    st.one_of(
        _change,
        _change,
        st.tuples(st.just("wait"), st.sampled_from([0.2, 0.6])),
        st.tuples(st.just("wait there"), st.sampled_from([0.2, 0.6])),
        st.tuples(st.just("watch-users"), _users),
        st.tuples(st.just("unwatch-users"), st.none() | _users),
        st.tuples(st.just("check-users-status"), _users),
        st.tuples(st.just("read"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.none()),
        # What happens meanwhile, and when the node finds out: before that, after that, or when the client is back.
        st.tuples(
            st.just("other node"), st.tuples(st.lists(_change, max_size=3), st.sampled_from(["first", "then", "last"]))
        ),
    ),
    min_size=15,
    max_size=50,
)


class Pair:
    """Two nodes of one log, and a client that goes from one to the other."""

    def __init__(self, *, everyone: bool, rule: bool) -> None:
        of_all: dict[str, dict[str, bytes]] = {}
        self.sites = [
            Site(everyone=everyone, rule=rule, name=name, directory=Listed(name, of_all))
            for name in ("aaaaaaaa", "bbbbbbbb")
        ]
        self.change([("before", ONLINE)])  # from here on the nodes keep what is published
        self.others = [site.watching.join("acme", Member(), WatchList(dict.fromkeys(USERS, 0))) for site in self.sites]
        self.tab = Tab(self.sites[0])

    @property
    def elsewhere(self) -> Site:
        return self.sites[self.tab.site is self.sites[0]]

    def change(self, changes: list[tuple[str, Status]]) -> None:
        first, second = self.sites
        change(first, changes)
        second.follow(first.committed)

    async def go(self, changes: list[Any], finds: str) -> None:
        found = self.tab.forsake()
        if finds == "first":
            await found()
        for _, each in changes:
            self.change(each)
        if finds == "then":
            await found()
        await self.tab.back(self.elsewhere)
        if finds == "last":
            await found()

    async def step(self, kind: str, argument: Any) -> None:
        match kind:
            case "change":
                self.change(argument)
            case "wait":
                self.tab.site.loop.run_until(self.tab.site.loop.now + argument)
            case "wait there":
                self.elsewhere.loop.run_until(self.elsewhere.loop.now + argument)
            case "read":
                self.tab.read(argument)
            case "other node":
                await self.go(*argument)
            case _:
                self.tab.ask(kind, argument)


@given(st.booleans(), st.booleans(), _on_two)
@example(  # was answered what a change had come to that nobody was told of, and its node had not missed it yet
    everyone=True,
    rule=False,
    steps=[
        ("change", [("alice", ONLINE)]),
        ("wait", 0.6),
        ("read", None),
        ("change", [("bob", ONLINE)]),
        ("read", None),
        ("change", [("alice", OFFLINE)]),
        ("change", [("alice", ONLINE), ("bob", OFFLINE)]),
        ("check-users-status", ["alice"]),
        ("read", None),
        ("other node", ([], "last")),
        ("read", None),
    ],
)
@settings(max_examples=200, deadline=None)
async def test_whoever_comes_back_to_another_node_ends_with_the_view_and_hears_nothing_twice(
    everyone: bool,  # noqa: FBT001
    rule: bool,  # noqa: FBT001
    steps: list[Any],
) -> None:
    pair = Pair(everyone=everyone, rule=rule)
    tab = pair.tab
    await tab.connect()
    tab.read()
    for kind, argument in [*steps, ("other node", ([], "first"))]:
        await pair.step(kind, argument)
    for site in pair.sites:
        site.loop.run_until(site.loop.now + 10)
    tab.read()
    for user in tab.hears - tab.unsure:
        assert (tab.picture[user][0], tab.picture[user][1] <= tab._of_view(user)[1]) == (tab._of_view(user)[0], True)
    await tab.site.connections.end(tab.live, Ending.GOODBYE)
    for site, other in zip(pair.sites, pair.others, strict=True):
        other.leave()
        assert site.watching._tenants == {}


@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("everyone", [False, True])
async def test_what_a_store_was_given_back_is_told_to_nobody_who_may_have_heard_it_elsewhere(
    *, everyone: bool, rule: bool
) -> None:
    pair = Pair(everyone=everyone, rule=rule)
    tab, (first, second) = pair.tab, pair.sites
    await tab.connect()
    tab.ask("watch-users", USERS)
    change(first, [("alice", ONLINE)])  # which the other node does not hear of before the store loses it
    [lost] = first.committed
    pair.change([("bob", ONLINE)])
    first.loop.run_until(first.loop.now + 10)
    tab.read()
    assert tab.picture["alice"] == ("online", 1)
    first.log.position += 1
    for site in pair.sites:
        site.follow([msgspec.structs.replace(lost, position=first.log.position, reason=RESTORED)])
    await tab.lose()
    tab.site = second
    recovered = await tab.connect()
    tab.read()
    assert not recovered
