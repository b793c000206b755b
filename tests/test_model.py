from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from conftest import TIMING

from gateway.presence.model import (
    NO_OUTAGE,
    Activity,
    Beat,
    Choice,
    Chosen,
    Connection,
    Ending,
    Event,
    Held,
    Outage,
    Own,
    Profile,
    Status,
    Transition,
    UserStatus,
    earliest,
    event_between,
    latest,
    next_change,
    parted,
    published,
    status_at,
    to_datetime,
)

TAB = Connection(tenant="acme", user_id="alice", id="tab", node="n1", door="socketio", connected_at=0)
ONE_TAB = Held(connections={"tab": TAB})
NOBODY_THERE = Held()


def grace(until: int) -> Held:
    return Held(grace_until=until, ending=Ending.LOST)


def user(active_at: int | None = 0, *, ttl_until: int | None = None, status: Status = Status.ONLINE) -> UserStatus:
    return UserStatus(tenant="acme", user_id="alice", status=status, active_at=active_at, ttl_until=ttl_until)


@pytest.mark.parametrize(
    ("held", "known", "now", "status"),
    [
        (NOBODY_THERE, user(None), 0, "offline"),
        (NOBODY_THERE, user(0), 1, "offline"),
        (ONE_TAB, user(0), 89_999, "online"),
        (ONE_TAB, user(0), 90_000, "away"),
        (ONE_TAB, user(5_000), 0, "online"),  # active by a clock ahead of this one
        (ONE_TAB, user(None), 90_000, "online"),
        (grace(100), user(0), 99, "online"),
        (grace(100), user(0), 100, "offline"),
        (NOBODY_THERE, user(0, ttl_until=100), 99, "online"),
        (NOBODY_THERE, user(0, ttl_until=100), 100, "offline"),
        (grace(100), user(0, ttl_until=200), 199, "online"),
        (grace(200), user(0, ttl_until=100), 199, "online"),
        (grace(100), user(0, ttl_until=200), 200, "offline"),
        (NOBODY_THERE, user(0, ttl_until=120_000), 90_000, "away"),
        (Held(connections={"tab": TAB}, grace_until=100), user(0), 101, "online"),
    ],
)
def test_the_rules_of_presence(held: Held, known: UserStatus, now: int, status: str) -> None:
    assert status_at(held, known, now, TIMING) == status


@pytest.mark.parametrize("status", Status)
def test_the_status_that_time_gives_does_not_depend_on_the_one_before(status: Status) -> None:
    assert status_at(ONE_TAB, user(0, status=status), 1, TIMING) == "online"
    assert status_at(NOBODY_THERE, user(0, status=status), 1, TIMING) == "offline"


def by_hand(status: UserStatus, chosen: str, until: int | None = None, text: str | None = None) -> UserStatus:
    return msgspec.structs.replace(status, own=Own(choice=Choice(Chosen(chosen), text, until)))


@pytest.mark.parametrize("chosen", Chosen)
def test_the_aggregate(chosen: Chosen) -> None:
    """What a user is told, by what keeps them and how long ago any of their devices was active."""
    table = {
        "online": ("offline", "online", "away"),
        "away": ("offline", "away", "away"),
        "busy": ("offline", "busy", "busy"),
        "dnd": ("offline", "dnd", "dnd"),
        "invisible": ("offline", "online", "away"),
    }
    cases = ((NOBODY_THERE, 1), (ONE_TAB, 1), (ONE_TAB, 90_000))
    known = by_hand(user(0), chosen.value)
    assert tuple(status_at(held, known, now, TIMING).value for held, now in cases) == table[chosen.value]
    expired = by_hand(user(0), chosen.value, until=1)
    assert tuple(status_at(held, expired, now, TIMING).value for held, now in cases) == table["online"]
    assert status_at(ONE_TAB, by_hand(user(0), "busy", until=2), 1, TIMING) == "busy"


