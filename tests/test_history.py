"""What changed lately, and what it says of a position that it does not go back to."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from conftest import TIMING, Clock

from gateway.presence.history import SIZE, History, read_back
from gateway.presence.model import Beat, Status, Transition, UserStatus
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import RESYNCHRONISED, View

ONLINE, OFFLINE = Status.ONLINE, Status.OFFLINE


def change(position: int, user: str = "alice", now: Status = ONLINE, tenant: str = "t", reason: str = "") -> Transition:
    was = OFFLINE if now is ONLINE else ONLINE
    status = UserStatus(tenant=tenant, user_id=user, status=now, version=position)
    return Transition(position=position, at=0, was=was, now=status, reason=reason)


def positions(history: History, tenant: str, after: int) -> list[int] | None:
    found = history.since(tenant, after)
    return None if found is None else [each.position for each in found]


def test_changes_after_a_position_are_there_in_order_and_by_tenant(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    assert positions(history, "t", 0) is None
    history.publish([change(11), change(12, tenant="other"), change(13, "bob")])
    assert positions(history, "t", 10) == [11, 13]
    assert positions(history, "t", 11) == [13]
    assert positions(history, "t", 13) == []
    assert positions(history, "quiet", 12) == []
    assert positions(history, "t", 9) is None, "it does not know what was before its first"
    [found] = history.since("t", 11) or []
    assert msgspec.json.decode(found.event or b"")[0] == "user-online"
    assert found.event is found.event


def told(history: History, after: int, *silent: tuple[int, int]) -> list[int]:
    return [each.position for each in history.told("t", after, history.since("t", after) or [], silent)]


def test_what_nobody_was_told_is_passed_over_where_its_whole_is_missed(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    history.publish([change(position, "bob", OFFLINE if position % 2 else ONLINE) for position in range(1, 11)])
    history.pass_over("t", 2, 4)
    history.pass_over("t", 6, 9)
    history.pass_over("t", 4, 5)
    history.pass_over("other", 0, 10)
    assert told(history, 1) == [2, 6, 10]
    assert told(history, 2) == [6, 10]
    assert told(history, 3) == [4, 6, 10], "who was told of its beginning is told how it went on"
    assert told(history, 7) == [8, 9, 10]
    assert told(history, 1, (9, 10)) == [2, 6], "nor what was passed over elsewhere"
    assert history.silent_until("t", 5) == (2, 5)
    assert history.silent_until("t", 9) == (6, 9)
    assert history.silent_until("t", 10) == (10, 10)
    assert history.silent_until("unknown", 4) == (4, 4)


def test_what_was_passed_over_for_one_who_knew_its_beginning_is_told_to_others(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    history.publish([change(position, "bob", OFFLINE if position % 2 else ONLINE) for position in range(3, 6)])
    history.pass_over("t", 2, 4)  # he went and came
    history.pass_over("t", 3, 5)  # and went again: whoever joined when he was gone knows no other
    assert told(history, 2) == [5]
    assert told(history, 3) == []
    history.pass_over("t", 2, 6)
    assert told(history, 2) == [], "the longest that begins where one is"


def test_what_was_passed_over_is_forgotten_with_the_changes(clock: Clock) -> None:
    history = History(clock, 1000, 3 * SIZE)
    history.publish([change(1)])
    history.pass_over("t", 0, 1)
    history.publish([change(position) for position in range(2, 6)])
    history.pass_over("t", 2, 4)
    assert history._silent == {"t": deque([(2, 4)])}
    history.forget(clock.advance(s=3600))
    assert history._silent == {}


def test_what_is_too_old_goes_and_a_quiet_tenant_misses_nothing_by_it(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    history.publish([change(1)])
    clock.advance(ms=600)
    history.publish([change(2), change(3, tenant="quiet")])
    history.forget(clock.advance(ms=600))
    assert positions(history, "t", 0) is None
    assert positions(history, "t", 1) == [2]
    assert positions(history, "quiet", 1) == [3]
    history.forget(clock.advance(s=3600))
    assert positions(history, "t", 2) == []
    assert positions(history, "t", 1) is None
    assert history.size == 0


def test_what_is_too_much_goes_oldest_first(clock: Clock) -> None:
    history = History(clock, 1000, 3 * SIZE)
    history.publish([change(position) for position in range(1, 6)])
    assert history.size == 3 * SIZE
    assert positions(history, "t", 1) is None
    assert positions(history, "t", 2) == [3, 4, 5]


def test_a_log_that_does_not_go_on_is_a_new_beginning(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    history.publish([change(5), change(6)])
    history.publish([change(9, reason=RESYNCHRONISED), change(9, "bob", reason=RESYNCHRONISED)])
    assert positions(history, "t", 6) is None
    assert positions(history, "t", 9) == []
    history.publish([change(10)])
    assert positions(history, "t", 9) == [10]
    history.publish([change(3)])
    assert positions(history, "t", 9) == [], "a position of another log says nothing; this one is past the end"
    assert positions(history, "t", 2) is None


async def test_the_log_is_read_where_the_history_does_not_go_back(clock: Clock) -> None:
    store, view = MemoryStore(TIMING, log_length=5), View()
    await store.renew("node", clock())
    for user in ("a", "b", "c"):
        await store.beat("node", [Beat(tenant="t", user_id=user, at=clock(), holds=True)])
    view.load(await store.snapshot())
    end = view.position
    reached, changes = await read_back(store, view, "t", 0) or (0, [])
    assert (reached, [each.transition.user_id for each in changes]) == (end, ["a", "b", "c"])
    assert await read_back(store, view, "other", 0) == (end, [])
    assert await read_back(store, view, "t", end) == (end, [])
    assert await read_back(store, view, "t", end + 1) is None, "no position of this log"
    for _ in range(6):
        await store.beat("node", [Beat(tenant="t", user_id="a", at=clock.advance(s=1), holds=True)])
    assert await read_back(store, view, "t", 0) is None, "trimmed"


# Of those who are watched


def positions_of(history: History, after: int, **users: int) -> list[int] | None:
    found = history.since_of("t", after, users)
    return None if found is None else [each.position for each in found]


def test_changes_of_some_users_are_found_without_a_look_at_others(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    assert positions_of(history, 0, alice=0) is None
    assert positions_of(history, 0) == [], "of nobody nothing is missed"
    history.publish([change(11), change(12, "bob"), change(13, "carol"), change(14, "bob", OFFLINE), change(15)])
    history.publish([change(16, "bob", tenant="other")])
    assert positions_of(history, 10, alice=0, bob=0, nobody=0) == [11, 12, 14, 15]
    assert positions_of(history, 10, alice=11, bob=14) == [15], "each from where it is watched on"
    assert positions_of(history, 12, bob=0) == [14]
    assert positions_of(history, 9, bob=0) is None, "it does not know what was before its first"
    assert positions_of(history, 9, bob=10) == [12, 14]


def test_a_quiet_user_is_known_however_much_is_let_go_of_others(clock: Clock) -> None:
    history = History(clock, 1000, 3 * SIZE)
    history.publish([change(1, "quiet"), change(2, "bob")])
    history.publish([change(position, "busy") for position in range(3, 20)])
    assert positions(history, "t", 2) is None
    assert positions_of(history, 1, quiet=0, nobody=0) == []
    assert positions_of(history, 0, quiet=0) is None
    assert positions_of(history, 1, bob=0) is None
    assert positions_of(history, 1, bob=2) == []
    assert positions_of(history, 16, busy=0, quiet=0) == [17, 18, 19]
    history.forget(clock.advance(s=3600))
    assert positions_of(history, 2, quiet=0, bob=0, nobody=0) == []
    assert positions_of(history, 18, busy=0) is None
    assert (history._of, history.size) == ({}, 0)


def test_of_how_many_users_it_is_known_when_they_changed_has_a_bound(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.presence.history.REMEMBERED", 2)
    history = History(clock, 1000, SIZE)
    history.publish([change(position, f"user-{position}") for position in range(1, 6)])
    assert list(history._forgotten_of) == [("t", "user-3"), ("t", "user-4")]
    assert positions_of(history, 2, nobody=0) == []
    assert positions_of(history, 1, nobody=0) is None, "it may have been one of those who are not remembered"
    history.publish([change(6, reason=RESYNCHRONISED)])
    assert (history._of, history._forgotten_of, history._unremembered) == ({}, {}, {})


def test_what_nobody_was_told_of_a_user_is_passed_over_for_those_who_watch(clock: Clock) -> None:
    history = History(clock, 1000, 100 * SIZE)
    history.publish([change(n, "bob" if n % 2 else "carol", OFFLINE if n % 4 < 2 else ONLINE) for n in range(1, 9)])
    for _ in range(2):
        history.pass_over_of("t", "bob", 2, 5)
    changes = history.since_of("t", 0, {"bob": 0, "carol": 0}) or []
    assert [each.position for each in history.told_of("t", 0, changes, {}, {})] == [1, 2, 4, 6, 7, 8]
    assert [each.position for each in history.told_of("t", 3, changes[3:], {}, {})] == [4, 5, 6, 7, 8]
    # Who began to watch in its middle had its beginning in the snapshot.
    later = history.since_of("t", 0, {"bob": 3}) or []
    assert [each.position for each in history.told_of("t", 0, later, {"bob": 3}, {})] == [5, 7]
    # Another node, which told of it, goes by what this one says.
    assert history.silent_of("t", ["bob", "carol"], 4) == {}
    silent = history.silent_of("t", ["bob", "carol"], 5)
    assert silent == {"bob": [(2, 5)]}
    other = History(clock, 1000, 100 * SIZE)
    assert [each.position for each in other.told_of("t", 0, changes, {}, silent)] == [1, 2, 4, 6, 7, 8]
    assert [each.position for each in other.told_of("t", 0, changes, {}, {})] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history._silent_of == {("t", "bob"): deque([(2, 5)])}
    history.forget(clock.advance(s=3600))
    assert history._silent_of == {}
