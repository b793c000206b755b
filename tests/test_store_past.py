"""What every adapter of the store's port keeps of the past: sessions, what connections are, and what it forgets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import msgspec
import pytest
from conftest import TIMING
from stores import STORES

from gateway.presence.model import (
    Beat,
    Choice,
    Chosen,
    Connection,
    Device,
    Ending,
    Forgotten,
    OnlineSession,
    Profile,
    Retention,
    Status,
    UserStatus,
)
from gateway.presence.store import Store
from gateway.presence.view import View

T = 1_000_000
"""When each test begins, in milliseconds: both nodes have just got their lease."""
GRACE, TTL, LEASE, AWAY_AFTER = TIMING.grace, TIMING.ttl, TIMING.lease, TIMING.away_after
KEPT = Retention(sessions=3, sessions_ttl=1_000_000)
LAST_SEEN_TTL = 600_000
FORGETFUL = Retention(last_seen_ttl=LAST_SEEN_TTL)
NODES = ("n1", "n2")

MakeStore = Callable[..., Awaitable[Store]]


@pytest.fixture(params=STORES)
async def make_store(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[MakeStore]:
    """Makes new stores of one adapter, in which both nodes hold a lease."""
    async with AsyncExitStack() as stack:

        async def make(retention: Retention = KEPT) -> Store:
            timing = msgspec.structs.replace(TIMING, retention=retention)
            store = await stack.enter_async_context(STORES[request.param](timing, 10_000, redis_url))
            for node in NODES:
                await store.renew(node, T)
            return store

        yield make


@pytest.fixture
async def store(make_store: MakeStore) -> Store:
    return await make_store()


def tab(name: str = "tab", *, user: str = "alice", node: str = "n1", **values: object) -> Connection:
    known = Connection(tenant="acme", user_id=user, id=f"{user}/{name}", node=node, door="socketio", connected_at=T)
    return msgspec.structs.replace(known, **values)


def hold(at: int, user: str = "alice") -> Beat:
    return Beat(tenant="acme", user_id=user, at=at, holds=True)


async def sweep(store: Store, now: int) -> None:
    """Sweep as a cluster does in which both nodes live."""
    for node in NODES:
        await store.renew(node, now)
    await store.sweep(now)


async def sessions(store: Store, now: int = T, *, user: str = "alice", limit: int = 100) -> list[OnlineSession]:
    return list(await store.sessions("acme", user, now, limit))


async def spans(store: Store, now: int = T) -> list[tuple[int, int | None, int, str | None]]:
    """Alice's sessions without their devices, in times since the test began."""
    return [
        (each.begun_at - T, None if each.ended_at is None else each.ended_at - T, each.connections, each.reason)
        for each in await sessions(store, now)
    ]


async def visit(store: Store, begun_at: int, ended_at: int, ending: Ending = Ending.GOODBYE) -> None:
    await store.connect(tab(), begun_at)
    await store.disconnect(tab(), ending, ended_at)


# Sessions


async def test_who_is_heard_of_late_comes_after_they_went(store: Store) -> None:
    """As by a node that was cut off, and tells when it is back who came meanwhile."""
    await store.connect(tab("one"), T)
    await store.disconnect(tab("one"), Ending.GOODBYE, T + 1_000)
    came = await store.connect(tab("two", node="n2"), T + 500)
    assert (came.transitions[0].at, came.transitions[0].now.online_since) == (T + 1_000, T + 1_000)
    latest, earlier = await sessions(store, T + 2_000)
    assert (earlier.begun_at, earlier.ended_at, latest.begun_at) == (T, T + 1_000, T + 1_000)


async def test_whoever_was_never_there_has_no_session(store: Store) -> None:
    assert await sessions(store) == []


async def test_a_session_lasts_from_coming_to_going_whatever_comes_between(store: Store) -> None:
    await store.connect(tab(user_agent="Firefox", meta_json=b'{"page":"inbox"}'), T)
    device = Device(door="socketio", user_agent="Firefox", meta_json=b'{"page":"inbox"}')
    assert await sessions(store) == [OnlineSession(begun_at=T, connections=1, device=device)]
    await store.connect(tab("phone", node="n2", door="websocket"), T + 1)
    await store.connect(tab("phone", node="n2", door="websocket"), T + 2)  # the same again
    await sweep(store, T + AWAY_AFTER)
    await store.disconnect(tab(), Ending.LOST, T + AWAY_AFTER + 1)
    assert await spans(store) == [(0, None, 2, None)]
    gone = T + AWAY_AFTER + 2
    await store.disconnect(tab("phone", node="n2"), Ending.GOODBYE, gone)
    assert await sessions(store) == [
        OnlineSession(begun_at=T, ended_at=gone, connections=2, reason="goodbye", device=device)
    ]


