from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from loops import Loop

from gateway import wire
from gateway.presence.fanout import LONGEST_REST, REST, FanOut, net_changes
from gateway.presence.model import Profile, Status, Transition, UserStatus

OFFLINE, ONLINE, AWAY = Status.OFFLINE, Status.ONLINE, Status.AWAY


class Words:
    """A codec that counts what it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, events: Sequence[tuple[str, object]]) -> list[str]:
        self.encoded += len(events)
        return [_word(event, data) for event, data in events]

    def write_all(self, batch: list[str], sinks: Sequence[Member]) -> None:
        for member in sinks:
            member.write(batch)


def _word(event: str, data: object) -> str:
    assert isinstance(data, wire.UserOnline | wire.UserOffline | wire.UserStatusAt)
    return f"{event} {data.user_id} v{data.version}"


WORDS = Words()


class Member:
    def __init__(self, codec: Words = WORDS) -> None:
        self.codec = codec
        self.writes: list[list[str]] = []
        self.on_write: Callable[[], None] = lambda: None

    @property
    def sink(self) -> Member:
        return self

    def write(self, batch: list[str]) -> None:
        self.writes.append(batch)
        self.on_write()


class Counted(Member):
    """One that counts how often it is looked for."""

    lookups = 0

    def __hash__(self) -> int:
        Counted.lookups += 1
        return id(self)


class Log:
    """Makes the transitions that a log would hold."""

    def __init__(self) -> None:
        self.position = 0
        self.users: dict[tuple[str, str], UserStatus] = {}

    def __call__(self, user: str, status: Status, tenant: str = "acme") -> Transition:
        known = self.users.get((tenant, user), UserStatus(tenant=tenant, user_id=user))
        self.position += 1
        now = UserStatus(tenant=tenant, user_id=user, status=status, version=known.version + 1)
        self.users[tenant, user] = now
        return Transition(position=self.position, at=self.position, was=known.status, now=now, reason="test")


def test_the_net_effect_of_a_time_is_one_event_for_each_user_with_the_last_version() -> None:
    log = Log()
    transitions = [
        log("came", ONLINE),
        log("came and went", ONLINE),
        log("turned", ONLINE),
        log("came", AWAY),
        log("came and went", OFFLINE),
        log("turned", OFFLINE),
        log("turned", ONLINE),
    ]
    assert [(event, body.user_id, body.version) for event, body in net_changes(transitions)] == [  # type: ignore[attr-defined]  # each event's body has both
        ("user-online", "came", 2),
        ("user-online", "turned", 3),
    ]


def test_who_left_and_came_back_is_not_told_of() -> None:
    log = Log()
    log("alice", ONLINE)
    assert net_changes([log("alice", OFFLINE), log("alice", ONLINE)]) == []
    assert net_changes([]) == []


def test_the_net_effect_carries_the_last_profile() -> None:
    first, last = Log()("alice", ONLINE), Log()("alice", ONLINE)
    now = UserStatus(tenant="acme", user_id="alice", status=AWAY, version=2, profile=Profile(name="Alice"))
    last = Transition(position=2, at=1_500, was=ONLINE, now=now, reason="test")
    assert net_changes([first, last]) == [
        (
            "user-online",
            wire.UserOnline(
                user_id="alice",
                online=True,
                status=AWAY,
                timestamp="1970-01-01T00:00:01.500Z",
                version=2,
                name="Alice",
            ),
        )
    ]


def test_a_lone_change_on_a_quiet_server_is_not_delayed() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE)])
    assert loop.waiting() == [100.0]
    loop.run_until(100.0)
    assert member.writes == [["user-online alice v1"]]
    loop.now = 100.5
    fanout.publish([log("alice", OFFLINE)])
    assert loop.waiting() == [100.5]


def test_what_follows_within_the_interval_goes_out_together_at_its_end_in_one_write() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE), log("eve", ONLINE)])
    loop.run_until(100.0)
    loop.now = 100.1
    fanout.publish([log("bob", ONLINE), log("carol", ONLINE)])
    fanout.publish([log("bob", OFFLINE), log("dave", ONLINE)])
    assert loop.waiting() == [100.5]
    loop.run_until(100.4)
    assert member.writes == [["user-online alice v1", "user-online eve v1"]]
    loop.run_until(100.5)
    assert member.writes[1:] == [["user-online carol v1", "user-online dave v1"]]
    assert loop.waiting() == []


def test_a_lone_change_is_told_at_once_though_another_users_has_just_been_and_the_third_waits() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5, stopwatch=lambda: 5.0)
    fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE)])
    loop.run_until(100.0)
    loop.now = 100.1
    fanout.publish([log("bob", ONLINE)])
    assert loop.waiting() == [100.1]
    loop.run_until(100.1)
    loop.now = 100.2
    fanout.publish([log("carol", ONLINE)])
    assert loop.waiting() == [100.5]
    fanout.publish([log("dave", ONLINE)])
    loop.run_until(100.5)
    assert member.writes == [
        ["user-online alice v1"],
        ["user-online bob v1"],
        ["user-online carol v1", "user-online dave v1"],
    ]
    loop.now = 100.6
    fanout.publish([log("eve", ONLINE)])  # the last flush told of two: there is much to gather
    assert loop.waiting() == [101.0]


@pytest.mark.parametrize("told", [["alice"], ["bob", "alice"], ["alice", "bob"]])
def test_what_a_user_undoes_within_an_interval_is_no_event(told: list[str]) -> None:
    loop, log, member = Loop(), Log(), Member()
    for user in told:
        log(user, ONLINE)
    fanout = FanOut(loop, 0.5, stopwatch=lambda: 5.0)
    fanout.join("acme", member)
    for number, user in enumerate(told):
        loop.now = 100.0 + number / 10
        fanout.publish([log(user, OFFLINE)])
        loop.run_until(loop.now)
    assert len(member.writes) == len(told)
    fanout.publish([log("alice", ONLINE)])
    fanout.publish([log("alice", OFFLINE)])
    loop.run_until(102.0)
    assert len(member.writes) == len(told)


def test_many_lone_changes_are_two_flushes_in_an_interval_at_the_most() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5, stopwatch=lambda: 5.0)
    fanout.join("acme", member)
    for number in range(1000):
        loop.run_until(100.0 + number / 100)
        loop.now = 100.0 + number / 100
        fanout.publish([log(f"user-{number}", ONLINE)])
    loop.run_until(111.0)
    assert sum(map(len, member.writes)) == 1000
    assert len(member.writes) == 1 + 1 + 20


def test_a_flush_that_fails_is_not_tried_again_at_once() -> None:
    def fail() -> None:
        raise KeyError

    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5, stopwatch=lambda: 5.0)
    fanout.join("acme", member)
    member.on_write = fail
    fanout.publish([log("alice", ONLINE), log("bob", ONLINE)])
    with suppress(KeyError):  # a real loop logs it, and goes on
        loop.run_until(100.0)
    fanout.publish([log("carol", ONLINE)])
    assert loop.waiting() == [100.5]


def test_changes_that_cancel_out_are_no_write_at_all() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE), log("alice", OFFLINE)])
    loop.run_until(100.0)
    assert member.writes == []


def test_each_change_is_encoded_once_for_all_members_of_a_codec() -> None:
    loop, log, one, other = Loop(), Log(), Words(), Words()
    members = [Member(one) for _ in range(50)] + [Member(other) for _ in range(50)]
    fanout = FanOut(loop, 0.5)
    for member in members:
        fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE), log("bob", ONLINE)])
    loop.run_until(100.0)
    assert (one.encoded, other.encoded) == (2, 2)
    assert [member.writes for member in members] == [[["user-online alice v1", "user-online bob v1"]]] * 100


def test_a_member_who_joined_within_an_interval_hears_only_of_later_changes() -> None:
    loop, log, early, late = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", early)
    fanout.publish([log("alice", ONLINE), log("bob", ONLINE)])
    fanout.join("acme", late)
    fanout.publish([log("alice", AWAY), log("carol", ONLINE)])
    loop.run_until(100.0)
    assert early.writes == [["user-online alice v2", "user-online bob v1", "user-online carol v1"]]
    assert late.writes == [["user-status-changed alice v2", "user-online carol v1"]]


def test_a_member_who_joined_after_all_that_is_pending_hears_nothing() -> None:
    loop, log, early, late = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", early)
    fanout.publish([log("alice", ONLINE)])
    fanout.join("acme", late)
    loop.run_until(100.0)
    assert (len(early.writes), late.writes) == (1, [])


def test_a_flush_looks_up_nobody_but_those_who_have_heard_already() -> None:
    loop, log, late = Loop(), Log(), Member()
    early = [Counted() for _ in range(50)]
    fanout = FanOut(loop, 0.5)
    for member in early:
        fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE)])
    fanout.join("acme", late)
    Counted.lookups = 0
    loop.run_until(100.0)
    assert Counted.lookups == 0
    assert [member.writes for member in early] == [[["user-online alice v1"]]] * 50
    assert late.writes == []
    loop.now = 101.0
    fanout.publish([log("bob", ONLINE)])
    loop.run_until(101.0)
    assert [member.writes[1:] for member in [*early, late]] == [[["user-online bob v1"]]] * 50 + [[]]
    assert late.writes == [["user-online bob v1"]]


def test_who_leaves_while_those_who_have_heard_are_caught_up_is_written_to_no_more() -> None:
    loop, log, asker, other = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", asker)
    fanout.publish([log("alice", ONLINE)])
    fanout.catch_up("acme", asker)
    fanout.join("acme", other)
    fanout.publish([log("bob", ONLINE)])

    def both_leave() -> None:
        fanout.leave("acme", asker)
        fanout.leave("acme", other)

    asker.on_write = both_leave
    loop.run_until(100.0)
    assert asker.writes == [["user-online alice v1"], ["user-online bob v1"]]
    assert other.writes == []
    fanout.publish([log("carol", ONLINE)])
    assert loop.waiting() == []


def test_catching_up_tells_one_member_now_and_everyone_else_when_it_is_time() -> None:
    loop, log, asker, other = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", asker)
    fanout.join("acme", other)
    fanout.publish([log("alice", ONLINE)])
    fanout.catch_up("acme", asker)
    fanout.catch_up("acme", asker)
    assert (asker.writes, other.writes) == ([["user-online alice v1"]], [])
    fanout.publish([log("alice", OFFLINE), log("bob", ONLINE)])
    loop.run_until(100.0)
    assert asker.writes == [["user-online alice v1"], ["user-offline alice v2", "user-online bob v1"]]
    assert other.writes == [["user-online bob v1"]]


def test_catching_up_a_stranger_changes_nothing() -> None:
    loop, log, member, stranger = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.catch_up("acme", stranger)
    fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE)])
    fanout.catch_up("acme", stranger)
    assert stranger.writes == []


def test_who_left_hears_no_more_and_the_last_to_leave_takes_the_timer_along() -> None:
    loop, log, one, two = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", one)
    fanout.join("acme", two)
    fanout.publish([log("alice", ONLINE)])
    fanout.leave("acme", one)
    assert loop.waiting() == [100.0]
    fanout.leave("acme", two)
    assert loop.waiting() == []
    loop.run_until(101.0)
    assert (one.writes, two.writes) == ([], [])


def test_leaving_without_having_joined_is_ignored() -> None:
    loop, log, member = Loop(), Log(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.leave("acme", Member())
    fanout.join("acme", member)
    fanout.leave("acme", Member())
    fanout.publish([log("alice", ONLINE)])
    loop.run_until(100.0)
    assert member.writes == [["user-online alice v1"]]


def test_tenants_hear_nothing_of_each_other() -> None:
    loop, log, acme, other = Loop(), Log(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    fanout.join("acme", acme)
    fanout.join("other", other)
    fanout.publish([log("alice", ONLINE, "acme"), log("bob", ONLINE, "other"), log("eve", ONLINE, "third")])
    loop.run_until(100.0)
    assert (acme.writes, other.writes) == ([["user-online alice v1"]], [["user-online bob v1"]])


def test_changes_that_nobody_hears_need_no_timer() -> None:
    loop, log = Loop(), Log()
    FanOut(loop, 0.5).publish([log("alice", ONLINE)])
    assert loop.waiting() == []


def test_a_member_who_leaves_while_another_is_written_to_harms_nobody_else() -> None:
    loop, log = Loop(), Log()
    first, second, third = Member(), Member(), Member()
    fanout = FanOut(loop, 0.5)
    for member in (first, second, third):
        fanout.join("acme", member)
    first.on_write = lambda: fanout.leave("acme", second)
    fanout.publish([log("alice", ONLINE)])
    loop.run_until(100.0)
    assert first.writes == third.writes == [["user-online alice v1"]]
    first.on_write = lambda: None
    fanout.publish([log("bob", ONLINE)])
    loop.run_until(101.0)
    assert first.writes[1:] == third.writes[1:] == [["user-online bob v1"]]
    assert len(second.writes) < 2


@pytest.mark.parametrize(("took", "rest"), [(0.001, 0.02), (0.03, 0.03 * REST), (0.5, LONGEST_REST)])
def test_the_longer_a_flush_takes_the_more_the_next_one_gathers(took: float, rest: float) -> None:
    loop, log = Loop(), Log()
    fanout = FanOut(loop, 0.02, stopwatch=iter([5.0, 5.0 + took]).__next__)
    fanout.join("acme", Member())
    fanout.publish([log("alice", ONLINE), log("carol", ONLINE)])
    loop.run_until(100.0)
    fanout.publish([log("bob", ONLINE)])
    assert loop.waiting() == [pytest.approx(100.0 + rest)]


@pytest.mark.parametrize(("took", "rest"), [(0.001, 0.001 * REST), (0.03, 0.03 * REST), (0.5, LONGEST_REST)])
def test_a_lone_change_waits_for_no_longer_than_the_last_one_was_dear(took: float, rest: float) -> None:
    loop, log = Loop(), Log()
    fanout = FanOut(loop, 0.02, stopwatch=iter([5.0, 5.0 + took]).__next__)
    fanout.join("acme", Member())
    fanout.publish([log("alice", ONLINE)])
    loop.run_until(100.0)
    fanout.publish([log("bob", ONLINE)])
    assert loop.waiting() == [pytest.approx(100.0 + rest)]


# What is counted


def test_deliveries_are_counted_by_member_and_changes_by_flush() -> None:
    loop, log = Loop(), Log()
    times = iter(range(100))
    fanout = FanOut(loop, 0.02, stopwatch=lambda: next(times))
    members = [Member(Words()), Member(), Member()]
    for member in members:
        fanout.join("acme", member)
    fanout.publish([log("alice", ONLINE), log("bob", ONLINE)])
    fanout.catch_up("acme", members[2])  # who then has heard of it, and is not written to again
    loop.run_until(loop.now)
    assert [len(member.writes) for member in members] == [1, 1, 1]
    deliveries = fanout.deliveries
    assert deliveries.delivered == 3
    assert (deliveries.changes.count, deliveries.changes.sum) == (1, 2)
    assert (deliveries.seconds.count, deliveries.seconds.sum) == (1, 1)
    fanout.publish([log("alice", OFFLINE), log("alice", ONLINE)])  # which is nothing to tell
    loop.run_until(loop.now + 10)
    assert deliveries.delivered == 3
    assert (deliveries.changes.count, deliveries.changes.sum) == (2, 4)


def test_who_asks_is_told_what_each_flush_told_and_how_many() -> None:
    loop, log = Loop(), Log()
    times = iter(range(100))
    fanout = FanOut(loop, 0.02, stopwatch=lambda: next(times))
    told: list[tuple[list[Transition], float, int]] = []
    fanout.on_flush = lambda changes, took, members: told.append((list(changes), took, members))
    for _ in range(2):
        fanout.join("acme", Member())
    change = log("alice", ONLINE)
    fanout.publish([change])
    loop.run_until(loop.now)
    assert told == [([change], 1, 2)]
