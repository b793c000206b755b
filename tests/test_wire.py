from typing import Any

import msgspec
import pytest

from gateway import wire
from gateway.presence import inspection
from gateway.presence.model import Connection, Event, Profile, Status, Transition, UserStatus
from gateway.presence.store import Explanation

ALICE = UserStatus(
    tenant="acme",
    user_id="alice",
    status=Status.AWAY,
    active_at=1_500,
    online_since=1_000,
    version=3,
    profile=Profile(name="Alice", role="admin"),
    meta_json=b'{"page":"home"}',
)
STATUS = {
    "userId": "alice",
    "online": True,
    "status": "away",
    "statusText": None,
    "lastActive": "1970-01-01T00:00:01.500Z",
    "connectedAt": "1970-01-01T00:00:01.000Z",
    "version": 3,
}
NOBODY = {
    "userId": "nobody",
    "online": False,
    "status": "offline",
    "statusText": None,
    "lastActive": None,
    "connectedAt": None,
    "version": 0,
}


def sent(body: object) -> Any:
    """What a client reads."""
    return msgspec.json.decode(wire.encode(body))


def change(was: Status, now: UserStatus) -> Transition:
    return Transition(position=1, at=2_000, was=was, now=now, reason="test")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_769_860_800_099, "2026-01-31T12:00:00.099Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_timestamp_is_utc_with_milliseconds(ms: int, text: str) -> None:
    assert wire.timestamp(ms) == text
    assert wire.optional_timestamp(ms) == text


def test_no_time_is_null() -> None:
    assert wire.optional_timestamp(None) is None


def test_a_user_s_status_has_the_contract_s_keys() -> None:
    assert sent(wire.user_status(ALICE)) == STATUS
    assert sent(wire.user_status(UserStatus(tenant="acme", user_id="nobody"))) == NOBODY
    assert sent(wire.user_status_at(ALICE, 2_000)) == STATUS | {"timestamp": "1970-01-01T00:00:02.000Z"}


def test_the_list_of_the_online_adds_what_the_token_says() -> None:
    assert sent(wire.online_user(ALICE)) == STATUS | {"name": "Alice", "role": "admin"}


def test_a_user_s_online_status_adds_how_long_ago_and_meta() -> None:
    assert sent(wire.user_online_status(ALICE, 4_000)) == STATUS | {"secondsAgo": 2.5, "meta": {"page": "home"}}
    assert wire.user_online_status(ALICE, 1_000).seconds_ago == 0  # by a clock behind
    nobody = wire.user_online_status(UserStatus(tenant="acme", user_id="nobody"), 4_000)
    assert sent(nobody) == NOBODY | {"secondsAgo": None, "meta": None}


def test_user_online() -> None:
    name, body = wire.event_body(Event.ONLINE, change(Status.OFFLINE, ALICE))
    assert (name, sent(body)) == (
        "user-online",
        {
            "userId": "alice",
            "online": True,
            "status": "away",
            "timestamp": "1970-01-01T00:00:02.000Z",
            "version": 3,
            "name": "Alice",
        },
    )


def test_user_offline() -> None:
    gone = msgspec.structs.replace(ALICE, status=Status.OFFLINE, online_since=None, version=4)
    name, body = wire.event_body(Event.OFFLINE, change(Status.AWAY, gone))
    assert (name, sent(body)) == (
        "user-offline",
        {
            "userId": "alice",
            "online": False,
            "status": "offline",
            "lastActive": "1970-01-01T00:00:01.500Z",
            "timestamp": "1970-01-01T00:00:02.000Z",
            "version": 4,
        },
    )


def test_user_status_changed() -> None:
    name, body = wire.event_body(Event.CHANGED, change(Status.ONLINE, ALICE))
    assert (name, sent(body)) == ("user-status-changed", STATUS | {"timestamp": "1970-01-01T00:00:02.000Z"})


