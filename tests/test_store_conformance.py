"""What every adapter of the store's port does, by the port alone. The adapters are in ``stores.py``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from conftest import TIMING
from stores import STORES

from gateway.errors import LeaseLostError, LogTrimmedError
from gateway.presence.model import (
    NOBODY,
    Activity,
    Beat,
    Choice,
    Chosen,
    Connection,
    Ending,
    Profile,
    Status,
    Timing,
    Transition,
    UserStatus,
)
from gateway.presence.store import OUTAGE, RETURNING, Commit, Store
from gateway.presence.view import View
from gateway.runtime.traces import Trace

T = 1_000_000
"""When each test begins, in milliseconds: both nodes have just got their lease."""
GRACE = 5_000
DRAIN_GRACE = 30_000
TTL = 120_000
AWAY_AFTER = 90_000
LEASE = 10_000

NODES = ("n1", "n2")
MakeStore = Callable[..., Awaitable[Store]]


@pytest.fixture(params=STORES)
async def make_store(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[MakeStore]:
    """Makes new stores of one adapter, in which both nodes hold a lease, or those that are given."""
    async with AsyncExitStack() as stack:

        async def make(timing: Timing = TIMING, log_length: int = 10_000, *, nodes: Sequence[str] = NODES) -> Store:
            store = await stack.enter_async_context(STORES[request.param](timing, log_length, redis_url))
            for node in nodes:
                await store.renew(node, T)
            return store

        yield make


@pytest.fixture
async def store(make_store: MakeStore) -> Store:
    return await make_store()


def tab(
    name: str = "tab", *, user: str = "alice", node: str = "n1", tenant: str = "acme", profile: Profile = NOBODY
) -> Connection:
    return Connection(
        tenant=tenant,
        user_id=user,
        id=f"{tenant}/{user}/{name}",
        node=node,
        door="socketio",
        connected_at=T,
        profile=profile,
    )


def pulse(at: int, user: str = "alice", *, tenant: str = "acme", meta: Any = None, **values: Any) -> Beat:
    """A beat of a live connection."""
    meta_json = None if meta is None else msgspec.json.encode(meta)
    return Beat(tenant=tenant, user_id=user, at=at, meta_json=meta_json, **values)


def hold(at: int, user: str = "alice", **values: Any) -> Beat:
    """A beat that keeps its user online by itself."""
    return pulse(at, user, holds=True, **values)


def changes(commit: Commit) -> list[str]:
    return [f"{c.user_id} v{c.now.version}: {c.was} -> {c.now.status} ({c.reason})" for c in commit.transitions]


async def sweep(store: Store, now: int) -> list[str]:
    """Sweep as a cluster does in which both nodes live."""
    for node in NODES:
        await store.renew(node, now)
    return changes(await store.sweep(now))


async def status(store: Store, user: str = "alice", tenant: str = "acme") -> UserStatus:
    found = [s for s in (await store.snapshot()).statuses if (s.tenant, s.user_id) == (tenant, user)]
    assert len(found) == 1
    return found[0]


# Connecting


async def test_the_first_connection_of_a_user_makes_one_transition_and_is_activity(store: Store) -> None:
    commit = await store.connect(tab(), T + 7)
    (transition,) = commit.transitions
    assert changes(commit) == ["alice v1: offline -> online (connected)"]
    assert transition.at == T + 7
    assert transition.now == UserStatus(
        tenant="acme", user_id="alice", status=transition.now.status, active_at=T + 7, online_since=T + 7, version=1
    )
    assert await status(store) == transition.now


async def test_a_commit_tells_the_end_of_the_log(store: Store) -> None:
    commit = await store.connect(tab(), T)
    assert commit.position == commit.transitions[-1].position == (await store.snapshot()).position


async def test_the_leases_are_those_of_the_nodes_that_renewed_them(make_store: MakeStore) -> None:
    store = await make_store(nodes=())
    assert await store.leases() == {}
    await store.renew("n1", 1000)
    await store.renew("n2", 2000)
    assert await store.leases() == {"n1": 1000 + TIMING.lease, "n2": 2000 + TIMING.lease}
    await store.renew("n1", 3000)
    assert (await store.leases())["n1"] == 3000 + TIMING.lease
    await store.sweep(2000 + TIMING.lease)
    assert set(await store.leases()) == {"n1"}


async def test_several_tabs_on_several_nodes_are_one_user(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    assert changes(await store.connect(tab("two", node="n2"), T + 1)) == []
    assert changes(await store.disconnect(tab("one", node="n1"), Ending.GOODBYE, T + 2)) == []
    assert changes(await store.disconnect(tab("two", node="n2"), Ending.GOODBYE, T + 3)) == [
        "alice v2: online -> offline (goodbye)"
    ]


async def test_a_further_connection_of_a_user_who_is_there_is_no_activity(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.connect(tab("two"), T + 1_000)
    assert (await status(store)).active_at == T
    assert (await status(store)).online_since == T


async def test_registering_the_same_connection_again_changes_nothing(store: Store) -> None:
    await store.connect(tab(), T)
    before = await store.snapshot()
    again = await store.connect(tab(), T + 1_000)
    assert (changes(again), again.resumed) == ([], False)
    assert await store.snapshot() == before
    assert changes(await store.disconnect(tab(), Ending.KICKED, T + 2_000)) == ["alice v2: online -> offline (kicked)"]


async def test_the_last_of_several_to_end_decides_how_long_the_user_stays(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.connect(tab("two"), T)
    await store.disconnect(tab("one"), Ending.LOST, T)
    assert changes(await store.disconnect(tab("two"), Ending.KICKED, T)) == ["alice v2: online -> offline (kicked)"]


async def test_an_ending_that_the_store_hears_of_late_shortens_no_grace(store: Store) -> None:
    """As of a node that is far from it."""
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.disconnect(tab("two", node="n2"), Ending.LOST, T + 300)
    await store.disconnect(tab("one", node="n1"), Ending.LOST, T)
    assert changes(await store.sweep(T + 300 + GRACE - 1)) == []
    assert changes(await store.sweep(T + 300 + GRACE)) == ["alice v2: online -> offline (connection lost)"]


# Disconnecting


@pytest.mark.parametrize("ending", [Ending.GOODBYE, Ending.KICKED, Ending.TOKEN_EXPIRED])
async def test_an_ending_that_was_meant_takes_the_user_offline_at_once(store: Store, ending: Ending) -> None:
    await store.connect(tab(), T)
    commit = await store.disconnect(tab(), ending, T + 1)
    assert changes(commit) == [f"alice v2: online -> offline ({ending})"]
    assert commit.transitions[0].now.online_since is None


@pytest.mark.parametrize(
    ("ending", "held_for"),
    [
        (Ending.LOST, GRACE),
        (Ending.TOO_SLOW, GRACE),
        (Ending.FLOODED, GRACE),
        (Ending.NODE_DIED, GRACE),
        (Ending.DRAINED, DRAIN_GRACE),
    ],
)
async def test_after_any_other_ending_the_user_stays_for_a_while(store: Store, ending: Ending, held_for: int) -> None:
    await store.connect(tab(), T)
    assert changes(await store.disconnect(tab(), ending, T + 1)) == []
    assert await sweep(store, T + held_for) == []
    assert await sweep(store, T + 1 + held_for) == [f"alice v2: online -> offline ({ending})"]


@pytest.mark.parametrize(("active_at", "last"), [(T + 5, T + 5), (T - 5, T), (None, T)])
async def test_a_connection_s_end_may_tell_of_its_user_s_last_activity(
    store: Store, active_at: int | None, last: int
) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T + 10, active_at=active_at)
    assert (await store.explain("acme", "alice")).status.active_at == last
    assert (await store.snapshot()).statuses[0].active_at == last
    await store.disconnect(tab("unknown"), Ending.LOST, T + 10, active_at=T + 9)
    assert (await store.explain("acme", "alice")).status.active_at == last


async def test_a_drained_node_holds_its_users_for_the_grace_where_that_is_longer(make_store: MakeStore) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, grace=40_000))
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.DRAINED, T)
    assert await sweep(store, T + 39_999) == []
    assert await sweep(store, T + 40_000) == ["alice v2: online -> offline (node drained)"]


async def test_without_a_grace_a_lost_connection_takes_the_user_offline_at_once(make_store: MakeStore) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, grace=0))
    await store.connect(tab(), T)
    assert changes(await store.disconnect(tab(), Ending.LOST, T)) == ["alice v2: online -> offline (connection lost)"]


async def test_a_goodbye_is_activity_and_other_endings_are_none(store: Store) -> None:
    for number, ending in enumerate(Ending):
        user = f"user-{number}"
        await store.connect(tab(user=user), T)
        await store.disconnect(tab(user=user), ending, T + 1_000)
        assert (await status(store, user)).active_at == (T + 1_000 if ending is Ending.GOODBYE else T), ending


@pytest.mark.parametrize("ending", list(Ending))
async def test_ending_a_connection_that_the_store_does_not_know_changes_nothing(store: Store, ending: Ending) -> None:
    await store.connect(tab("known"), T)
    before = await store.snapshot()
    assert changes(await store.disconnect(tab("unknown"), ending, T + 1)) == []
    assert changes(await store.disconnect(tab(user="nobody"), ending, T + 1)) == []
    assert await store.snapshot() == before


async def test_ending_a_connection_twice_changes_nothing_more(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T)
    assert changes(await store.disconnect(tab(), Ending.GOODBYE, T + 1)) == []
    assert await sweep(store, T + GRACE - 1) == []
    assert (await status(store)).active_at == T


# Coming back


async def test_coming_back_within_the_grace_emits_nothing_and_says_so(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.disconnect(tab("one"), Ending.LOST, T + 100)
    back = await store.connect(tab("two", node="n2"), T + 100 + GRACE - 1)
    assert (changes(back), back.resumed) == ([], True)
    assert (await status(store)).active_at == T
    assert (await status(store)).online_since == T
    assert await sweep(store, T + 100 + 2 * GRACE) == []


async def test_a_grace_is_resumed_from_once(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.disconnect(tab("one"), Ending.LOST, T)
    assert (await store.connect(tab("two"), T + 1)).resumed
    assert not (await store.connect(tab("three"), T + 2)).resumed


async def test_a_grace_that_ran_out_unswept_is_committed_by_whoever_comes_back(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.disconnect(tab("one"), Ending.LOST, T)
    back = await store.connect(tab("two"), T + GRACE)
    assert changes(back) == ["alice v2: online -> offline (connection lost)", "alice v3: offline -> online (connected)"]
    assert not back.resumed
    assert await sweep(store, T + GRACE) == []


async def test_a_connection_after_the_grace_does_not_resume_though_a_ttl_kept_the_user_online(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.beat("n1", [hold(T)])
    await store.disconnect(tab("one"), Ending.LOST, T)
    back = await store.connect(tab("two"), T + GRACE)
    assert (changes(back), back.resumed) == ([], False)


async def test_the_first_connection_of_a_user_resumes_nothing(store: Store) -> None:
    assert not (await store.connect(tab(), T)).resumed


# Beats


async def test_a_beat_of_a_live_connection_moves_activity_without_a_version(store: Store) -> None:
    await store.connect(tab(), T)
    assert changes(await store.beat("n1", [pulse(T + 1_000)])) == []
    assert (await status(store)).active_at == T + 1_000
    assert (await status(store)).version == 1


async def test_a_beat_of_a_live_connection_changes_nothing_for_a_user_who_is_offline(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.KICKED, T)
    before = await store.snapshot()
    assert changes(await store.beat("n1", [pulse(T + 1, meta={"a": 1}), pulse(T + 1, "nobody")])) == []
    assert await store.snapshot() == before


async def test_a_holding_beat_keeps_a_user_online_for_the_ttl(store: Store) -> None:
    assert changes(await store.beat("n1", [hold(T)])) == ["alice v1: offline -> online (active)"]
    await store.beat("n2", [hold(T + 60_000)])
    assert await sweep(store, T + 60_000 + AWAY_AFTER) == ["alice v2: online -> away (inactive)"]
    assert await sweep(store, T + 60_000 + TTL - 1) == []
    assert await sweep(store, T + 60_000 + TTL) == ["alice v3: away -> offline (heartbeats stopped)"]


async def test_a_user_goes_offline_when_neither_a_connection_nor_a_ttl_holds_them(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    await store.connect(tab(), T)
    assert changes(await store.disconnect(tab(), Ending.GOODBYE, T + 60_000)) == []
    assert await sweep(store, T + TTL - 1) == []
    assert await sweep(store, T + TTL) == ["alice v2: online -> offline (heartbeats stopped)"]


async def test_a_ttl_that_ends_leaves_a_live_connection_counting(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    await store.connect(tab(), T)
    await store.beat("n1", [pulse(T + TTL)])
    assert await sweep(store, T + TTL + 1) == []


async def test_a_grace_that_outlasts_the_ttl_holds_the_user(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    await store.connect(tab(), T)
    await store.beat("n1", [pulse(T + TTL - 1)])
    await store.disconnect(tab(), Ending.LOST, T + TTL - 1)
    assert await sweep(store, T + TTL + GRACE - 2) == []
    assert await sweep(store, T + TTL + GRACE - 1) == ["alice v4: online -> offline (connection lost)"]


async def test_a_user_whom_the_ttl_outlived_the_grace_went_because_heartbeats_stopped(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T + 60_000)
    assert await sweep(store, T + TTL) == ["alice v2: online -> offline (heartbeats stopped)"]


async def test_many_beats_are_one_command(store: Store) -> None:
    beats = [hold(T + 1, "alice"), pulse(T + 1, "nobody"), hold(T + 2, "bob"), hold(T + 3, "alice")]
    assert changes(await store.beat("n1", beats)) == [
        "alice v1: offline -> online (active)",
        "bob v1: offline -> online (active)",
    ]
    assert (await status(store, "alice")).active_at == T + 3
    assert changes(await store.beat("n1", [])) == []


async def test_a_command_that_changes_more_users_than_the_log_holds_tells_every_change(make_store: MakeStore) -> None:
    store = await make_store(log_length=2)
    commit = await store.beat("n1", [hold(T, f"user-{n}") for n in range(5)])
    assert changes(commit) == [f"user-{n} v1: offline -> online (active)" for n in range(5)]


# Away


async def test_an_inactive_user_turns_away_and_the_next_activity_turns_them_back(store: Store) -> None:
    await store.connect(tab(), T)
    assert await sweep(store, T + AWAY_AFTER - 1) == []
    assert await sweep(store, T + AWAY_AFTER) == ["alice v2: online -> away (inactive)"]
    assert await sweep(store, T + AWAY_AFTER + 1) == []
    assert changes(await store.beat("n1", [pulse(T + AWAY_AFTER + 2)])) == ["alice v3: away -> online (active)"]
    assert (await status(store)).online_since == T
    assert await sweep(store, T + 2 * AWAY_AFTER + 1) == []
    assert await sweep(store, T + 2 * AWAY_AFTER + 2) == ["alice v4: online -> away (inactive)"]


async def test_a_further_connection_leaves_an_away_user_away(store: Store) -> None:
    await store.connect(tab("one"), T)
    await sweep(store, T + AWAY_AFTER)
    assert changes(await store.connect(tab("two"), T + AWAY_AFTER + 1)) == []


async def test_an_away_user_who_says_goodbye_goes_offline(store: Store) -> None:
    await store.connect(tab(), T)
    await sweep(store, T + AWAY_AFTER)
    commit = await store.disconnect(tab(), Ending.GOODBYE, T + AWAY_AFTER + 1)
    assert changes(commit) == ["alice v3: away -> offline (goodbye)"]


async def test_an_away_user_who_lost_and_regained_the_connection_was_never_offline(store: Store) -> None:
    await store.connect(tab("one"), T)
    await sweep(store, T + AWAY_AFTER)
    await store.disconnect(tab("one"), Ending.LOST, T + AWAY_AFTER)
    assert changes(await store.connect(tab("two"), T + AWAY_AFTER + 1)) == []
    assert changes(await store.beat("n1", [pulse(T + AWAY_AFTER + 2)])) == ["alice v3: away -> online (active)"]


async def test_activity_before_a_sweep_commits_what_time_had_done_first(store: Store) -> None:
    await store.connect(tab(), T)
    assert changes(await store.beat("n1", [pulse(T + AWAY_AFTER)])) == [
        "alice v2: online -> away (inactive)",
        "alice v3: away -> online (active)",
    ]


# Last seen


async def test_last_active_survives_going_offline_and_a_later_connection_moves_it(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.beat("n1", [pulse(T + 10)])
    await store.disconnect(tab("one"), Ending.KICKED, T + 20)
    assert (await status(store)).active_at == T + 10
    await store.connect(tab("two"), T + 30)
    assert (await status(store)).active_at == T + 30


async def test_last_active_never_goes_back_under_clocks_that_disagree(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T + 3_000)
    await store.beat("n2", [pulse(T)])
    assert (await status(store)).active_at == T + 3_000
    await store.beat("n2", [hold(T)])
    assert (await status(store)).active_at == T + 3_000
    await store.disconnect(tab("one", node="n1"), Ending.GOODBYE, T + 1_000)
    assert (await status(store)).active_at == T + 3_000
    await store.release("acme", "alice", T)
    await store.connect(tab("two", node="n2"), T)
    assert (await status(store)).active_at == T + 3_000


async def test_an_older_holding_beat_does_not_shorten_the_ttl(store: Store) -> None:
    await store.beat("n1", [hold(T + 3_000)])
    await store.beat("n2", [hold(T)])
    await store.beat("n2", [pulse(T + 60_000)])
    assert await sweep(store, T + TTL) == []
    assert await sweep(store, T + TTL + 3_000) == ["alice v2: online -> offline (heartbeats stopped)"]


# Releasing


async def test_a_release_ends_a_ttl_at_once(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    assert changes(await store.release("acme", "alice", T + 1)) == ["alice v2: online -> offline (released)"]
    assert (await status(store)).active_at == T


async def test_a_release_ends_a_grace_at_once(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T)
    assert changes(await store.release("acme", "alice", T + 1)) == ["alice v2: online -> offline (released)"]
    assert not (await store.connect(tab("two"), T + 2)).resumed


async def test_a_release_leaves_live_connections_counting(store: Store) -> None:
    await store.connect(tab(), T)
    await store.beat("n1", [hold(T)])
    assert changes(await store.release("acme", "alice", T + 1)) == []
    assert changes(await store.disconnect(tab(), Ending.GOODBYE, T + 2)) == ["alice v2: online -> offline (goodbye)"]


async def test_a_release_of_a_user_never_seen_changes_nothing(store: Store) -> None:
    before = await store.snapshot()
    assert changes(await store.release("acme", "nobody", T)) == []
    assert await store.snapshot() == before
    assert before.statuses == ()


# Nodes


async def test_a_lease_is_new_the_first_time_and_prolonged_from_then_on(make_store: MakeStore) -> None:
    store = await make_store()
    assert not (await store.renew("n3", T)).held
    assert (await store.renew("n3", T + 1)).held


@pytest.mark.parametrize("node", ["n1", "never heard of"])
async def test_a_node_without_a_lease_commits_nothing(store: Store, node: str) -> None:
    await store.connect(tab("one"), T)
    await store.sweep(T + LEASE)  # n1's lease ran out, and n2's
    before = await store.snapshot()
    with pytest.raises(LeaseLostError):
        await store.connect(tab("two", node=node), T + LEASE)
    with pytest.raises(LeaseLostError):
        await store.disconnect(tab("one", node=node), Ending.GOODBYE, T + LEASE)
    with pytest.raises(LeaseLostError):
        await store.beat(node, [hold(T + LEASE)])
    assert await store.snapshot() == before


async def test_the_connections_of_a_dead_node_end_when_its_lease_does(store: Store) -> None:
    await store.connect(tab(), T)
    await store.sweep(T + LEASE - 1)
    assert (await store.explain("acme", "alice")).connections == (tab(),)
    assert changes(await store.sweep(T + LEASE)) == []
    assert (await store.explain("acme", "alice")).connections == ()
    assert changes(await store.sweep(T + LEASE + GRACE - 1)) == []
    assert changes(await store.sweep(T + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_a_late_sweep_counts_the_grace_from_the_end_of_the_lease(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n2", T + LEASE + GRACE)
    assert changes(await store.sweep(T + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_a_late_sweep_within_the_grace_leaves_the_rest_of_it(store: Store) -> None:
    await store.connect(tab(), T)
    assert changes(await store.sweep(T + LEASE + GRACE - 1)) == []
    assert changes(await store.sweep(T + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_without_a_grace_a_dead_node_takes_its_users_along(make_store: MakeStore) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, grace=0))
    await store.connect(tab(), T)
    assert changes(await store.sweep(T + LEASE)) == ["alice v2: online -> offline (node died)"]


@pytest.mark.parametrize(("first", "second"), [("n1", "n2"), ("n2", "n1")])
async def test_of_two_dead_nodes_the_one_that_died_last_decides(store: Store, first: str, second: str) -> None:
    await store.connect(tab("one", node=first), T)
    await store.connect(tab("two", node=second), T)
    await store.renew(second, T + 4_000)
    assert changes(await store.sweep(T + LEASE + GRACE)) == []
    assert changes(await store.sweep(T + 4_000 + LEASE + GRACE - 1)) == []
    assert changes(await store.sweep(T + 4_000 + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_a_connection_that_was_lost_after_a_node_died_has_its_own_grace(store: Store) -> None:
    """Though the dead node is swept later: its users are not taken to have been lost last."""
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.renew("n2", T + LEASE)
    lost = T + LEASE + 1_000
    await store.disconnect(tab("two", node="n2"), Ending.LOST, lost)
    assert changes(await store.sweep(lost + 1)) == []
    assert (await store.explain("acme", "alice")).grace_until == lost + GRACE
    assert changes(await store.sweep(lost + GRACE - 1)) == []
    assert changes(await store.sweep(lost + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_a_connection_that_was_lost_and_is_back_is_not_counted_when_a_node_dies(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.renew("n2", T + 2 * LEASE)
    await store.disconnect(tab("two", node="n2"), Ending.DRAINED, T)
    await store.connect(tab("three", node="n2"), T + 1)
    await store.disconnect(tab("three", node="n2"), Ending.GOODBYE, T + 2)
    assert changes(await store.sweep(T + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_a_user_with_a_connection_on_a_living_node_outlives_a_dead_one(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.renew("n2", T + LEASE + GRACE)
    assert changes(await store.sweep(T + LEASE + GRACE)) == []
    assert (await store.explain("acme", "alice")).connections == (tab("two", node="n2"),)


async def test_a_user_who_was_inactive_when_a_node_died_is_away_because_inactive(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.renew("n2", T + AWAY_AFTER)
    assert changes(await store.sweep(T + AWAY_AFTER)) == ["alice v2: online -> away (inactive)"]


async def test_a_node_that_lost_its_lease_gets_a_new_one_and_registers_again(store: Store) -> None:
    await store.connect(tab(), T)
    await store.sweep(T + LEASE)
    assert not (await store.renew("n1", T + LEASE + 1)).held
    back = await store.connect(tab(), T + LEASE + 2)
    assert (changes(back), back.resumed) == ([], True)
    assert (await store.explain("acme", "alice")).connections == (tab(),)


async def test_a_lease_is_never_shortened_by_a_clock_behind(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n1", T - 3_000)
    await store.sweep(T + LEASE - 1)
    assert (await store.explain("acme", "alice")).connections == (tab(),)


async def test_the_connections_that_count_for_a_node_are_those_it_registered_and_did_not_end(store: Store) -> None:
    mine, bobs, theirs = tab("one", profile=Profile(name="Alice")), tab(user="bob", tenant="other"), tab(node="n2")
    for connection in (mine, bobs, theirs, tab("ended")):
        await store.connect(connection, T)
    await store.disconnect(tab("ended"), Ending.LOST, T)
    assert sorted(await store.connections("n1"), key=lambda c: c.id) == [mine, bobs]
    assert list(await store.connections("n2")) == [theirs]
    assert list(await store.connections("never heard of")) == []


async def test_no_connection_counts_for_a_node_that_died(store: Store) -> None:
    await store.connect(tab(), T)
    await store.sweep(T + LEASE - 1)
    assert list(await store.connections("n1")) == [tab()]
    await store.sweep(T + LEASE)
    assert list(await store.connections("n1")) == []
    await store.renew("n1", T + LEASE)
    assert list(await store.connections("n1")) == []


async def test_a_lease_says_whether_the_log_goes_on_from_where_the_node_is(store: Store) -> None:
    assert (await store.renew("n1", T)).log_continues
    assert (await store.renew("n1", T, position=0)).log_continues
    assert not (await store.renew("n1", T, position=1)).log_continues
    first, second = await store.connect(tab(), T), await store.connect(tab(user="bob"), T)
    for held in (0, first.position, second.position):
        assert (await store.renew("n1", T, position=held)).log_continues
    assert not (await store.renew("n1", T, position=second.position + 1)).log_continues


async def test_two_sweepers_commit_each_change_once(store: Store) -> None:
    for number in range(20):
        user = f"user-{number:02}"
        await store.connect(tab(user=user), T)
        await store.disconnect(tab(user=user), Ending.LOST, T)
    commits = await asyncio.gather(*(store.sweep(T + GRACE + late) for late in (0, 0, 1)))
    assert sorted(line for commit in commits for line in changes(commit)) == [
        f"user-{number:02} v2: online -> offline (connection lost)" for number in range(20)
    ]


async def test_a_sweeper_whose_clock_is_behind_undoes_nothing(store: Store) -> None:
    await store.connect(tab("one"), T)
    await store.connect(tab(user="bob"), T)
    await store.disconnect(tab(user="bob"), Ending.LOST, T)
    assert await sweep(store, T + AWAY_AFTER) == [
        "bob v2: online -> offline (connection lost)",
        "alice v2: online -> away (inactive)",
    ]
    assert changes(await store.sweep(T)) == []


# Outages: from T on, when both nodes renewed last, until one returns


RETURN = T + 30_000
END = RETURN + LEASE
"""Until when nothing runs out that had not before the outage."""


async def test_a_grace_that_ran_out_while_nobody_could_renew_runs_on_for_a_lease(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T + 1)
    await store.renew("n1", RETURN, returning=True)
    assert await sweep(store, RETURN) == []
    assert await sweep(store, END - 1) == []
    assert await sweep(store, END) == ["alice v2: online -> offline (connection lost)"]


async def test_a_ttl_that_ran_out_while_nobody_could_renew_runs_on_for_a_lease(make_store: MakeStore) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, ttl=20_000))
    await store.beat("n1", [hold(T)])
    await store.renew("n1", RETURN, returning=True)
    assert await sweep(store, END - 1) == []
    assert await sweep(store, END) == ["alice v2: online -> offline (heartbeats stopped)"]


async def test_a_lease_that_ran_out_while_nobody_could_renew_runs_on_for_a_lease(store: Store) -> None:
    await store.connect(tab("back", user="alice", node="n1"), T)
    await store.connect(tab("gone", user="bob", node="n2"), T)
    assert (await store.renew("n1", RETURN, returning=True)).held
    assert changes(await store.sweep(END - 1)) == []
    assert list(await store.connections("n2")) == [tab("gone", user="bob", node="n2")]
    await store.renew("n1", END - 1)
    # The other node never came back: its clients' grace begins when its lease is over.
    assert changes(await store.sweep(END)) == []
    assert await store.connections("n2") in ([], ())
    assert await sweep(store, END + GRACE - 1) == []
    assert await sweep(store, END + GRACE) == ["bob v2: online -> offline (node died)"]
    assert list(await store.connections("n1")) == [tab("back", user="alice", node="n1")]


async def test_an_outage_soon_after_another_undoes_nothing_of_it(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    await store.disconnect(tab("one", node="n1"), Ending.LOST, T + 1)
    await store.connect(tab(user="bob", node="n1"), T + 1)
    await store.renew("n2", RETURN, returning=True)
    await store.renew("n2", RETURN + 2_000, returning=True)
    assert changes(await store.sweep(RETURN + 2_001)) == []
    back = await store.connect(tab("two", node="n2"), RETURN + 2_001)
    assert (changes(back), back.resumed) == ([], True)
    assert [each.user_id for each in await store.connections("n1")] == ["bob"]


async def test_each_node_that_comes_back_within_a_lease_of_the_first_has_lost_nothing(store: Store) -> None:
    await store.connect(tab(node="n2"), T)
    await store.renew("n1", RETURN, returning=True)
    await store.sweep(END - 1)
    assert (await store.renew("n2", END - 1, returning=True)).held
    assert list(await store.connections("n2")) == [tab(node="n2")]
    assert changes(await store.sweep(END)) == []


async def test_only_a_node_that_could_not_renew_says_that_there_was_an_outage(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T + 1)
    await store.renew("n1", RETURN)
    assert changes(await store.sweep(RETURN)) == ["alice v2: online -> offline (connection lost)"]


@pytest.mark.parametrize("node", ["n1", "new"])
async def test_there_was_no_outage_where_another_node_could_renew(store: Store, node: str) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, RETURN - GRACE)
    await store.renew("n2", RETURN - OUTAGE + 1)
    await store.renew(node, RETURN, returning=True)
    assert await sweep(store, RETURN) == ["alice v2: online -> offline (connection lost)"]


@pytest.mark.parametrize("node", ["n1", "new"])
async def test_a_second_without_a_renewal_is_an_outage(store: Store, node: str) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, RETURN - GRACE)
    await store.renew("n2", RETURN - OUTAGE)
    await store.renew(node, RETURN, returning=True)
    assert await sweep(store, END - 1) == []
    assert await sweep(store, END) == ["alice v2: online -> offline (connection lost)"]


async def test_a_renewal_by_a_clock_behind_makes_no_outage_of_the_time_since(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, RETURN - GRACE)
    await store.renew("n2", RETURN - 1)
    await store.renew("n1", RETURN - 3_000)
    await store.renew("new", RETURN, returning=True)
    assert await sweep(store, RETURN) == ["alice v2: online -> offline (connection lost)"]


async def test_the_first_node_ever_finds_no_outage(make_store: MakeStore) -> None:
    store = await make_store(nodes=())
    await store.renew("n1", T, returning=True)
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T)
    assert await sweep(store, T + GRACE) == ["alice v2: online -> offline (connection lost)"]


async def test_what_had_run_out_before_the_outage_is_not_prolonged(store: Store) -> None:
    for user in ("alice", "bob"):
        await store.connect(tab(user=user), T - 2 * GRACE)
        await store.disconnect(tab(user=user), Ending.LOST, T - 1 - GRACE)
    await store.renew("n1", RETURN, returning=True)
    back = await store.connect(tab("two"), RETURN)
    assert changes(back) == ["alice v2: online -> offline (connection lost)", "alice v3: offline -> online (connected)"]
    assert not back.resumed
    assert await sweep(store, RETURN) == ["bob v2: online -> offline (connection lost)"]


async def test_coming_back_within_a_prolonged_grace_emits_nothing_and_says_so(store: Store) -> None:
    for user in ("alice", "bob"):
        await store.connect(tab(user=user), T)
        await store.disconnect(tab(user=user), Ending.LOST, T + 1)
    await store.renew("n1", RETURN, returning=True)
    back = await store.connect(tab("two"), END - 1)
    assert (changes(back), back.resumed) == ([], True)
    late = await store.connect(tab("two", user="bob"), END)
    assert changes(late) == ["bob v2: online -> offline (connection lost)", "bob v3: offline -> online (connected)"]
    assert not late.resumed


MEANT = pytest.mark.parametrize("ending", [Ending.GOODBYE, Ending.KICKED, Ending.TOKEN_EXPIRED, Ending.REVOKED])
BACK = RETURN + RETURNING
"""Until when other nodes may know of connections that came in the outage."""


@MEANT
async def test_right_after_an_outage_no_ending_takes_a_user_offline_until_all_nodes_are_back(
    store: Store, ending: Ending
) -> None:
    for user in ("alice", "bob"):
        await store.connect(tab(user=user), T)
    await store.renew("n1", RETURN, returning=True)
    for user in ("alice", "bob"):
        assert changes(await store.disconnect(tab(user=user), ending, RETURN + 1)) == []
    await store.renew("n2", RETURN + 100, returning=True)
    late = await store.connect(tab("opened meanwhile", node="n2"), BACK - 1)
    assert (changes(late), late.resumed) == ([], True)
    assert await sweep(store, BACK - 1) == []
    assert await sweep(store, BACK) == [f"bob v2: online -> offline ({ending})"]
    assert await sweep(store, END) == []


@MEANT
async def test_when_all_nodes_are_back_after_an_outage_endings_are_as_ever(store: Store, ending: Ending) -> None:
    await store.connect(tab(), T)
    await store.renew("n1", RETURN, returning=True)
    commit = await store.disconnect(tab(), ending, BACK)
    assert changes(commit) == [f"alice v2: online -> offline ({ending})"]


async def test_a_goodbye_when_one_node_alone_comes_back_takes_the_user_offline_at_once(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n1", T + 2 * OUTAGE)
    await store.renew("n2", T + 2 * OUTAGE + 1, returning=True)
    commit = await store.disconnect(tab(), Ending.GOODBYE, T + 2 * OUTAGE + 2)
    assert changes(commit) == ["alice v2: online -> offline (goodbye)"]


async def test_an_outage_soon_after_another_holds_whoever_said_goodbye_until_all_nodes_are_back_from_it(
    store: Store,
) -> None:
    again = BACK + 500
    for user in ("alice", "bob"):
        await store.connect(tab(user=user), T)
    await store.renew("n1", RETURN, returning=True)
    await store.disconnect(tab(), Ending.GOODBYE, RETURN + 1)
    await store.disconnect(tab(user="bob"), Ending.GOODBYE, RETURN + 1)
    await store.renew("n1", again, returning=True)
    late = await store.connect(tab("opened meanwhile"), again + RETURNING - 1)
    assert (changes(late), late.resumed) == ([], True)
    assert await sweep(store, again + RETURNING - 1) == []
    assert await sweep(store, again + RETURNING) == ["bob v2: online -> offline (goodbye)"]


async def test_whoever_said_goodbye_before_it_was_found_what_an_outage_lost_is_held_for_that(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n1", RETURN, returning=True)
    await store.disconnect(tab(), Ending.GOODBYE, RETURN + 1)
    await store.renew("n2", RETURN + 2, returning=True)
    await store.restore("n2", [known("bob", Status.OFFLINE)], RETURN + 2)
    restored_by = RETURN + 2 + LEASE + GRACE
    assert await sweep(store, restored_by - 1) == []
    assert await sweep(store, restored_by) == ["alice v2: online -> offline (goodbye)"]


async def test_what_is_given_back_right_after_an_outage_ends_no_sooner_that_endings_are_held(
    make_store: MakeStore,
) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, lease=1_000, grace=0))
    await store.renew("n1", RETURN, returning=True)
    await store.connect(tab(), RETURN)
    await store.restore("n1", [known("bob", Status.OFFLINE)], RETURN + 1)
    assert changes(await store.disconnect(tab(), Ending.GOODBYE, RETURN + 2)) == []
    assert await sweep(store, BACK - 1) == []
    assert await sweep(store, BACK) == ["alice v2: online -> offline (goodbye)"]


async def test_without_a_grace_a_connection_lost_right_after_an_outage_is_held_too(make_store: MakeStore) -> None:
    store = await make_store(msgspec.structs.replace(TIMING, grace=0))
    await store.connect(tab(), T)
    await store.renew("n1", RETURN, returning=True)
    assert changes(await store.disconnect(tab(), Ending.LOST, RETURN + 1)) == []
    late = await store.connect(tab("opened meanwhile"), BACK - 1)
    assert (changes(late), late.resumed) == ([], True)


async def test_a_release_right_after_an_outage_takes_the_user_offline_at_once(store: Store) -> None:
    for user in ("alice", "bob"):
        await store.connect(tab(user=user), T)
    await store.disconnect(tab(user="bob"), Ending.LOST, T + 1)
    await store.renew("n1", RETURN, returning=True)
    await store.disconnect(tab(), Ending.GOODBYE, RETURN + 1)
    assert changes(await store.release("acme", "alice", RETURN + 1)) == ["alice v2: online -> offline (released)"]
    assert changes(await store.release("acme", "bob", RETURN + 1)) == ["bob v2: online -> offline (released)"]


async def test_a_connection_lost_right_after_an_outage_holds_its_user_until_nothing_is_prolonged_any_more(
    store: Store,
) -> None:
    await store.connect(tab(), T)
    await store.connect(tab(user="bob"), T)
    await store.renew("n1", RETURN, returning=True)
    await store.disconnect(tab(), Ending.LOST, RETURN + 1)
    await store.disconnect(tab(user="bob"), Ending.LOST, END - GRACE + 1)
    assert await sweep(store, END - 1) == []
    assert await sweep(store, END) == ["alice v2: online -> offline (connection lost)"]
    assert await sweep(store, END + 1) == ["bob v2: online -> offline (connection lost)"]


async def test_a_user_turns_away_in_an_outage_as_at_any_time(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n1", T + AWAY_AFTER - 1, returning=True)
    assert await sweep(store, T + AWAY_AFTER - 1) == []
    assert await sweep(store, T + AWAY_AFTER) == ["alice v2: online -> away (inactive)"]


# Giving back what the store lost


def known(user: str = "alice", status: Status = Status.ONLINE, version: int = 7, **values: Any) -> UserStatus:
    """What a node knows of a user."""
    times = {"active_at": T - 100, "online_since": None if status is Status.OFFLINE else T - 200}
    return UserStatus(tenant="acme", user_id=user, status=status, version=version, **(times | values))


RESTORED_BY = T + LEASE + GRACE
"""Until when nodes have time to register what was lost."""
EVERYTHING = known(
    active_at=T + 10, online_since=T - 7, profile=Profile(name="Alice"), meta_json=b'{"a":1}', ttl_until=T + 50_000
)


@pytest.mark.parametrize("status_known", [Status.ONLINE, Status.AWAY])
async def test_a_user_whom_the_store_lost_is_as_a_node_knows_them(store: Store, status_known: Status) -> None:
    given = msgspec.structs.replace(EVERYTHING, status=status_known)
    commit = await store.restore("n1", [given], T)
    assert changes(commit) == [f"alice v7: offline -> {status_known} (restored)"]
    assert (commit.transitions[0].now, commit.transitions[0].at) == (given, T)
    assert await status(store) == given


async def test_a_user_of_a_lower_version_here_is_as_a_node_knows_them(store: Store) -> None:
    await store.connect(tab(profile=Profile(name="A.", role="user")), T)
    await store.beat("n1", [hold(T, meta={"b": 2})])
    await store.disconnect(tab(), Ending.LOST, T)
    commit = await store.restore("n1", [EVERYTHING], T)
    assert changes(commit) == ["alice v7: online -> online (restored)"]
    assert await status(store) == EVERYTHING


async def test_what_a_node_does_not_know_is_not_kept_from_a_lower_version(store: Store) -> None:
    await store.connect(tab(profile=Profile(name="A.")), T - 100)
    await store.beat("n1", [hold(T - 100, meta={"b": 2})])
    await store.restore("n1", [known()], T)
    assert await status(store) == known()


@pytest.mark.parametrize(
    ("active_at", "expected"), [(T - 1, T), (T + 1, T + 1), (None, T)], ids=["earlier", "later", "never"]
)
async def test_a_restored_user_was_last_active_when_either_says_so_last(
    store: Store, active_at: int | None, expected: int
) -> None:
    await store.connect(tab(), T)
    commit = await store.restore("n1", [known(active_at=active_at)], T)
    assert commit.transitions[0].now.active_at == expected
    assert (await status(store)).active_at == expected


async def test_a_restored_user_without_a_connection_is_held_for_a_lease_and_a_grace(store: Store) -> None:
    await store.restore("n1", [known()], T)
    assert (await store.explain("acme", "alice")).grace_until == RESTORED_BY
    assert await sweep(store, RESTORED_BY - 1) == []
    assert await sweep(store, RESTORED_BY) == ["alice v8: online -> offline (node died)"]


async def test_a_restored_user_whom_a_ttl_holds_longer_stays_for_that(store: Store) -> None:
    await store.restore("n1", [known(ttl_until=T + 50_000)], T)
    assert await sweep(store, T + 49_999) == []
    assert await sweep(store, T + 50_000) == ["alice v8: online -> offline (heartbeats stopped)"]


async def test_a_connection_of_a_restored_user_that_is_registered_in_time_is_silent(store: Store) -> None:
    await store.restore("n1", [known()], T)
    back = await store.connect(tab(node="n2"), RESTORED_BY - 1)
    assert (changes(back), back.resumed) == ([], True)
    assert await sweep(store, RESTORED_BY) == []
    goodbye = await store.disconnect(tab(node="n2"), Ending.GOODBYE, RESTORED_BY)
    assert changes(goodbye) == ["alice v8: online -> offline (goodbye)"]


async def test_a_restored_user_with_a_connection_here_is_held_by_it_alone(store: Store) -> None:
    await store.connect(tab(), T)
    assert changes(await store.restore("n2", [known()], T)) == ["alice v7: online -> online (restored)"]
    assert (await store.explain("acme", "alice")).grace_until is None
    assert await sweep(store, RESTORED_BY) == []
    goodbye = await store.disconnect(tab(), Ending.GOODBYE, RESTORED_BY)
    assert changes(goodbye) == ["alice v8: online -> offline (goodbye)"]


async def test_a_user_with_a_connection_here_is_there_whatever_a_node_knows_of_before(store: Store) -> None:
    await store.connect(tab(), T)
    await store.connect(tab(user="bob"), T)
    given = [known("alice", Status.OFFLINE), known("bob", Status.AWAY)]
    assert changes(await store.restore("n2", given, T)) == [
        "alice v7: online -> offline (restored)",
        "alice v8: offline -> online (connected)",
        "bob v7: online -> away (restored)",
        "bob v8: away -> online (connected)",
    ]
    assert await sweep(store, RESTORED_BY) == []
    assert await sweep(store, T + AWAY_AFTER) == [
        "alice v9: online -> away (inactive)",
        "bob v9: online -> away (inactive)",
    ]


@pytest.mark.parametrize("ending", [Ending.GOODBYE, Ending.KICKED, Ending.TOKEN_EXPIRED, Ending.LOST])
async def test_until_all_are_registered_again_no_ending_takes_a_user_offline(store: Store, ending: Ending) -> None:
    for user in ("alice", "carol"):
        await store.connect(tab(user=user), T)
    await store.restore("n1", [known("bob")], T)
    assert changes(await store.disconnect(tab(), ending, T + 1)) == []
    assert changes(await store.disconnect(tab(user="carol"), ending, T + 1)) == []
    back = await store.connect(tab("two", node="n2"), RESTORED_BY - 1)
    assert (changes(back), back.resumed) == ([], True)
    assert await sweep(store, RESTORED_BY - 1) == []
    assert sorted(await sweep(store, RESTORED_BY)) == [
        "bob v8: online -> offline (node died)",
        f"carol v2: online -> offline ({ending})",
    ]


async def test_a_grace_that_is_longer_than_all_need_to_register_again_stays_so(store: Store) -> None:
    await store.connect(tab(), T)
    await store.restore("n1", [known("bob", Status.OFFLINE)], T)
    await store.disconnect(tab(), Ending.LOST, RESTORED_BY - 1)
    assert await sweep(store, RESTORED_BY - 2 + GRACE) == []
    assert await sweep(store, RESTORED_BY - 1 + GRACE) == ["alice v2: online -> offline (connection lost)"]


async def test_a_release_takes_a_restored_user_offline_at_once(store: Store) -> None:
    await store.restore("n1", [known()], T)
    assert changes(await store.release("acme", "alice", T)) == ["alice v8: online -> offline (released)"]


async def test_where_nothing_was_lost_endings_are_as_ever(store: Store) -> None:
    await store.connect(tab(), T)
    await store.connect(tab(user="bob"), T)
    await store.restore("n1", [known(version=1), known("bob", Status.AWAY, version=1)], T)
    goodbye = await store.disconnect(tab(), Ending.GOODBYE, T)
    assert changes(goodbye) == ["alice v2: online -> offline (goodbye)"]


async def test_a_restored_user_turns_away_as_any_other(store: Store) -> None:
    await store.connect(tab(), T - 100)
    await store.restore("n1", [known(active_at=T)], T)
    assert await sweep(store, T + AWAY_AFTER - 1) == []
    assert await sweep(store, T + AWAY_AFTER) == ["alice v8: online -> away (inactive)"]


async def test_a_user_who_is_offline_is_restored_with_when_they_were_last_seen(store: Store) -> None:
    gone = known(status=Status.OFFLINE, profile=Profile(name="Alice"), meta_json=b"{}")
    commit = await store.restore("n1", [gone], T)
    assert changes(commit) == ["alice v7: offline -> offline (restored)"]
    assert await status(store) == gone
    assert await sweep(store, T + TTL) == []


async def test_a_user_held_here_goes_offline_where_a_node_knows_that_they_went(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T)
    gone = known(status=Status.OFFLINE, active_at=T)
    assert changes(await store.restore("n1", [gone], T)) == ["alice v7: online -> offline (restored)"]
    assert await status(store) == gone
    assert (await store.explain("acme", "alice")).grace_until is None
    assert await sweep(store, T + TTL) == []
    assert changes(await store.connect(tab("two"), T + TTL)) == ["alice v8: offline -> online (connected)"]


async def test_of_two_statuses_of_one_version_the_store_s_gets_a_version_that_nobody_has_seen(store: Store) -> None:
    for other, user in [(Status.AWAY, "alice"), (Status.OFFLINE, "bob")]:
        before = (await store.connect(tab(user=user), T)).transitions[0].now
        commit = await store.restore("n1", [known(user, other, version=1, active_at=T + 9)], T + 5)
        assert changes(commit) == [f"{user} v2: online -> online (restored)"]
        assert await status(store, user) == msgspec.structs.replace(before, version=2)


async def test_what_the_store_has_is_not_changed_by_what_was_before(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.KICKED, T)
    await store.connect(tab(), T)
    before = await store.snapshot()
    assert (await status(store)).version == 3
    for version, status_known in [(1, Status.AWAY), (2, Status.OFFLINE), (3, Status.ONLINE)]:
        commit = await store.restore("n1", [known(status=status_known, version=version, active_at=T + 9)], T)
        assert (changes(commit), commit.position) == ([], before.position)
    assert changes(await store.restore("n1", [], T)) == []
    assert await store.snapshot() == before


async def test_what_was_given_back_once_changes_nothing_the_second_time(store: Store) -> None:
    for node in NODES:
        assert len((await store.restore(node, [known("alice"), known("bob")], T)).transitions) == (node == "n1") * 2
    assert await sweep(store, RESTORED_BY - 1) == []


async def test_a_node_without_a_lease_gives_back_nothing(store: Store) -> None:
    before = await store.snapshot()
    with pytest.raises(LeaseLostError):
        await store.restore("never heard of", [known()], T)
    assert await store.snapshot() == before


async def test_every_version_that_is_given_back_is_a_transition_on_the_log(store: Store) -> None:
    start = (await store.connect(tab(), T)).position
    names = ["alice", *(f"user-{number}" for number in range(450))]
    commit = await store.restore("n1", [known(name, version=5) for name in names], T)
    assert [(t.user_id, t.now.version) for t in commit.transitions] == [(name, 5) for name in names]
    assert list(await store.read(start, wait=False)) == list(commit.transitions)
    assert commit.position == (await store.snapshot()).position == commit.transitions[-1].position
    assert [t.reason for t in (await store.explain("acme", "alice")).transitions] == ["connected", "restored"]


# Versions, tenants, profile and meta


async def test_versions_have_no_gaps_whichever_node_commits(store: Store) -> None:
    for number in range(10):
        node = NODES[number % 2]
        await store.connect(tab(f"tab-{number}", node=node), T + number)
        await store.disconnect(tab(f"tab-{number}", node=node), Ending.GOODBYE, T + number)
    versions = [entry.now.version for entry in await store.read(0, wait=False) if not isinstance(entry, Activity)]
    assert versions == list(range(1, 21))


async def test_racing_connections_and_endings_make_one_transition_each(store: Store) -> None:
    tabs = [tab(f"tab-{number}", node=NODES[number % 2]) for number in range(10)]
    commits = await asyncio.gather(*(store.connect(one, T) for one in tabs))
    assert [line for commit in commits for line in changes(commit)] == ["alice v1: offline -> online (connected)"]
    commits = await asyncio.gather(*(store.disconnect(one, Ending.KICKED, T) for one in tabs))
    assert [line for commit in commits for line in changes(commit)] == ["alice v2: online -> offline (kicked)"]


async def test_the_same_user_id_in_two_tenants_is_two_users(store: Store) -> None:
    await store.connect(tab(tenant="acme"), T)
    commit = await store.connect(tab(tenant="other"), T)
    assert changes(commit) == ["alice v1: offline -> online (connected)"]
    assert commit.transitions[0].tenant == "other"
    await store.beat("n1", [pulse(T + 5, tenant="other", meta={"at": "other"})])
    await store.disconnect(tab(tenant="other"), Ending.KICKED, T + 6)
    await store.release("other", "alice", T + 6)
    assert await status(store, tenant="acme") == msgspec.structs.replace(
        commit.transitions[0].now, tenant="acme", active_at=T
    )
    assert [t.now.tenant for t in (await store.explain("acme", "alice")).transitions] == ["acme"]


async def test_tenants_and_users_whose_names_run_together_stay_apart(store: Store) -> None:
    for tenant, user in [("a", "b:c"), ("a:b", "c"), ("a}", "{b"), ("a", "b|c")]:
        await store.connect(tab(tenant=tenant, user=user), T)
    assert sorted((s.tenant, s.user_id, s.version) for s in (await store.snapshot()).statuses) == [
        ("a", "b:c", 1),
        ("a", "b|c", 1),
        ("a:b", "c", 1),
        ("a}", "{b", 1),
    ]


async def test_the_profile_of_the_newest_connection_counts(store: Store) -> None:
    await store.connect(tab("one", profile=Profile(name="Alice", role="user")), T)
    await store.connect(tab("two", profile=Profile(name="Alice B.", avatar="/a.png")), T)
    assert (await status(store)).profile == Profile(name="Alice B.", avatar="/a.png")
    assert (await status(store)).version == 1


async def test_a_beat_carries_a_profile_and_meta_or_leaves_them(store: Store) -> None:
    await store.beat("n1", [hold(T, profile=Profile(name="Alice"), meta={"page": {"id": 1, "é": [None, 1.5]}})])
    assert (await status(store)).profile == Profile(name="Alice")
    assert (await status(store)).meta == {"page": {"id": 1, "é": [None, 1.5]}}
    await store.beat("n1", [hold(T + 1)])
    assert (await status(store)).profile == Profile(name="Alice")
    assert (await status(store)).meta == {"page": {"id": 1, "é": [None, 1.5]}}
    await store.beat("n1", [pulse(T + 2, profile=NOBODY, meta={})])
    assert (await status(store)).profile == Profile(name="Alice")  # a token that says nothing takes nothing back
    assert (await status(store)).meta == {}


async def test_profile_and_meta_survive_going_offline(store: Store) -> None:
    await store.connect(tab(profile=Profile(name="Alice")), T)
    await store.beat("n1", [pulse(T, meta={"a": 1})])
    await store.disconnect(tab(), Ending.KICKED, T)
    assert ((await status(store)).profile, (await status(store)).meta) == (Profile(name="Alice"), {"a": 1})


async def test_an_older_beat_still_replaces_the_meta(store: Store) -> None:
    await store.connect(tab(), T)
    await store.beat("n1", [pulse(T + 2_000, meta={"a": 1})])
    await store.beat("n2", [pulse(T + 1_000, meta={"a": 2})])
    assert ((await status(store)).active_at, (await status(store)).meta) == (T + 2_000, {"a": 2})


# The log


async def test_the_log_is_read_past_a_position_in_order(store: Store) -> None:
    assert list(await store.read(0, wait=False)) == []
    first = await store.connect(tab(), T)
    second = await store.connect(tab(user="bob"), T)
    third = await store.disconnect(tab(user="bob"), Ending.GOODBYE, T)
    entries = list(await store.read(0, wait=False))
    assert entries == [*first.transitions, *second.transitions, *third.transitions]
    assert all(a.position < b.position for a, b in pairwise(entries))
    assert list(await store.read(first.position, wait=False)) == entries[1:]
    assert list(await store.read(third.position, wait=False)) == []


async def test_the_log_says_where_it_ends(store: Store) -> None:
    assert await store.position() == 0
    commit = await store.connect(tab(), T)
    assert await store.position() == commit.position > 0
    await store.beat("n1", [pulse(T + 5)])
    assert await store.position() == (await store.read(commit.position, wait=False))[-1].position


async def test_activity_is_logged_where_it_is_news_of_a_user_who_is_there(store: Store) -> None:
    connected = await store.connect(tab(), T)
    commit = await store.beat("n1", [pulse(T + 1, meta={"a": 1}), pulse(T + 1, "nobody"), pulse(T + 1, meta={"a": 1})])
    assert list(await store.read(connected.position, wait=False)) == [
        Activity(
            position=commit.position, tenant="acme", user_id="alice", version=1, active_at=T + 1, meta_json=b'{"a":1}'
        )
    ]


async def test_a_ttl_is_logged_where_it_grows_and_where_a_release_ends_it(store: Store) -> None:
    start = (await store.connect(tab(), T)).position
    held = await store.beat("n1", [hold(T + 1)])
    older = await store.beat("n1", [hold(T)])
    released = await store.release("acme", "alice", T + 2)
    again = await store.release("acme", "alice", T + 3)

    def activity(commit: Commit, **values: Any) -> Activity:
        return Activity(position=commit.position, tenant="acme", user_id="alice", version=1, **values)

    assert list(await store.read(start, wait=False)) == [
        activity(held, active_at=T + 1, ttl_until=T + 1 + TTL),
        activity(released, ttl_until=0),
    ]
    assert (older.position, again.position) == (held.position, released.position)


async def test_a_transition_carries_the_ttl_of_a_user_whom_it_brings_online(store: Store) -> None:
    commit = await store.beat("n1", [hold(T)])
    assert commit.transitions[0].now.ttl_until == T + TTL
    assert list(await store.read(0, wait=False)) == list(commit.transitions)
    commit = await store.release("acme", "alice", T)
    assert commit.transitions[0].now.ttl_until is None


async def test_a_waiting_reader_gets_what_is_committed_next(store: Store) -> None:
    start = (await store.connect(tab(), T)).position
    readers = [asyncio.create_task(store.read(start, wait=True)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    commit = await store.disconnect(tab(), Ending.KICKED, T)
    for reader in readers:
        assert list(await asyncio.wait_for(reader, 5)) == list(commit.transitions)


async def test_a_reader_that_waits_returns_at_once_where_there_is_something(store: Store) -> None:
    commit = await store.connect(tab(), T)
    assert list(await asyncio.wait_for(store.read(0, wait=True), 5)) == list(commit.transitions)


async def test_a_waiting_reader_is_cancelled_by_its_own_side(store: Store) -> None:
    reader = asyncio.create_task(store.read(0, wait=True))
    await asyncio.sleep(0)
    reader.cancel()
    with suppress(asyncio.CancelledError):
        await reader
    commit = await store.connect(tab(), T)
    assert list(await store.read(0, wait=True)) == list(commit.transitions)


async def test_a_reader_who_fell_behind_a_trimmed_log_is_told_so_and_takes_a_snapshot(make_store: MakeStore) -> None:
    store = await make_store(log_length=10)
    view = View()
    # Many times the length, for adapters that trim in larger steps.
    for number in range(600):
        await store.beat("n1", [hold(T, f"user-{number}")])
    for wait in (True, False):
        with pytest.raises(LogTrimmedError):
            await store.read(0, wait=wait)
    snapshot = await store.snapshot()
    view.load(snapshot)
    assert view.online_count("acme") == 600
    commit = await store.beat("n1", [hold(T, "late")])
    assert list(await store.read(snapshot.position, wait=False)) == list(commit.transitions)


async def test_the_log_applied_to_any_snapshot_rebuilds_the_state(store: Store) -> None:
    views = []

    async def photograph() -> None:
        view = View()
        view.load(await store.snapshot())
        views.append(view)

    await photograph()
    await store.connect(tab(profile=Profile(name="Alice")), T)
    await photograph()
    await store.beat("n2", [hold(T + 1, "bob", meta={"a": 1}), pulse(T + 1)])
    await photograph()
    await store.beat("n2", [hold(T + 1)])
    await photograph()
    await store.release("acme", "alice", T + 1)
    await photograph()
    await store.disconnect(tab(), Ending.LOST, T + 2)
    await sweep(store, T + 2 + GRACE)
    await photograph()
    snapshot = await store.snapshot()
    for view in views:
        view.apply(await store.read(view.position, wait=False))
        assert view.position == snapshot.position
        assert {(s.tenant, s.user_id): view.status(s.tenant, s.user_id) for s in snapshot.statuses} == {
            (s.tenant, s.user_id): s for s in snapshot.statuses
        }


# Explaining


async def test_explain_tells_connections_and_leases_of_an_online_user(store: Store) -> None:
    await store.connect(tab("one", node="n1"), T)
    await store.connect(tab("two", node="n2"), T)
    await store.beat("n1", [hold(T)])
    await store.renew("n2", T + 1_000)
    explanation = await store.explain("acme", "alice")
    assert explanation.status == await status(store)
    assert sorted(c.id for c in explanation.connections) == ["acme/alice/one", "acme/alice/two"]
    assert explanation.leases == {"n1": T + LEASE, "n2": T + 1_000 + LEASE}
    assert (explanation.grace_until, explanation.status.ttl_until) == (None, T + TTL)
    assert [t.now.version for t in explanation.transitions] == [1]
    assert explanation.because == "2 live connections (socketio)"


async def test_explain_tells_the_grace_of_a_user_who_lost_the_connection(store: Store) -> None:
    await store.connect(tab(), T)
    await store.disconnect(tab(), Ending.LOST, T)
    explanation = await store.explain("acme", "alice")
    assert (explanation.connections, explanation.leases) == ((), {})
    assert (explanation.grace_until, explanation.status.ttl_until) == (T + GRACE, None)
    assert explanation.because == "no connection lives, and the grace after the last one runs"


async def test_explain_tells_the_ttl_where_it_outlasts_the_grace(store: Store) -> None:
    await store.connect(tab(), T)
    await store.beat("n1", [hold(T)])
    await store.disconnect(tab(), Ending.LOST, T)
    await sweep(store, T + GRACE)
    explanation = await store.explain("acme", "alice")
    assert explanation.status.ttl_until == T + TTL
    assert explanation.because == "no connection lives, and the last heartbeat is younger than the TTL"


async def test_explain_tells_inactivity(store: Store) -> None:
    await store.connect(tab(), T)
    await sweep(store, T + AWAY_AFTER)
    explanation = await store.explain("acme", "alice")
    assert explanation.because == "1 live connection (socketio); inactive for longer than PRESENCE_AWAY_AFTER"


async def test_explain_tells_what_took_a_user_offline_and_the_last_transitions_oldest_first(store: Store) -> None:
    await store.connect(tab(), T)
    await store.beat("n1", [hold(T)])
    await store.disconnect(tab(), Ending.LOST, T)
    await store.release("acme", "alice", T + 1)
    explanation = await store.explain("acme", "alice")
    assert [(t.was, t.now.status, t.reason) for t in explanation.transitions] == [
        ("offline", "online", "connected"),
        ("online", "offline", "released"),
    ]
    assert (explanation.grace_until, explanation.status.ttl_until) == (None, None)
    assert explanation.because == "the last change was: released"


async def test_explain_of_a_user_never_seen_says_so_and_remembers_nothing(store: Store) -> None:
    explanation = await store.explain("acme", "nobody")
    assert explanation.status == UserStatus(tenant="acme", user_id="nobody")
    assert explanation.because == "never seen"
    assert (await store.snapshot()).statuses == ()


# Set by hand


def others(published: UserStatus) -> UserStatus:
    """What others are told of a user, as if it were alice's."""
    return msgspec.structs.replace(published, own=None, user_id="alice")


