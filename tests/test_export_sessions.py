"""Who was online from when to when, by what the log told."""

from __future__ import annotations

from typing import Any

from gateway.export.sessions import Change, SessionRow, Sessions
from gateway.presence.model import Event, Status, Transition, UserStatus
from gateway.presence.view import RESYNCHRONISED


def status(user_id: str = "ann", *, online_since: int | None = None, **more: Any) -> UserStatus:
    default = Status.OFFLINE if online_since is None else Status.ONLINE
    values: dict[str, Any] = {"status": default, "version": 1} | more
    return UserStatus(tenant="t", user_id=user_id, online_since=online_since, **values)


def change(at: int, was: Status, now: UserStatus, reason: str = "connected") -> Change:
    found = Change.of(Transition(position=at, at=at, was=was, now=now, reason=reason))
    assert found is not None
    return found


def going_on(user_id: str = "ann", began_at: int = 1000, **more: Any) -> SessionRow:
    values: dict[str, Any] = {"id": 7, "began_by": "connected", "status": Status.ONLINE} | more
    return SessionRow(tenant="t", user_id=user_id, began_at=began_at, **values)


def test_a_session_lasts_from_coming_to_going_whatever_the_status_is_in_between() -> None:
    found = Sessions([])
    found.follow(
        [
            change(1000, Status.OFFLINE, status(online_since=1000)),
            change(2000, Status.ONLINE, status(online_since=1000, status=Status.AWAY), "inactive"),
            change(5500, Status.AWAY, status(), "connection lost"),
        ]
    )
    [session] = found.begun
    assert (session.began_at, session.ended_at, session.seconds) == (1000, 5500, 4.5)
    assert (session.began_by, session.ended_by) == ("connected", "connection lost")
    assert found.ended == []


def test_two_sessions_within_one_millisecond_are_two() -> None:
    found = Sessions([])
    found.follow(
        [
            change(1000, Status.OFFLINE, status(online_since=1000)),
            change(1000, Status.ONLINE, status(), "goodbye"),
            change(1000, Status.OFFLINE, status(online_since=1000)),
        ]
    )
    assert [session.seconds for session in found.begun] == [0.0, None]


def test_a_session_that_the_database_knows_is_ended_there() -> None:
    known = going_on()
    found = Sessions([known])
    found.follow([change(4000, Status.ONLINE, status(), "goodbye")])
    assert found.ended == [known]
    assert (known.ended_at, known.ended_by, found.begun) == (4000, "goodbye", [])


def test_a_transition_that_tells_others_nothing_is_no_change() -> None:
    assert Change.of(Transition(position=1, at=1, was=Status.OFFLINE, now=status(), reason="restored")) is None


def test_whoever_stayed_through_a_gap_has_one_session() -> None:
    found = Sessions([going_on()])
    assert found.resynchronise([status(online_since=1000, active_at=8000)], 9, since=5000, now=9000) == []
    assert (found.begun, found.ended) == ([], [])


def test_a_status_that_changed_in_a_gap_is_told() -> None:
    found = Sessions([going_on()])
    away = status(online_since=1000, status=Status.AWAY, active_at=6000)
    [told] = found.resynchronise([away], 9, since=5000, now=9000)
    assert (told.event, told.was, told.at, told.reason) == (Event.CHANGED, Status.ONLINE, 6000, RESYNCHRONISED)
    assert (found.begun, found.ended) == ([], [])


def test_whoever_went_in_a_gap_did_so_when_they_were_last_active() -> None:
    known = going_on()
    [told] = Sessions([known]).resynchronise([status(active_at=7000)], 9, since=5000, now=9000)
    assert (told.event, told.at) == (Event.OFFLINE, 7000)
    assert (known.ended_at, known.ended_by) == (7000, RESYNCHRONISED)


def test_whoever_was_not_active_in_a_gap_went_as_it_began() -> None:
    known = going_on()
    Sessions([known]).resynchronise([status(active_at=3000)], 9, since=5000, now=9000)
    assert known.ended_at == 5000


def test_whoever_came_in_a_gap_is_online_since_then() -> None:
    found = Sessions([])
    [told] = found.resynchronise([status(online_since=6000, active_at=8000)], 9, since=5000, now=9000)
    assert (told.event, told.at) == (Event.ONLINE, 6000)
    assert [(session.began_at, session.began_by) for session in found.begun] == [(6000, RESYNCHRONISED)]


def test_whoever_went_and_came_in_a_gap_has_two_sessions_and_no_change() -> None:
    known = going_on()
    found = Sessions([known])
    assert found.resynchronise([status(online_since=7000)], 9, since=5000, now=9000) == []
    assert (known.ended_at, known.ended_by) == (5000, RESYNCHRONISED)
    assert [session.began_at for session in found.begun] == [7000]


def test_whom_a_store_has_lost_is_offline() -> None:
    known = going_on()
    [told] = Sessions([known]).resynchronise([], 9, since=5000, now=9000)
    assert (told.event, told.now.user_id, told.at, known.ended_at) == (Event.OFFLINE, "ann", 5000, 5000)


def test_whoever_is_offline_and_was_costs_no_row() -> None:
    found = Sessions([])
    assert found.resynchronise([status(active_at=3000)], 9, since=5000, now=9000) == []
    assert (found.begun, found.ended) == ([], [])


def test_of_whom_the_rows_were_deleted_nothing_is_told_but_that_they_went() -> None:
    stayed, went = going_on(status=None), going_on("bob", status=None)
    statuses = [status(online_since=1000, status=Status.DND, status_text="deep"), status("bob", active_at=6000)]
    told = Sessions([stayed, went]).resynchronise(statuses, 9, since=5000, now=9000)
    assert [(change.now.user_id, change.event) for change in told] == [("bob", Event.OFFLINE)]
