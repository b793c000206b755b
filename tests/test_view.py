from typing import Any

import msgspec

from gateway.presence.model import (
    Activity,
    Choice,
    Chosen,
    Event,
    Forgotten,
    Own,
    PrivateChange,
    Profile,
    Status,
    Transition,
    UserStatus,
    published,
)
from gateway.presence.store import Snapshot
from gateway.presence.view import View

OFFLINE, ONLINE, AWAY = Status.OFFLINE, Status.ONLINE, Status.AWAY


def user(name: str = "alice", status: Status = ONLINE, version: int = 1, tenant: str = "acme") -> UserStatus:
    return UserStatus(tenant=tenant, user_id=name, status=status, version=version, active_at=10)


def change(position: int, now: UserStatus, was: Status = OFFLINE) -> Transition:
    return Transition(position=position, at=10, was=was, now=now, reason="connected")


def activity(position: int, name: str = "alice", version: int = 1, **values: Any) -> Activity:
    return Activity(position=position, tenant="acme", user_id=name, version=version, **values)


def ids(view: View, tenant: str = "acme", *, after: str | None = None, limit: int | None = None) -> list[str]:
    return [status.user_id for status in view.online(tenant, after=after, limit=limit)]


def test_a_user_never_seen_is_offline_at_version_0() -> None:
    view = View()
    assert view.status("acme", "alice") == UserStatus(tenant="acme", user_id="alice")
    assert (view.online_count("acme"), ids(view), view.position) == (0, [], 0)


def test_transitions_that_are_news_are_applied_and_returned() -> None:
    view = View()
    entries = [change(1, user("alice")), change(2, user("bob")), change(3, user("alice", OFFLINE, 2), ONLINE)]
    assert view.apply(entries) == entries
    assert view.position == 3
    assert view.status("acme", "alice") == user("alice", OFFLINE, 2)
    assert ids(view) == ["bob"]


def test_applying_an_entry_twice_or_an_older_one_changes_nothing() -> None:
    view = View()
    first, second = change(1, user()), change(2, user(status=OFFLINE, version=2), ONLINE)
    view.apply([first, second])
    assert view.apply([second, first]) == []
    assert view.status("acme", "alice") == user(status=OFFLINE, version=2)
    assert view.position == 2


def test_activity_is_applied_and_is_no_transition() -> None:
    view = View()
    view.apply([change(1, user())])
    news = activity(2, active_at=20, meta_json=b'{"a":1}', profile=Profile(name="A"))
    assert view.apply([news]) == []
    expected = msgspec.structs.replace(user(), active_at=20, meta_json=b'{"a":1}', profile=Profile(name="A"))
    assert view.status("acme", "alice") == expected
    assert view.online("acme") == [expected]


def test_activity_older_than_what_is_known_changes_nothing() -> None:
    view = View()
    known = msgspec.structs.replace(user(), meta_json=b'{"new":1}', profile=Profile(name="new"))
    view.load(Snapshot(5, (known,)))
    view.apply([activity(4, meta_json=b'{"old":1}', profile=Profile(name="old"))])
    assert view.status("acme", "alice") == known


def test_activity_of_another_version_than_the_known_changes_nothing_and_moves_the_position() -> None:
    view = View()
    known = user(version=3)
    view.load(Snapshot(5, (known,)))
    assert view.apply([activity(6, version=2, active_at=20, meta_json=b"{}", ttl_until=90)]) == []
    assert view.apply([activity(7, version=4, active_at=20, meta_json=b"{}", ttl_until=90)]) == []
    assert (view.status("acme", "alice"), view.position) == (known, 7)


def test_activity_of_a_user_who_is_not_known_makes_nobody_known() -> None:
    view = View()
    view.apply([activity(1, version=1, active_at=20)])
    assert view.status("acme", "alice") == UserStatus(tenant="acme", user_id="alice")


def test_a_transition_is_told_from_what_was_known_here() -> None:
    view = View()
    view.load(Snapshot(1, (user("alice"), user("bob"))))
    # By the log, both were offline before: the store lost that they had come, which was told here already.
    away, back = change(2, user("alice", AWAY, 3), OFFLINE), change(3, user("bob", ONLINE, 3), OFFLINE)
    news = view.apply([away, back])
    assert news == [change(2, away.now, ONLINE), change(3, back.now, ONLINE)]
    assert [transition.event for transition in news] == [Event.CHANGED, None]