async def set_status(store: Store, status: str, at: int, text: str | None = None, until: int | None = None) -> Commit:
    return await store.set_status("acme", "alice", Choice(Chosen(status), text, until), at)


@pytest.mark.parametrize(
    ("chosen", "active", "inactive"),
    [
        ("online", "online", "away"),
        ("away", "away", "away"),
        ("busy", "busy", "busy"),
        ("dnd", "dnd", "dnd"),
        ("invisible", "offline", "offline"),
    ],
)
async def test_a_status_set_by_hand_beats_activity(store: Store, chosen: str, active: str, inactive: str) -> None:
    await store.connect(tab(), T)
    await set_status(store, chosen, T + 1)
    assert (await status(store)).status == active
    await sweep(store, T + 1 + AWAY_AFTER)
    assert (await status(store)).status == inactive
    await store.beat("n1", [pulse(T + 2 + AWAY_AFTER)])
    assert (await status(store)).status == active
    assert changes(await store.disconnect(tab(), Ending.KICKED, T + 3 + AWAY_AFTER))[:1] == (
        [] if chosen == "invisible" else [f"alice v{(await status(store)).version}: {active} -> offline (kicked)"]
    )
    assert (await status(store)).status == "offline"


async def test_each_visible_choice_is_one_transition_and_the_same_again_is_none(store: Store) -> None:
    await store.connect(tab(), T)
    assert changes(await set_status(store, "busy", T + 1)) == ["alice v2: online -> busy (set by hand)"]
    (texted,) = (await set_status(store, "busy", T + 2, "in a call")).transitions
    assert (texted.was, texted.now.status, texted.was_text, texted.now.status_text) == (
        *("busy", "busy", None, "in a call"),
    )
    assert texted.event == "user-status-changed"
    before = await store.snapshot()
    assert changes(await set_status(store, "busy", T + 3, "in a call")) == []
    assert await store.snapshot() == before
    assert changes(await set_status(store, "away", T + 4)) == ["alice v4: busy -> away (set by hand)"]
    assert changes(await set_status(store, "online", T + 5)) == ["alice v5: away -> online (set by hand)"]


