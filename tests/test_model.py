from datetime import UTC, datetime

import pytest
from conftest import TIMING

from gateway.presence.model import (
    Activity,
    Connection,
    Ending,
    Event,
    Held,
    Profile,
    Status,
    Transition,
    UserStatus,
    earliest,
    event_between,
    latest,
    next_change,
    status_at,
    to_datetime,
)

TAB = Connection(tenant="acme", user_id="alice", id="tab", node="n1", door="socketio", connected_at=0)
ONE_TAB = Held(connections={"tab": TAB})
NOBODY_THERE = Held()


@pytest.mark.parametrize(
    ("held", "active_at", "now", "status"),
    [
        (NOBODY_THERE, None, 0, "offline"),
        (NOBODY_THERE, 0, 1, "offline"),
        (ONE_TAB, 0, 89_999, "online"),
        (ONE_TAB, 0, 90_000, "away"),
        (ONE_TAB, 5_000, 0, "online"),  # active by a clock ahead of this one
        (ONE_TAB, None, 90_000, "online"),
        (Held(grace_until=100), 0, 99, "online"),
        (Held(grace_until=100), 0, 100, "offline"),
        (Held(ttl_until=100), 0, 99, "online"),
        (Held(ttl_until=100), 0, 100, "offline"),
        (Held(grace_until=100, ttl_until=200), 0, 199, "online"),
        (Held(grace_until=200, ttl_until=100), 0, 199, "online"),
        (Held(grace_until=100, ttl_until=200), 0, 200, "offline"),
        (Held(ttl_until=120_000), 0, 90_000, "away"),
        (Held(connections={"tab": TAB}, grace_until=100), 0, 101, "online"),
    ],
)
def test_the_rules_of_presence(held: Held, active_at: int | None, now: int, status: str) -> None:
    assert status_at(held, active_at, now, TIMING) == status


@pytest.mark.parametrize(
    ("held", "active_at", "status", "due"),
    [
        (NOBODY_THERE, 0, Status.OFFLINE, None),
        (ONE_TAB, 1_000, Status.ONLINE, 91_000),
        (ONE_TAB, 1_000, Status.AWAY, None),
        (ONE_TAB, None, Status.ONLINE, None),
        (Held(grace_until=5_000), 1_000, Status.ONLINE, 5_000),
        (Held(grace_until=5_000, ttl_until=120_000), 1_000, Status.ONLINE, 91_000),
        (Held(grace_until=5_000, ttl_until=120_000), 1_000, Status.AWAY, 120_000),
    ],
)
def test_the_next_change_that_time_alone_makes(
    held: Held, active_at: int | None, status: Status, due: int | None
) -> None:
    assert next_change(held, active_at, status, TIMING) == due


@pytest.mark.parametrize(
    ("ending", "hold"),
    [
        (Ending.GOODBYE, 0),
        (Ending.KICKED, 0),
        (Ending.TOKEN_EXPIRED, 0),
        (Ending.LOST, 5_000),
        (Ending.TOO_SLOW, 5_000),
        (Ending.FLOODED, 5_000),
        (Ending.NODE_DIED, 5_000),
        (Ending.DRAINED, 30_000),
    ],
)
def test_how_long_each_ending_holds_its_user(ending: Ending, hold: int) -> None:
    assert TIMING.hold_after(ending) == hold


def test_the_cases_above_are_all_endings() -> None:
    assert len(Ending) == 8


@pytest.mark.parametrize(
    ("was", "now", "event"),
    [
        ("offline", "online", "user-online"),
        ("offline", "dnd", "user-online"),
        ("online", "offline", "user-offline"),
        ("away", "offline", "user-offline"),
        ("online", "away", "user-status-changed"),
        ("away", "online", "user-status-changed"),
        ("busy", "busy", None),
        ("offline", "offline", None),
    ],
)
def test_one_event_tells_of_a_change(was: str, now: str, event: str | None) -> None:
    assert event_between(Status(was), Status(now)) == event


def test_every_status_but_offline_is_online() -> None:
    online = {s.value: UserStatus(tenant="acme", user_id="alice", status=s).online for s in Status}
    assert online == {"online": True, "away": True, "busy": True, "dnd": True, "offline": False}


def test_a_user_never_seen_is_offline_at_version_0() -> None:
    nobody = UserStatus(tenant="acme", user_id="alice")
    assert (nobody.status, nobody.version, nobody.last_active, nobody.connected_at) == ("offline", 0, None, None)


def test_times_are_aware_datetimes_exact_to_the_millisecond() -> None:
    status = UserStatus(tenant="acme", user_id="alice", active_at=1_767_225_600_123, online_since=1)
    assert status.last_active == datetime(2026, 1, 1, 0, 0, 0, 123_000, UTC)
    assert status.connected_at == datetime(1970, 1, 1, 0, 0, 0, 1_000, UTC)
    assert to_datetime(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)


def test_a_transition_knows_whose_it_is_and_what_tells_of_it() -> None:
    now = UserStatus(tenant="acme", user_id="alice", status=Status.ONLINE, version=1)
    transition = Transition(position=1, at=0, was=Status.OFFLINE, now=now, reason="connected")
    assert (transition.tenant, transition.user_id, transition.event) == ("acme", "alice", Event.ONLINE)


def test_activity_replaces_what_it_says_and_leaves_the_rest() -> None:
    status = UserStatus(tenant="acme", user_id="alice", active_at=10, meta_json=b'{"a":1}', profile=Profile(name="A"))
    silent = Activity(position=1, tenant="acme", user_id="alice")
    assert silent.applied_to(status) == status
    news = Activity(
        position=1, tenant="acme", user_id="alice", active_at=20, meta_json=b"{}", profile=Profile(role="r")
    )
    changed = UserStatus(tenant="acme", user_id="alice", active_at=20, meta_json=b"{}", profile=Profile(role="r"))
    assert news.applied_to(status) == changed
    assert news.applied_to(changed) == changed


def test_activity_never_takes_last_active_back() -> None:
    status = UserStatus(tenant="acme", user_id="alice", active_at=10)
    assert Activity(position=1, tenant="acme", user_id="alice", active_at=9).applied_to(status) == status


def test_of_times_of_which_some_are_none() -> None:
    assert (latest(None, 0, 3), latest(None), latest()) == (3, None, None)
    assert (earliest(None, 0, 3), earliest(None), earliest()) == (0, None, None)
