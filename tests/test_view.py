import msgspec

from gateway.presence.model import Activity, Event, Profile, Status, Transition, UserStatus
from gateway.presence.store import Snapshot
from gateway.presence.view import View

OFFLINE, ONLINE, AWAY = Status.OFFLINE, Status.ONLINE, Status.AWAY


def user(name: str = "alice", status: Status = ONLINE, version: int = 1, tenant: str = "acme") -> UserStatus:
    return UserStatus(tenant=tenant, user_id=name, status=status, version=version, active_at=10)


def change(position: int, now: UserStatus, was: Status = OFFLINE) -> Transition:
    return Transition(position=position, at=10, was=was, now=now, reason="connected")


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
    news = Activity(
        position=2, tenant="acme", user_id="alice", active_at=20, meta_json=b'{"a":1}', profile=Profile(name="A")
    )
    assert view.apply([news]) == []
    expected = msgspec.structs.replace(user(), active_at=20, meta_json=b'{"a":1}', profile=Profile(name="A"))
    assert view.status("acme", "alice") == expected
    assert view.online("acme") == [expected]


def test_activity_older_than_what_is_known_changes_nothing() -> None:
    view = View()
    known = msgspec.structs.replace(user(), meta_json=b'{"new":1}', profile=Profile(name="new"))
    view.load(Snapshot(5, (known,)))
    view.apply(
        [Activity(position=4, tenant="acme", user_id="alice", meta_json=b'{"old":1}', profile=Profile(name="old"))]
    )
    assert view.status("acme", "alice") == known


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


def test_tenants_are_apart() -> None:
    view = View()
    view.apply([change(1, user(tenant="acme")), change(2, user(tenant="other", status=AWAY))])
    assert (view.online_count("acme"), view.online_count("other"), view.online_count("third")) == (1, 1, 0)
    view.apply([change(3, user(tenant="other", status=OFFLINE, version=2), AWAY)])
    assert (ids(view, "acme"), ids(view, "other")) == (["alice"], [])
    assert view.status("acme", "alice").status == ONLINE