async def test_setting_online_is_no_activity(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "dnd", T + 1)
    assert changes(await set_status(store, "online", T + AWAY_AFTER)) == ["alice v3: dnd -> away (set by hand)"]
    assert (await status(store)).active_at == T


async def test_a_choice_runs_out_at_its_time_by_the_sweep(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "busy", T, "in a call", T + 5_000)
    assert await sweep(store, T + 4_999) == []
    assert (await status(store)).status_text == "in a call"
    assert await sweep(store, T + 5_000) == ["alice v3: busy -> online (set by hand until now)"]
    assert (await status(store)).status_text is None
    assert await sweep(store, T + AWAY_AFTER) == ["alice v4: online -> away (inactive)"]


async def test_a_choice_that_runs_out_when_its_user_is_inactive_leaves_them_away(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "dnd", T, None, T + AWAY_AFTER + 1)
    assert await sweep(store, T + AWAY_AFTER + 1) == ["alice v3: dnd -> away (set by hand until now)"]


async def test_a_text_without_a_status_runs_out_too(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "online", T, "new here", T + 5_000)
    assert (await status(store)).status_text == "new here"
    assert await sweep(store, T + 5_000) == ["alice v3: online -> online (set by hand until now)"]
    assert (await status(store)).status_text is None


async def test_a_choice_outlasts_going_offline(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "dnd", T, "do not ask", T + 60_000)
    await store.disconnect(tab(), Ending.GOODBYE, T + 1)
    offline = await status(store)
    assert (offline.status, offline.status_text) == ("offline", None)
    assert changes(await store.connect(tab("two"), T + 2)) == ["alice v4: offline -> dnd (connected)"]
    assert (await status(store)).status_text == "do not ask"
    await store.disconnect(tab("two"), Ending.GOODBYE, T + 3)
    assert changes(await store.connect(tab("three"), T + 60_000)) == ["alice v6: offline -> online (connected)"]