@pytest.mark.parametrize(
    ("held", "known", "due"),
    [
        (ONE_TAB, by_hand(user(0), "busy"), None),
        (ONE_TAB, by_hand(user(0, status=Status.BUSY), "busy", 5_000), 5_000),
        (ONE_TAB, by_hand(user(0), "invisible", 5_000), 5_000),
        (ONE_TAB, by_hand(user(0), "online", 95_000), 90_000),
        (ONE_TAB, by_hand(user(0, status=Status.AWAY), "online", 95_000), 95_000),
        (grace(4_000), by_hand(user(0), "dnd", 5_000), 4_000),
        (NOBODY_THERE, by_hand(user(0, status=Status.OFFLINE), "dnd", 5_000), None),
    ],
)
def test_the_next_change_of_one_who_set_a_status(held: Held, known: UserStatus, due: int | None) -> None:
    assert next_change(held, known, TIMING) == due


def test_what_others_are_told_and_what_only_the_user_is_are_one_on_the_log() -> None:
    true = by_hand(user(7), "invisible", 9, "hush")
    shown = user(3, status=Status.OFFLINE)
    both = published(true, shown)
    assert msgspec.structs.replace(both, own=None) == shown
    assert parted(both) == (true, shown)
    assert (true.invisible, shown.invisible) == (True, False)
    visible = by_hand(user(7), "busy")
    assert published(visible, None) is visible
    assert parted(visible) == (visible, None)


@pytest.mark.parametrize(
    ("held", "known", "due"),
    [
        (NOBODY_THERE, user(0, status=Status.OFFLINE), None),
        (ONE_TAB, user(1_000), 91_000),
        (ONE_TAB, user(1_000, status=Status.AWAY), None),
        (ONE_TAB, user(None), None),
        (ONE_TAB, user(1_000, ttl_until=2_000), 91_000),
        (grace(5_000), user(1_000), 5_000),
        (grace(5_000), user(1_000, ttl_until=120_000), 91_000),
        (grace(5_000), user(1_000, ttl_until=120_000, status=Status.AWAY), 120_000),
    ],
)
def test_the_next_change_that_time_alone_makes(held: Held, known: UserStatus, due: int | None) -> None:
    assert next_change(held, known, TIMING) == due


@pytest.mark.parametrize(
    ("until", "runs_out"),
    [
        (999, 999),  # it had run out when the outage began
        (1_000, 5_000),
        (3_000, 5_000),
        (5_000, 5_000),
        (5_001, 5_001),
    ],
)
def test_what_would_run_out_in_an_outage_runs_out_at_its_end(until: int, runs_out: int) -> None:
    assert Outage(1_000, 5_000).delay(until) == runs_out
    assert NO_OUTAGE.delay(until) == until


@pytest.mark.parametrize(
    ("held", "known", "runs_out"),
    [
        (grace(3_000), user(0), 5_000),
        (NOBODY_THERE, user(0, ttl_until=3_000), 5_000),
        (grace(3_000), user(0, ttl_until=6_000), 6_000),
        (grace(500), user(0, ttl_until=3_000), 5_000),
        (grace(900), user(0, ttl_until=500), 900),
    ],
)
def test_an_outage_prolongs_a_grace_and_a_ttl(held: Held, known: UserStatus, runs_out: int) -> None:
    outage = Outage(1_000, 5_000)
    assert status_at(held, known, runs_out - 1, TIMING, outage) == "online"
    assert status_at(held, known, runs_out, TIMING, outage) == "offline"
    assert next_change(held, known, TIMING, outage) == runs_out