async def test_coming_back_within_the_grace_goes_on_with_the_session(store: Store) -> None:
    await visit(store, T, T + 1, Ending.LOST)
    await store.connect(tab("other"), T + GRACE)
    await store.disconnect(tab("other"), Ending.KICKED, T + GRACE + 1)
    assert await spans(store) == [(0, GRACE + 1, 2, "kicked")]


@pytest.mark.parametrize(
    ("ending", "after", "reason"),
    [
        (Ending.GOODBYE, 0, "goodbye"),
        (Ending.KICKED, 0, "kicked"),
        (Ending.TOKEN_EXPIRED, 0, "token expired"),
        (Ending.LOST, GRACE, "connection lost"),
        (Ending.TOO_SLOW, GRACE, "too slow"),
        (Ending.DRAINED, 30_000, "node drained"),
    ],
)
async def test_a_session_says_why_it_ended(store: Store, ending: Ending, after: int, reason: str) -> None:
    await visit(store, T, T + 1, ending)
    await sweep(store, T + 1 + after)
    assert await spans(store) == [(0, 1 + after, 1, reason)]


async def test_a_session_ends_with_its_node(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n2", T + LEASE + GRACE)
    await store.sweep(T + LEASE + GRACE)
    assert await spans(store) == [(0, LEASE + GRACE, 1, "node died")]


async def test_heartbeats_and_backends_make_sessions_without_a_device(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    assert await sessions(store) == [OnlineSession(begun_at=T)]
    await store.release("acme", "alice", T + 1)
    await store.beat("n1", [hold(T + 2)])
    await sweep(store, T + 2 + TTL)
    assert await spans(store) == [(2, 2 + TTL, 0, "heartbeats stopped"), (0, 1, 0, "released")]
    assert [each.device for each in await sessions(store)] == [None, None]


async def test_a_session_of_one_who_is_invisible_is_the_truth(store: Store) -> None:
    await store.connect(tab(), T)
    await store.set_status("acme", "alice", Choice(Chosen.INVISIBLE), T + 1)
    assert await spans(store) == [(0, None, 1, None)]
    await store.set_status("acme", "alice", Choice(), T + 2)
    await store.set_status("acme", "alice", Choice(Chosen.INVISIBLE), T + 3)
    await store.disconnect(tab(), Ending.KICKED, T + 4)
    assert await spans(store) == [(0, 4, 1, "kicked")]
    await visit(store, T + 5, T + 6)
    assert await spans(store) == [(5, 6, 1, "goodbye"), (0, 4, 1, "kicked")]


async def test_as_many_sessions_are_kept_as_are_asked_for_and_the_newest_come_first(store: Store) -> None:
    for number in range(5):
        await visit(store, T + 10 * number, T + 10 * number + 1)
    assert await spans(store) == [(40, 41, 1, "goodbye"), (30, 31, 1, "goodbye"), (20, 21, 1, "goodbye")]
    assert [each.begun_at - T for each in await sessions(store, limit=2)] == [40, 30]
    await store.connect(tab(), T + 50)
    assert [each.begun_at - T for each in await sessions(store)] == [50, 40, 30]


async def test_sessions_and_transitions_are_each_kept_whatever_becomes_of_the_other(store: Store) -> None:
    for number in range(12):
        await visit(store, T + 10 * number, T + 10 * number + 1)
        explanation = await store.explain("acme", "alice")
        versions = [each.now.version for each in explanation.transitions]
        assert versions == list(range(2 * number + 3 - len(versions), 2 * number + 3))
        assert len(versions) == min(10, 2 * number + 2)
        assert [each.begun_at - T for each in await sessions(store)] == [
            10 * each for each in range(number, max(-1, number - 3), -1)
        ]


async def test_a_session_is_kept_for_its_time_after_its_end(store: Store) -> None:
    await visit(store, T, T + 10)
    await visit(store, T + 20, T + 30)
    last = T + 10 + KEPT.sessions_ttl
    assert len(await sessions(store, last - 1)) == 2
    assert [each.begun_at for each in await sessions(store, last)] == [T + 20]
    await sweep(store, last + 20)
    # Not only hidden by the time that is asked for.
    assert await sessions(store, T) == []
    assert (await store.explain("acme", "alice")).status.version == 4


async def test_whoever_comes_back_leaves_only_what_is_kept_still(store: Store) -> None:
    await visit(store, T, T + 10)
    await store.connect(tab(), T + 20)
    later = T + 20 + KEPT.sessions_ttl
    await store.renew("n1", later)
    await store.disconnect(tab(), Ending.GOODBYE, later)
    await store.connect(tab(), later + 1)
    assert [each.begun_at for each in await sessions(store, T)] == [later + 1, T + 20]


async def test_a_session_that_lasts_is_kept_however_long(store: Store) -> None:
    await store.connect(tab(), T)
    await sweep(store, T + 2 * KEPT.sessions_ttl)
    assert await spans(store, T + 2 * KEPT.sessions_ttl) == [(0, None, 1, None)]


async def test_no_history_is_kept_where_none_is_asked_for(make_store: MakeStore) -> None:
    store = await make_store(Retention(sessions=0))
    await visit(store, T, T + 1)
    await store.connect(tab(), T + 2)
    assert await sessions(store) == []
    assert len((await store.explain("acme", "alice")).transitions) == 3


async def test_sessions_of_different_users_and_tenants_are_apart(store: Store) -> None:
    await store.connect(tab(), T)
    await store.connect(tab(tenant="other"), T + 1)
    assert [each.begun_at for each in await sessions(store)] == [T]
    assert await sessions(store, user="bob") == []


async def test_a_device_may_say_anything_of_itself(store: Store) -> None:
    odd = 'a "quoted",\\"tenant":"x","tenant": ] } ☕'
    meta = msgspec.json.encode({"page": odd})
    await store.connect(tab(user_agent=odd, meta_json=meta, profile=Profile(name=odd)), T)
    await store.disconnect(tab(), Ending.GOODBYE, T + 1)
    (session,) = await sessions(store)
    assert session.device is not None
    assert (session.device.user_agent, session.device.page, session.reason) == (odd, odd, "goodbye")


async def test_a_user_who_is_given_back_has_a_session_from_when_they_came(store: Store) -> None:
    known = UserStatus(
        tenant="acme", user_id="alice", status=Status.ONLINE, version=7, active_at=T - 5, online_since=T - 9
    )
    await store.restore("n1", [known], T)
    await store.connect(tab(), T + 1)
    assert await spans(store) == [(-9, None, 1, None)]
    await store.restore("n1", [msgspec.structs.replace(known, status=Status.OFFLINE, version=9)], T + 2)
    assert [each[3] for each in await spans(store)] == [None, "restored"]  # a connection here counts


# What connections are


async def test_what_a_connection_says_of_itself_is_replaced_where_it_counts(store: Store) -> None:
    await store.connect(tab(meta_json=b'{"page":1}'), T)
    position = (await store.snapshot()).position
    now = tab(meta_json=b'{"page":"inbox"}', user_agent="Firefox")
    assert (await store.describe(now)).transitions == ()
    (connection,) = (await store.explain("acme", "alice")).connections
    assert connection == now
    assert connection.page == "inbox"
    assert list(await store.connections("n1")) == [now]
    assert (await store.snapshot()).position == position
    await store.disconnect(now, Ending.GOODBYE, T + 1)
    await store.describe(now)
    await store.describe(tab("another", user="bob"))
    assert list(await store.connections("n1")) == []
    assert (await store.explain("acme", "alice")).connections == ()


# Last seen


async def views_of(store: Store, after: View) -> View:
    """A view that has followed the log from another, which must know what a fresh snapshot has."""
    after.apply(await store.read(after.position, wait=False))
    after.apply((await store.read(0, wait=False))[-2:])  # again changes nothing
    snapshot = await store.snapshot()
    fresh = View()
    fresh.load(snapshot)
    assert (after._statuses.get("acme") or {}) == (fresh._statuses.get("acme") or {})
    assert (after._own, after.hidden) == (fresh._own, fresh.hidden)
    assert after.ahead_of(snapshot) == []
    return after


def last_seen(view: View, user: str = "alice") -> tuple[str, int | None, int]:
    status = view.status("acme", user)
    return status.status.value, status.active_at, status.version


async def test_last_seen_is_kept_for_ever_by_default(make_store: MakeStore) -> None:
    store = await make_store(Retention())
    await visit(store, T, T + 1)
    await sweep(store, T + 10**12)
    assert last_seen(await views_of(store, View())) == ("offline", T + 1, 2)


async def test_whoever_was_last_seen_too_long_ago_is_as_one_never_seen_everywhere(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    view = View()
    await store.connect(tab(profile=Profile(name="Alice")), T)
    await store.beat("n1", [Beat(tenant="acme", user_id="alice", at=T, meta_json=b"{}")])
    await store.disconnect(tab(), Ending.GOODBYE, T + 1)
    await sweep(store, T + LAST_SEEN_TTL)
    assert last_seen(await views_of(store, view)) == ("offline", T + 1, 2)
    await sweep(store, T + 1 + LAST_SEEN_TTL)
    assert (await views_of(store, view)).status("acme", "alice") == UserStatus(tenant="acme", user_id="alice")
    assert view._statuses == {}
    assert (await store.snapshot()).statuses == ()
    assert (await store.explain("acme", "alice")).transitions == ()
    assert await sessions(store) == []
    log = await store.read(0, wait=False)
    assert [entry.version for entry in log if isinstance(entry, Forgotten)] == [2]


async def test_nobody_who_is_there_is_forgotten(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    await store.connect(tab(), T)
    await sweep(store, T + 2 * LAST_SEEN_TTL)
    assert last_seen(await views_of(store, View())) == ("away", T, 2)
    await store.disconnect(tab(), Ending.LOST, T + 2 * LAST_SEEN_TTL)
    await sweep(store, T + 2 * LAST_SEEN_TTL + GRACE)
    assert last_seen(await views_of(store, View())) == ("offline", None, 0)


async def test_whoever_comes_back_in_time_is_not_forgotten(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    await visit(store, T, T + 1)
    await visit(store, T + 1_000, T + 1_001)
    await sweep(store, T + 1 + LAST_SEEN_TTL)
    assert last_seen(await views_of(store, View())) == ("offline", T + 1_001, 4)
    await sweep(store, T + 1_001 + LAST_SEEN_TTL)
    assert last_seen(await views_of(store, View())) == ("offline", None, 0)


async def test_a_version_that_was_told_is_never_told_again(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    view = View()
    for number in range(3):
        await visit(store, T + number, T + number)
    await visit_of(store, "bob", T)
    await sweep(store, T + 10 + LAST_SEEN_TTL)
    assert last_seen(await views_of(store, view)) == ("offline", None, 0)
    again = T + 10 + LAST_SEEN_TTL
    (change,) = (await store.connect(tab(), again)).transitions
    assert change.now.version == 7
    (change,) = (await store.connect(tab(user="carol"), again)).transitions  # of her, too, nobody can have known more
    assert change.now.version == 7
    (change,) = (await store.connect(tab(tenant="other"), again)).transitions  # whose users nobody has forgotten
    assert change.now.version == 1
    assert last_seen(await views_of(store, view)) == ("online", again, 7)
    assert [each.begun_at for each in await sessions(store)] == [again]


async def visit_of(store: Store, user: str, at: int) -> None:
    await store.connect(tab(user=user), at)
    await store.disconnect(tab(user=user), Ending.GOODBYE, at)


async def test_a_snapshot_that_is_ahead_of_the_log_is_not_put_back_by_it(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    await visit(store, T, T + 1)
    before = (await store.snapshot()).position
    await sweep(store, T + 1 + LAST_SEEN_TTL)
    await store.connect(tab(), T + 1 + LAST_SEEN_TTL)
    view = View()
    view.load(msgspec.structs.replace(await store.snapshot(), position=before))
    assert view.apply(await store.read(before, wait=False)) == []
    assert last_seen(view) == ("online", T + 1 + LAST_SEEN_TTL, 3)


async def test_what_was_set_by_hand_outlasts_being_forgotten_and_others_cannot_tell(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    view = View()
    await store.set_status("acme", "alice", Choice(Chosen.INVISIBLE), T - 1)
    await store.set_status("acme", "bob", Choice(Chosen.BUSY, "away on business"), T - 1)
    await visit(store, T, T + 1)
    await visit_of(store, "bob", T)
    await visit_of(store, "carol", T)
    await sweep(store, T + 1 + LAST_SEEN_TTL)
    await views_of(store, view)
    unseen = [view.status("acme", user) for user in ("alice", "bob", "carol")]
    assert [(each.status, each.active_at, each.version, each.own) for each in unseen] == [
        (Status.OFFLINE, None, 0, None)
    ] * 3
    assert view.own_status("acme", "alice", T).active_at is None
    assert (await store.connect(tab(), T + 2 + LAST_SEEN_TTL)).transitions == ()
    (change,) = (await store.connect(tab(user="bob"), T + 2 + LAST_SEEN_TTL)).transitions
    assert (change.now.status, change.now.status_text, change.now.version) == (Status.BUSY, "away on business", 3)
    await views_of(store, view)


async def test_where_that_is_not_kept_what_was_set_by_hand_is_forgotten_with_its_user(make_store: MakeStore) -> None:
    store = await make_store(Retention(sessions=0, last_seen_ttl=LAST_SEEN_TTL, choices=False))
    view = View()
    for user, choice in (
        ("alice", Choice(Chosen.INVISIBLE)),
        ("bob", Choice(Chosen.BUSY, "away")),
        ("carol", Choice()),
    ):
        await store.set_status("acme", user, Choice(Chosen.INVISIBLE), T - 1)
        await store.connect(tab(user=user), T)
        await store.set_status("acme", user, choice, T)
    await views_of(store, view)
    # One who is there is invisible, however long, also when others have forgotten them.
    await sweep(store, T + LAST_SEEN_TTL)
    assert view.own_status("acme", "alice", T).invisible
    assert (await store.explain("acme", "alice")).status.invisible
    later = T + LAST_SEEN_TTL + 1
    for user in ("alice", "bob", "carol"):
        await store.disconnect(tab(user=user), Ending.GOODBYE, later)
    await sweep(store, later + LAST_SEEN_TTL - 1)
    assert (await store.explain("acme", "alice")).status.own is not None
    await sweep(store, later + LAST_SEEN_TTL)
    await views_of(store, view)
    assert (view._statuses, view._own, view.hidden) == ({}, {}, {})
    assert (await store.snapshot()).statuses == ()
    assert [(await store.explain("acme", user)).status.own for user in ("alice", "bob", "carol")] == [None] * 3
    (change,) = (await store.connect(tab(), later + LAST_SEEN_TTL)).transitions
    assert change.now.status is Status.ONLINE


async def test_whoever_is_invisible_for_long_was_last_seen_when_they_seemed_to_go(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    view = View()
    await store.connect(tab(), T)
    await store.set_status("acme", "alice", Choice(Chosen.INVISIBLE), T + 1)
    later = T + 1 + LAST_SEEN_TTL
    await store.beat("n1", [Beat(tenant="acme", user_id="alice", at=later - 1)])
    await sweep(store, later - 1)
    assert last_seen(await views_of(store, view)) == ("offline", T + 1, 2)
    await sweep(store, later)
    assert last_seen(await views_of(store, view)) == ("offline", None, 0)
    own = view.own_status("acme", "alice", later)
    assert (own.status, own.active_at, own.online_since, own.invisible) == (Status.ONLINE, later - 1, T, True)
    assert await spans(store) == [(0, None, 1, None)]
    (change,) = (await store.set_status("acme", "alice", Choice(), later + 1)).transitions
    assert (change.now.status, change.now.version, change.now.active_at) == (Status.ONLINE, 3, later + 1)
    await views_of(store, view)


async def test_the_truth_of_one_who_left_unseen_is_forgotten_in_its_own_time(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    view = View()
    await store.connect(tab(), T)
    await store.set_status("acme", "alice", Choice(Chosen.INVISIBLE), T)
    await store.disconnect(tab(), Ending.GOODBYE, T + 1_000)
    await sweep(store, T + LAST_SEEN_TTL)
    assert last_seen(await views_of(store, view)) == ("offline", None, 0)
    assert view.own_status("acme", "alice", T).active_at == T + 1_000
    assert (await store.explain("acme", "alice")).status.active_at == T + 1_000
    await sweep(store, T + 1_000 + LAST_SEEN_TTL)
    assert (await store.explain("acme", "alice")).status.active_at is None
    assert (await store.explain("acme", "alice")).status.own is not None
    assert await sessions(store) == []
    await views_of(store, view)


async def test_what_is_forgotten_and_given_back_is_forgotten_again(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    await visit(store, T, T + 1)
    known = (await store.snapshot()).statuses
    now = T + 1 + LAST_SEEN_TTL
    await sweep(store, now)
    await store.restore("n1", known, now)
    await sweep(store, now + 1)
    assert (await store.snapshot()).statuses == ()


async def test_many_are_forgotten_at_once(make_store: MakeStore) -> None:
    store = await make_store(FORGETFUL)
    users: Sequence[str] = [f"user-{number}" for number in range(450)]
    for user in users:
        await visit_of(store, user, T)
    await sweep(store, T + LAST_SEEN_TTL)
    assert (await store.snapshot()).statuses == ()