async def test_a_choice_that_ran_out_while_its_user_was_away_is_not_there_when_they_come_back(store: Store) -> None:
    await set_status(store, "invisible", T, "hush", T + 5_000)
    assert await sweep(store, T + 5_000) == []
    assert changes(await store.connect(tab(), T + 5_001)) == ["alice v1: offline -> online (connected)"]
    assert (await status(store)).status_text is None


async def test_a_choice_of_a_user_never_seen_waits_for_them(store: Store) -> None:
    assert changes(await set_status(store, "busy", T)) == []
    assert others(await status(store)) == UserStatus(tenant="acme", user_id="alice")
    assert changes(await store.beat("n1", [hold(T + 1)])) == ["alice v1: offline -> busy (active)"]


async def test_setting_nothing_makes_nobody_known(store: Store) -> None:
    await set_status(store, "online", T)
    assert (await store.snapshot()).statuses == ()


async def test_whoever_turns_invisible_is_as_one_who_said_goodbye_whatever_they_do(store: Store) -> None:
    said: dict[str, Any] = {"meta": {"page": "home"}, "profile": Profile(name="A")}
    for name in ("alice", "bob"):
        await store.connect(tab(user=name), T)
        await store.beat("n1", [pulse(T + 1, name, **said)])
    hides = await set_status(store, "invisible", T + 2, "hush")
    leaves = await store.disconnect(tab(user="bob"), Ending.GOODBYE, T + 2)

    def told(commit: Commit) -> list[Any]:
        return [(t.at, t.was, t.was_text, others(t.now), t.reason, t.event) for t in commit.transitions]

    assert told(hides) == told(leaves)
    gone = others(await status(store, "bob"))
    assert others(await status(store)) == gone
    view = View()
    view.load(await store.snapshot())
    acts = [
        await store.beat("n1", [pulse(T + 3, meta={"page": "secret"}, profile=Profile(name="B"))]),
        await store.beat("n1", [hold(T + 4)]),
        await store.connect(tab("two", node="n2"), T + 5),
        await set_status(store, "invisible", T + 6, "another text"),
        await store.release("acme", "alice", T + 7),
        await store.sweep(T + 5_000),
        await store.disconnect(tab(), Ending.LOST, T + 5_001),
        await store.disconnect(tab("two", node="n2"), Ending.GOODBYE, T + 5_002),
        await store.connect(tab("three"), T + 5_003),
    ]
    assert [changes(commit) for commit in acts] == [[]] * len(acts)
    assert others(await status(store)) == gone
    entries = await store.read(view.position, wait=False)
    assert view.apply(entries) == []
    assert msgspec.structs.replace(view.status("acme", "alice"), user_id="alice") == gone
    assert view.own_status("acme", "alice", T + 5_003) == (await store.explain("acme", "alice")).status
    own = view.own_status("acme", "alice", T + 5_003)
    assert (own.status, own.status_text, own.active_at, own.online_since, own.invisible) == (
        *("online", "another text", T + 5_003, T + 5_003, True),
    )
    assert own.meta == {"page": "secret"}