def test_a_snapshot_is_the_truth_and_tells_the_net_change_of_each_user_who_changed_unseen() -> None:
    view = View()
    view.load(Snapshot(3, (user("alice"), user("bob"), user("carol"))))
    missed = view.load(
        Snapshot(9, (user("alice", AWAY, 2), user("bob"), user("carol", ONLINE, 3), user("dave", AWAY, 2)))
    )
    assert [(t.user_id, t.was, t.now.status, t.position, t.event) for t in missed] == [
        ("alice", ONLINE, AWAY, 9, Event.CHANGED),
        ("carol", ONLINE, ONLINE, 9, None),
        ("dave", OFFLINE, AWAY, 9, Event.ONLINE),
    ]
    assert view.position == 9
    assert ids(view) == ["alice", "bob", "carol", "dave"]
    assert view.status("acme", "carol").version == 3


def test_what_is_known_here_by_a_higher_version_than_the_snapshot_s_stays() -> None:
    view = View()
    view.load(Snapshot(5, (user("alice", AWAY, 4), user("bob", OFFLINE, 2), user("carol"))))
    missed = view.load(Snapshot(3, (user("alice", ONLINE, 3), user("bob", ONLINE, 1))))
    assert missed == []
    assert view.status("acme", "alice") == user("alice", AWAY, 4)
    assert view.status("acme", "bob") == user("bob", OFFLINE, 2)
    assert view.status("acme", "carol") == user("carol")
    assert ids(view) == ["alice", "carol"]
    assert view.position == 3  # that of the log which goes on


def test_a_snapshot_s_news_without_a_version_is_taken_and_told_to_nobody() -> None:
    view = View()
    view.load(Snapshot(5, (user("alice"), user("bob"))))
    active = msgspec.structs.replace(user("alice"), active_at=20, meta_json=b"{}", ttl_until=90)
    contradiction = msgspec.structs.replace(user("bob", AWAY), active_at=20)
    assert view.load(Snapshot(9, (active, contradiction))) == []
    assert view.status("acme", "alice") == active
    assert view.status("acme", "bob") == user("bob")  # until it has a version that nobody has seen
    assert view.online("acme") == [active, user("bob")]


def test_a_view_is_ahead_of_a_snapshot_that_lost_or_contradicts_what_is_known_here() -> None:
    view = View()
    known = {
        "same": user("same"),
        "unknown there": user("unknown there", OFFLINE, 2),
        "older there": user("older there", AWAY, 3),
        "newer there": user("newer there", ONLINE, 3),
        "another there": user("another there", AWAY, 3),
        "more active there": user("more active there"),
    }
    view.load(Snapshot(5, tuple(known.values())))
    snapshot = Snapshot(
        4,
        (
            user("same"),
            user("older there", ONLINE, 2),
            user("newer there", OFFLINE, 4),
            user("another there", ONLINE, 3),
            msgspec.structs.replace(user("more active there"), active_at=20),
            user("unknown here"),
        ),
    )
    assert view.ahead_of(snapshot) == [known["unknown there"], known["older there"], known["another there"]]
    assert view.ahead_of(Snapshot(6, tuple(known.values()))) == []


def test_statuses_come_in_the_order_asked() -> None:
    view = View()
    view.apply([change(1, user("alice")), change(2, user("bob", AWAY))])
    statuses = view.statuses("acme", ["nobody", "bob", "alice", "bob"])
    assert [(s.user_id, s.status) for s in statuses] == [
        ("nobody", OFFLINE),
        ("bob", AWAY),
        ("alice", ONLINE),
        ("bob", AWAY),
    ]


def test_the_online_are_listed_a_page_at_a_time_ordered_by_id() -> None:
    view = View()
    view.apply([change(number, user(name)) for number, name in enumerate(("d", "b", "10", "c", "9", "a"), 1)])
    assert ids(view) == ["10", "9", "a", "b", "c", "d"]
    assert ids(view, limit=2) == ["10", "9"]
    assert ids(view, after="9", limit=2) == ["a", "b"]
    assert ids(view, after="bb") == ["c", "d"]
    assert ids(view, after="d") == []
    assert ids(view, limit=0) == []


def test_nothing_is_left_of_a_tenant_whose_last_user_is_forgotten() -> None:
    view = View()
    view.apply([change(1, user()), change(2, user(status=OFFLINE, version=2), ONLINE), change(3, user(version=3))])
    assert (ids(view), view.online_count("acme")) == (["alice"], 1)
    view.apply([change(4, user(status=OFFLINE, version=4), ONLINE)])
    assert (ids(view), view.online_count("acme")) == ([], 0)
    view.apply([Forgotten(position=5, now=UserStatus(tenant="acme", user_id="alice"), version=4)])
    assert (view._statuses, view._online) == ({}, {})