@pytest.mark.parametrize(
    ("ending", "until", "runs_out"),
    [
        (Ending.LOST, 2_000, 5_000),
        (Ending.NODE_DIED, 2_000, 5_000),
        (Ending.GOODBYE, 2_000, 3_000),
        (Ending.KICKED, 3_500, 3_500),
        (Ending.REVOKED, 999, 999),
        (None, 2_000, 5_000),
    ],
)
def test_after_a_goodbye_a_user_is_held_for_as_long_as_connections_may_be_missing(
    ending: Ending | None, until: int, runs_out: int
) -> None:
    outage, held = Outage(1_000, 5_000, 3_000), Held(grace_until=until, ending=ending)
    assert outage.delay_grace(until, ending) == runs_out
    assert status_at(held, user(0), runs_out - 1, TIMING, outage) == "online"
    assert status_at(held, user(0), runs_out, TIMING, outage) == "offline"
    assert next_change(held, user(0), TIMING, outage) == runs_out


def test_an_outage_is_no_activity() -> None:
    outage = Outage(80_000, 110_000)
    assert status_at(ONE_TAB, user(0), 90_000, TIMING, outage) == "away"
    assert next_change(ONE_TAB, user(0), TIMING, outage) == 90_000


@pytest.mark.parametrize(
    ("ending", "hold"),
    [
        (Ending.GOODBYE, 0),
        (Ending.KICKED, 0),
        (Ending.TOKEN_EXPIRED, 0),
        (Ending.REVOKED, 0),
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
    assert len(Ending) == 9


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


def test_a_text_that_changes_is_a_change_of_status() -> None:
    assert event_between(Status.BUSY, Status.BUSY, None, "in a call") == "user-status-changed"
    assert event_between(Status.BUSY, Status.BUSY, "in a call", "in a call") is None
    assert event_between(Status.BUSY, Status.OFFLINE, "in a call", None) == "user-offline"


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
    status = UserStatus(
        tenant="acme", user_id="alice", active_at=10, meta_json=b'{"a":1}', profile=Profile(name="A"), ttl_until=100
    )
    silent = Activity(position=1, tenant="acme", user_id="alice", version=0)
    assert silent.applied_to(status) == status
    news = Activity(
        position=1,
        tenant="acme",
        user_id="alice",
        version=0,
        active_at=20,
        meta_json=b"{}",
        profile=Profile(role="r"),
        ttl_until=200,
    )
    changed = UserStatus(
        tenant="acme", user_id="alice", active_at=20, meta_json=b"{}", profile=Profile(role="r"), ttl_until=200
    )
    assert news.applied_to(status) == changed
    assert news.applied_to(changed) == changed


def test_activity_never_takes_last_active_back() -> None:
    status = UserStatus(tenant="acme", user_id="alice", active_at=10)
    assert Activity(position=1, tenant="acme", user_id="alice", version=0, active_at=9).applied_to(status) == status


def test_activity_with_a_ttl_of_0_ends_it() -> None:
    held, released = user(10, ttl_until=100), user(10)
    ends = Activity(position=1, tenant="acme", user_id="alice", version=0, ttl_until=0)
    assert ends.applied_to(held) == released
    assert ends.applied_to(released) == released


def test_two_beats_are_one_that_says_what_either_said_and_the_later_where_both_did() -> None:
    def beat(at: int, **values: Any) -> Beat:
        return Beat(tenant="acme", user_id="alice", at=at, **values)

    full = {"holds": True, "meta_json": b'{"a":1}', "profile": Profile(name="A")}
    other = {"holds": True, "meta_json": b"{}", "profile": Profile(role="r")}
    assert beat(1).followed_by(beat(2)) == beat(2)
    assert beat(1, **full).followed_by(beat(2)) == beat(2, **full)
    assert beat(1).followed_by(beat(2, **full)) == beat(2, **full)
    assert beat(1, **full).followed_by(beat(2, **other)) == beat(2, **other)


def test_of_times_of_which_some_are_none() -> None:
    assert [latest(0, 3), latest(3, 0), latest(None, 0), latest(0, None), latest(None, None)] == [3, 3, 0, 0, None]
    assert [earliest(0, 3), earliest(3, 0), earliest(None, 3), earliest(3, None), earliest(None, None)] == [
        *(0, 0, 3, 3),
        None,
    ]