async def test_coming_back_from_invisible_is_coming_online_then(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "invisible", T + 1)
    await store.beat("n1", [pulse(T + 2)])
    (back,) = (await set_status(store, "busy", T + 3)).transitions
    assert (back.was, back.now.status, back.reason, back.event) == ("offline", "busy", "connected", "user-online")
    assert (back.now.active_at, back.now.online_since, back.now.version) == (T + 3, T + 3, 3)


async def test_whoever_is_invisible_until_a_time_comes_online_then(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "invisible", T + 1, None, T + 5_000)
    assert await sweep(store, T + 5_000) == ["alice v3: offline -> online (connected)"]


async def test_what_was_done_unseen_is_not_told_when_a_choice_ends_of_one_who_has_gone(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "invisible", T + 1)
    before = others(await status(store))
    await store.beat("n1", [pulse(T + 2, meta={"page": "secret"})])
    await store.disconnect(tab(), Ending.GOODBYE, T + 3)
    assert changes(await set_status(store, "online", T + 4)) == []
    assert others(await status(store)) == before


@pytest.mark.parametrize("chosen", ["busy", "invisible"])
@pytest.mark.parametrize("emptied", [True, False])
async def test_a_choice_that_the_store_lost_is_given_back(make_store: MakeStore, chosen: str, *, emptied: bool) -> None:
    store, later = await make_store(), await make_store()
    for each in (store,) if emptied else (store, later):  # the other one has lost the choice alone
        await each.connect(tab(), T)
        await each.disconnect(tab(), Ending.GOODBYE, T + 1)
    await set_status(store, chosen, T + 2, "hush", T + 900_000)
    view = View()
    view.load(await store.snapshot())
    lost = view.ahead_of(await later.snapshot())
    assert [status.user_id for status in lost] == ["alice"]
    await later.restore("n1", lost, T + 3)
    assert view.ahead_of(await later.snapshot()) == []
    assert others(await status(later)) == others(await status(store))
    commit = await later.connect(tab("two"), T + 4)
    assert len(commit.transitions) == (1 if chosen == "busy" else 0)
    own = (await later.explain("acme", "alice")).status
    assert (own.status, own.status_text, own.invisible) == (
        *("online" if chosen == "invisible" else "busy", "hush", chosen == "invisible"),
    )