def test_an_explanation() -> None:
    tab = Connection(tenant="acme", user_id="alice", id="tab", node="n1", door="socketio", connected_at=1_000)
    explanation = Explanation(
        status=msgspec.structs.replace(ALICE, ttl_until=5_000),
        connections=(tab,),
        leases={"n1": 9_000},
        grace_until=None,
        transitions=(change(Status.ONLINE, ALICE),),
    )
    known = msgspec.structs.replace(tab, active_at=1_400, meta_json=b'{"page":"inbox","app":2}')
    assert sent(inspection.explained(explanation, [known])) == {
        "status": STATUS,
        "because": "1 live connection (socketio); inactive for longer than PRESENCE_AWAY_AFTER",
        "connections": [
            {
                "id": "tab",
                "node": "n1",
                "door": "socketio",
                "connectedAt": "1970-01-01T00:00:01.000Z",
                "lastActive": "1970-01-01T00:00:01.400Z",
                "userAgent": None,
                "page": "inbox",
                "meta": {"page": "inbox", "app": 2},
            }
        ],
        "leases": {"n1": "1970-01-01T00:00:09.000Z"},
        "graceUntil": None,
        "ttlUntil": "1970-01-01T00:00:05.000Z",
        "transitions": [
            {
                "version": 3,
                "was": "online",
                "status": "away",
                "timestamp": "1970-01-01T00:00:02.000Z",
                "reason": "test",
            }
        ],
    }


def test_answers_and_failures() -> None:
    assert sent(wire.Answer("heartbeat-ack", None)) == {"event": "heartbeat-ack", "data": None}
    failure = wire.Failure(error=wire.ErrorBody(code="NOT_FOUND", message="no"))
    assert sent(failure) == {"event": "error", "error": {"code": "NOT_FOUND", "message": "no"}}
    limited = wire.ErrorBody(code="RATE_LIMITED", message="slower", retry_after=0.5)
    assert sent(limited) == {"code": "RATE_LIMITED", "message": "slower", "retryAfter": 0.5}
    exception = wire.ExceptionEvent(event="heartbeat", code="INTERNAL", message="no")
    assert sent(exception) == {"event": "heartbeat", "code": "INTERNAL", "message": "no"}


@pytest.mark.parametrize("user_id", ["a", "a" * 128, "ü 🙂", "007", " "])
def test_a_user_id_is_taken(user_id: str) -> None:
    assert msgspec.convert({"userId": user_id}, wire.CheckUserStatus) == wire.CheckUserStatus(user_id)


@pytest.mark.parametrize("user_id", ["", "a" * 129, "a\n", "\na", "a\x00b", "\x7f", "\x9f", 7, None, ["a"]])
def test_what_is_no_user_id_is_refused(user_id: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"userId": user_id}, wire.CheckUserStatus)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"userIds": ["good", user_id]}, wire.CheckUsersStatus)


def test_as_many_users_may_be_asked_for_as_the_contract_says() -> None:
    for count in (0, 1000):
        assert len(msgspec.convert({"userIds": ["a"] * count}, wire.CheckUsersStatus).user_ids) == count
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"userIds": ["a"] * 1001}, wire.CheckUsersStatus)


def test_a_page_has_1_to_1000_users_and_1000_where_nothing_is_said() -> None:
    assert msgspec.convert({}, wire.GetOnlineUsers) == wire.GetOnlineUsers(limit=1000, cursor=None)
    for limit in (0, 1001, "10", 1.5, True):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"limit": limit}, wire.GetOnlineUsers)


@pytest.mark.parametrize("meta", [[], "text", 1])
def test_the_meta_of_a_heartbeat_is_an_object_or_null(meta: object) -> None:
    assert msgspec.convert({"meta": None}, wire.Heartbeat) == wire.Heartbeat(meta=None)
    assert msgspec.convert({"meta": {"a": [1]}}, wire.Heartbeat) == wire.Heartbeat(meta={"a": [1]})
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"meta": meta}, wire.Heartbeat)


def test_every_key_on_the_wire_is_in_camel_case() -> None:
    bodies = [body for body in vars(wire).values() if isinstance(body, type) and issubclass(body, wire.Body)]
    keys = {field.encode_name for body in bodies for field in msgspec.structs.fields(body)}
    assert {key for key in keys if "_" in key} == set()
    assert {"userId", "lastActive", "nextCursor", "retryAfter"} <= keys


@pytest.mark.parametrize("ids", [["a\nb"], ["ok", "\x00"], [""], ["x" * 129], ["\ud800"], ["ok", 5], ["a\x7f"]])
def test_ids_that_are_none_are_refused_among_many(ids: list[Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"userIds": ids}, wire.CheckUsersStatus)


def test_ids_that_do_not_print_may_be_ids_all_the_same() -> None:
    ids = ["a\u200eb", "\u00a0", "\ue000"]
    assert msgspec.convert({"userIds": ids}, wire.CheckUsersStatus).user_ids == ids