def test_tenants_are_apart() -> None:
    view = View()
    view.apply([change(1, user(tenant="acme")), change(2, user(tenant="other", status=AWAY))])
    assert (view.online_count("acme"), view.online_count("other"), view.online_count("third")) == (1, 1, 0)
    view.apply([change(3, user(tenant="other", status=OFFLINE, version=2), AWAY)])
    assert (ids(view, "acme"), ids(view, "other")) == (["alice"], [])
    assert view.status("acme", "alice").status == ONLINE


def test_a_touch_shows_at_once_and_the_log_that_tells_of_it_later_changes_nothing() -> None:
    view = View()
    view.apply([change(1, user())])
    assert view.touch("acme", "alice", 50, 100) == 50
    touched = msgspec.structs.replace(user(), active_at=50)
    assert (view.status("acme", "alice"), view.online("acme")) == (touched, [touched])
    view.apply([activity(2, active_at=50), activity(3, active_at=20)])
    assert view.status("acme", "alice") == touched


def test_a_transition_that_knows_only_of_earlier_activity_does_not_take_a_touch_back() -> None:
    view = View()
    view.apply([change(1, user())])
    assert view.touch("acme", "alice", 50, 100) == 50
    news = view.apply([change(2, user(status=OFFLINE, version=2), ONLINE)])
    assert view.status("acme", "alice") == msgspec.structs.replace(user(status=OFFLINE, version=2), active_at=50)
    assert [transition.now.version for transition in news] == [2]


def invisible(revision: int = 1, until: int | None = None, **values: Any) -> UserStatus:
    """Alice as the log has her, who is online and seen as offline."""
    own = Own(choice=Choice(Chosen.INVISIBLE, "hush", until), revision=revision)
    true = msgspec.structs.replace(user(version=2), own=own, **values)
    return published(true, user(status=OFFLINE, version=2))


def test_what_only_a_user_is_told_is_in_no_read_and_in_no_news() -> None:
    view = View()
    seen = user(status=OFFLINE, version=2)
    news = view.apply([change(1, user()), change(2, invisible(), ONLINE)])
    assert [transition.now for transition in news] == [user(), seen]
    assert view.status("acme", "alice") == view.statuses("acme", ["alice"])[0] == seen
    assert (view.online("acme"), view.online_count("acme")) == ([], 0)
    own = view.own_status("acme", "alice", 0)
    assert (own.status, own.invisible) == ("online", True)
    assert view.touch("acme", "alice", 11, 1_000) is None


def test_a_private_change_is_applied_once_and_is_no_news() -> None:
    view = View()
    view.apply([change(2, invisible())])
    later = PrivateChange(position=4, now=invisible(2, active_at=50))
    assert view.apply([later]) == []
    assert view.apply([PrivateChange(position=3, now=invisible(1, active_at=40))]) == []
    assert view.own_status("acme", "alice", 0).active_at == 50
    assert view.status("acme", "alice").active_at == 10


def test_a_choice_that_ran_out_is_told_its_user_only_as_long_as_they_are_there() -> None:
    view = View()
    view.apply([change(2, invisible(until=100))])
    assert view.own_status("acme", "alice", 100).invisible  # a sweep is about to come
    view.apply([PrivateChange(position=3, now=invisible(2, until=100, status=OFFLINE))])
    assert view.own_status("acme", "alice", 99).invisible
    assert view.own_status("acme", "alice", 100) == view.status("acme", "alice")


def test_what_a_store_lost_of_a_choice_is_known_to_be_ahead() -> None:
    view = View()
    view.apply([change(2, invisible(revision=3))])
    older = Snapshot(9, (invisible(revision=2),))
    assert view.ahead_of(older) == [invisible(revision=3)]
    assert view.load(older) == []
    assert view.ahead_of(older) == [invisible(revision=3)]
    assert view.ahead_of(Snapshot(9, (invisible(revision=3),))) == []


def test_a_user_who_is_busy_is_touched_as_one_who_is_online() -> None:
    view = View()
    view.apply([change(1, user(status=Status.BUSY))])
    assert view.touch("acme", "alice", 11, 1_000) == 11
    assert view.status("acme", "alice").active_at == 11