async def test_explain_says_what_was_set_by_hand(store: Store) -> None:
    await store.connect(tab(), T)
    await set_status(store, "invisible", T + 1)
    explanation = await store.explain("acme", "alice")
    assert explanation.because == "1 live connection (socketio); set to invisible by hand"
    assert explanation.status.invisible


async def test_whoever_is_away_is_active_in_turning_invisible(store: Store) -> None:
    await store.connect(tab(), T)
    await sweep(store, T + AWAY_AFTER)
    assert changes(await set_status(store, "invisible", T + AWAY_AFTER + 1)) == ["alice v3: away -> offline (goodbye)"]
    told = (await store.explain("acme", "alice")).status
    assert (told.status, told.active_at, (await status(store)).active_at) == (
        *("online", T + AWAY_AFTER + 1, T + AWAY_AFTER + 1),
    )


# What is told of a change for those who watch over the gateway


def due(commit: Commit) -> list[tuple[str, int | None]]:
    return [(change.reason, change.due) for change in commit.transitions]


async def logged(store: Store) -> list[Transition]:
    return [entry for entry in await store.read(0, wait=False) if isinstance(entry, Transition)]


async def test_who_goes_since_their_time_was_over_went_when_that_was(store: Store) -> None:
    await store.connect(tab(), T)
    await store.connect(tab(user="bob"), T)
    await store.beat("n1", [hold(T, "carol")])
    await store.disconnect(tab(), Ending.LOST, T + 10)
    for node in NODES:
        await store.renew(node, T + TTL + 400)
    assert sorted(due(await store.sweep(T + GRACE + 300))) == [("connection lost", T + 10 + GRACE)]
    assert sorted(due(await store.sweep(T + TTL + 400))) == [("heartbeats stopped", T + TTL), ("inactive", None)]
    assert [each.due for each in await logged(store) if each.due is not None] == [T + 10 + GRACE, T + TTL]


