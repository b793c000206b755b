"""What one user, one address and one tenant may take of a node."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import STEP, Clock, make_settings
from redis_servers import fresh_prefix

from gateway.access.auth import Identity
from gateway.access.quotas import LIMITS, Quotas
from gateway.errors import InvalidPayloadError, RateLimitedError, TenantFullError, TooManyConnectionsError
from gateway.presence.model import NOBODY
from gateway.redis.connection import connect
from gateway.redis.tallies import INTERVAL, Tallies


def who(user: str = "alice", tenant: str = "acme") -> Identity:
    return Identity(tenant=tenant, user_id=user, profile=NOBODY, expires_at=None)


def quotas(**settings: Any) -> Quotas:
    return Quotas(make_settings(**settings))


def refused(limits: Quotas) -> dict[str, int]:
    assert set(limits.refused) == set(LIMITS)
    return {limit: count for limit, count in limits.refused.items() if count}


def test_without_settings_there_are_none() -> None:
    limits = quotas()
    limits.admit(who(), None, 10**6, 10**6)
    assert limits.shares(who(), None, 0) is None
    assert limits.address_of(None) is None  # type: ignore[arg-type]  # it is not even looked at
    limits.admit_watched(who(), None, 0, 1000)
    assert refused(limits) == {}


def test_connections_are_counted_by_user_address_and_tenant() -> None:
    limits = quotas(max_connections_per_user=2, max_connections_per_address=3, max_connections_per_tenant=5)
    limits.admit(who(), "here", 1, 1)
    with pytest.raises(TooManyConnectionsError, match="a user may have 2"):
        limits.admit(who(), "here", 2, 2)
    for _ in range(3):
        limits.opened("here")
    with pytest.raises(TooManyConnectionsError, match="an address may have 3"):
        limits.admit(who(), "here", 0, 3)
    limits.admit(who(), "there", 0, 3)
    limits.admit(who(), None, 0, 3)
    for _ in range(3):
        limits.closed("here")
    assert limits._from == {}
    limits.admit(who(), "here", 0, 0)
    limits.elsewhere = {"acme": 3, "other": 9}
    limits.admit(who(), "here", 0, 1)
    with pytest.raises(TenantFullError, match="the tenant may have 5"):
        limits.admit(who(), "here", 0, 2)
    assert refused(limits) == {"connections_per_user": 1, "connections_per_address": 1, "connections_per_tenant": 1}


@pytest.mark.parametrize("kind", ["user", "address", "tenant"])
def test_events_of_all_connections_take_from_one_bucket(kind: str) -> None:
    limits = quotas(**{f"rate_limit_events_per_{kind}": "3/min"})
    same = {"user": (who(), "there"), "address": (who("bob", "other"), "here"), "tenant": (who("bob"), "there")}[kind]
    others = {"user": (who("bob"), "here"), "address": (who(), "there"), "tenant": (who("alice", "other"), "here")}
    one, other = limits.shares(who(), "here", 0), limits.shares(*same, 0)
    stranger = limits.shares(*others[kind], 0)
    assert one is not None
    assert other is not None
    assert stranger is not None
    for shares in (one, other, one):
        limits.take(shares, 0)
    with pytest.raises(RateLimitedError, match=f"more than 3 requests in 60 s of this {kind}") as caught:
        limits.take(other, 0)
    assert caught.value.retry_after == 20
    limits.take(stranger, 0)
    limits.take(other, 20)
    again = limits.shares(who(), "here", 20)  # a new connection brings no new bucket
    assert again is not None
    with pytest.raises(RateLimitedError):
        limits.take(again, 20)
    assert refused(limits) == {f"events_per_{kind}": 2}


def test_who_has_no_address_takes_from_none() -> None:
    assert quotas(rate_limit_events_per_address="3/min").shares(who(), None, 0) == ()


def test_watch_lists_are_bounded_by_connection() -> None:
    limits = quotas(max_watched_users=10)
    limits.admit_watched(who(), None, 5, 5)
    with pytest.raises(InvalidPayloadError, match="a connection may watch 10 users; this one watches 5"):
        limits.admit_watched(who(), None, 5, 6)
    limits.count_watched(who(), "192.0.2.1", 1000)  # which no limit asks for
    limits.admit_watched(who(), "192.0.2.1", 0, 10)
    assert refused(limits) == {"watched_per_connection": 1}


@pytest.mark.parametrize(
    ("whose", "together", "apart"),
    [
        ("a user", (who("alice"), "192.0.2.1"), (who("bob"), "192.0.2.1")),
        ("an address", (who("bob"), "192.0.2.1"), (who("alice"), "192.0.2.2")),
        ("a tenant", (who("bob"), "192.0.2.2"), (who("alice", "other"), "192.0.2.1")),
    ],
)
def test_watch_lists_are_bounded_by_user_by_address_and_by_tenant(
    whose: str, together: tuple[Identity, str], apart: tuple[Identity, str]
) -> None:
    kind = whose.split()[1]
    limits = quotas(**{f"max_watched_users_per_{kind}": 15})
    limits.count_watched(who("alice"), "192.0.2.1", 11)
    limits.admit_watched(*together, 0, 4)
    limits.admit_watched(*apart, 0, 15)
    with pytest.raises(InvalidPayloadError, match=f"{whose} may watch 15 users over all connections; these watch 11"):
        limits.admit_watched(*together, 0, 5)
    limits.count_watched(*together, 4)
    limits.admit_watched(*together, 10, 0)  # what is watched already is no more
    limits.count_watched(who("alice"), "192.0.2.1", -11)
    limits.admit_watched(*together, 4, 11)
    limits.count_watched(*together, -4)
    assert not limits._watched
    assert refused(limits) == {f"watched_per_{kind}": 1}


def test_who_has_no_address_watches_with_nobody() -> None:
    limits = quotas(max_watched_users_per_address=1)
    limits.count_watched(who(), None, 100)
    limits.admit_watched(who(), None, 100, 100)


async def test_nodes_know_what_the_others_count(redis_url: str) -> None:
    prefix, clock = fresh_prefix(), Clock()
    counts: list[dict[str, int]] = [{"acme": 1}, {"acme": 2, "other": 3}, {}]
    heard: list[dict[str, int]] = [{}, {}, {}]
    client = connect(redis_url, timeout=STEP)
    nodes = [
        Tallies(
            client,
            prefix,
            f"node-{n}",
            keep=10,
            clock=clock,
            mine=lambda n=n: counts[n],  # type: ignore[misc]
            on_others=lambda others, n=n: heard.__setitem__(n, others),  # type: ignore[misc]
        )
        for n in range(3)
    ]

    async def exchange(*which: int) -> list[dict[str, int]]:
        for n in which:
            await nodes[n].exchange()
        return heard

    assert await exchange(0, 1, 2, 0) == [{"acme": 2, "other": 3}, {"acme": 1}, {"acme": 3, "other": 3}]
    counts[0] = {}
    clock.advance(s=9)
    assert await exchange(0, 2, 1) == [{"acme": 2, "other": 3}, {}, {"acme": 2, "other": 3}]
    clock.advance(s=9)
    await exchange(0, 2)
    clock.advance(s=2)  # the second has not been heard of for 11 seconds
    assert (await exchange(0, 2))[0] == {}
    assert (await exchange(1, 0))[0] == {"acme": 2, "other": 3}  # it is back, and unchanged
    await nodes[1].close()
    assert (await exchange(0))[0] == {}
    for n in (0, 2):
        await nodes[n].close()
    await client.aclose()


async def test_a_node_with_a_short_lease_is_not_forgotten_between_two_times_that_it_tells(redis_url: str) -> None:
    prefix, clock, heard = fresh_prefix(), Clock(), list[dict[str, int]]()
    client = connect(redis_url, timeout=STEP)
    one, other = (
        Tallies(client, prefix, name, keep=1, clock=clock, mine=lambda: {"acme": 1}, on_others=heard.append)
        for name in ("one", "other")
    )
    await one.exchange()
    clock.advance(s=2 * INTERVAL)  # it was held up
    await other.exchange()
    assert heard == [{}, {"acme": 1}]
    await one.close()
    await other.close()
    await client.aclose()