async def test_who_went_with_their_node_went_a_grace_after_its_lease(store: Store) -> None:
    await store.connect(tab(), T)
    await store.renew("n2", T + LEASE)
    assert due(await store.sweep(T + LEASE)) == []
    assert due(await store.sweep(T + LEASE + GRACE + 70)) == [("node died", T + LEASE + GRACE)]


async def test_who_says_goodbye_was_due_at_no_time_though_a_heartbeat_of_theirs_ran_out_long_ago(store: Store) -> None:
    await store.beat("n1", [hold(T)])
    for node in NODES:
        await store.renew(node, T + TTL)
    await store.connect(tab(), T + 10)
    await store.beat("n1", [pulse(T + TTL)])
    assert due(await store.disconnect(tab(), Ending.GOODBYE, T + TTL + 10)) == [("goodbye", None)]


async def test_a_change_knows_the_trace_that_it_is_part_of(store: Store) -> None:
    current: Trace | None = None
    store.trace = lambda: current
    commits = [await store.connect(tab(), T)]
    plain, with_state = Trace(f"00-{'a' * 32}-{'b' * 16}-01"), Trace(f"00-{'c' * 32}-{'d' * 16}-01", "us=a b,them=2")
    current = plain
    commits.append(await store.disconnect(tab(), Ending.GOODBYE, T + 1))
    current = with_state
    commits.append(await store.beat("n1", [hold(T + 2)]))
    current = None
    commits.append(await store.release("acme", "alice", T + 3))
    expected = [(None, None), (plain.traceparent, None), (with_state.traceparent, "us=a b,them=2"), (None, None)]
    assert [(each.traceparent, each.tracestate) for commit in commits for each in commit.transitions] == expected
    assert [(each.traceparent, each.tracestate) for each in await logged(store)] == expected
