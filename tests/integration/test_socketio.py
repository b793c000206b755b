"""The Socket.IO door, section 3 of the contract, asked by the real Python client."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp.web
import pytest
import socketio
from clients import (
    NAMESPACE,
    USER_OFFLINE,
    USER_ONLINE,
    USER_STATUS,
    Client,
    Packets,
    Polling,
    brief_token,
    is_timestamp,
)
from conftest import STEP, Running, eventually, make_settings, make_token

from gateway import Gateway, wire
from gateway.presence.model import Transition

Serve = Callable[..., Awaitable[Running]]


async def nothing_happens(seconds: float) -> None:
    """Give what must not happen the time in which it would: the grace or notice of the test, and a sweep."""
    await asyncio.sleep(seconds)


async def settled(gateway: Running, *observers: Client) -> None:
    """Wait until observers have heard all that was committed before: they hear a marker that comes after it."""
    marker = f"marker-{time.monotonic_ns()}"
    await gateway.gateway.presence.set_online(marker)
    for observer in observers:
        await observer.hears("user-online", userId=marker)
    await gateway.gateway.presence.set_offline(marker)
    for observer in observers:
        await observer.hears("user-offline", userId=marker)


# Requests


async def test_check_user_status_tells_of_a_user_who_is_online(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    answer = await alice.ask("check-user-status", {"userId": "alice"})
    assert set(answer) == {"event", "data"}
    assert answer["event"] == "user-status"
    data = answer["data"]
    assert set(data) == USER_STATUS | {"timestamp"}
    assert {name: data[name] for name in ("userId", "online", "status", "statusText", "version")} == {
        "userId": "alice",
        "online": True,
        "status": "online",
        "statusText": None,
        "version": 1,
    }
    assert all(is_timestamp(data[name]) for name in ("lastActive", "connectedAt", "timestamp"))


async def test_check_user_status_tells_of_a_user_never_seen(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    data = await alice.status("nobody")
    assert is_timestamp(data.pop("timestamp"))
    assert data == {
        "userId": "nobody",
        "online": False,
        "status": "offline",
        "statusText": None,
        "lastActive": None,
        "connectedAt": None,
        "version": 0,
    }


async def test_check_user_status_tells_when_one_who_left_was_last_seen(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    await bob.leave()
    gone = await alice.hears("user-offline", userId="bob")
    data = await alice.status("bob")
    assert {name: data[name] for name in ("online", "status", "connectedAt", "lastActive", "version")} == {
        "online": False,
        "status": "offline",
        "connectedAt": None,
        "lastActive": gone["lastActive"],
        "version": 2,
    }
    assert is_timestamp(data["lastActive"])


async def test_check_users_status_answers_in_the_order_asked_and_repeats_what_is_repeated(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    await Client.connect(closing, gateway.url, "bob")
    answer = await alice.ask("check-users-status", {"userIds": ["zoe", "bob", "alice", "bob", "zoe"]})
    assert set(answer) == {"event", "data"}
    assert answer["event"] == "users-status"
    assert set(answer["data"]) == {"statuses", "timestamp"}
    assert is_timestamp(answer["data"]["timestamp"])
    statuses = answer["data"]["statuses"]
    assert all(set(status) == USER_STATUS for status in statuses)
    assert [(status["userId"], status["online"]) for status in statuses] == [
        ("zoe", False),
        ("bob", True),
        ("alice", True),
        ("bob", True),
        ("zoe", False),
    ]


@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_check_users_status_takes_none_to_a_thousand(serve: Serve, closing: AsyncExitStack, count: int) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    ids = [f"user-{number}" for number in range(count)]
    answer = await alice.ask("check-users-status", {"userIds": ids})
    assert [status["userId"] for status in answer["data"]["statuses"]] == ids


async def test_get_online_users_lists_them_with_what_their_tokens_say(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    token = make_token("bob", name="Bob", avatar="https://app.example/bob.png", role="admin", email="bob@app.example")
    await Client.connect(closing, gateway.url, auth={"token": token})
    answer = await alice.ask("get-online-users")
    assert set(answer) == {"event", "data"}
    assert answer["event"] == "online-users"
    data = answer["data"]
    assert set(data) == {"users", "count", "nextCursor", "timestamp"}
    assert is_timestamp(data["timestamp"])
    assert (data["count"], data["nextCursor"]) == (2, None)
    assert [user["userId"] for user in data["users"]] == ["alice", "bob"]
    assert set(data["users"][0]) == USER_STATUS
    assert set(data["users"][1]) == USER_STATUS | {"name", "avatar", "role"}
    assert data["users"][1]["name"] == "Bob"
    assert data["users"][1]["avatar"] == "https://app.example/bob.png"
    assert data["users"][1]["role"] == "admin"


async def test_get_online_users_gives_page_after_page(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    for number in range(6):
        await gateway.gateway.presence.set_online(f"user-{number}")
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = (await alice.ask("get-online-users", {"limit": 3} | ({"cursor": cursor} if cursor else {})))["data"]
        assert page["count"] == 7
        pages.append([user["userId"] for user in page["users"]])
        if (cursor := page["nextCursor"]) is None:
            break
    assert pages == [["alice", "user-0", "user-1"], ["user-2", "user-3", "user-4"], ["user-5"]]


async def test_get_online_users_gives_a_thousand_at_the_most(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    await asyncio.gather(*(gateway.gateway.presence.set_online(f"user-{number:04}") for number in range(1000)))
    first = (await alice.ask("get-online-users"))["data"]
    assert (len(first["users"]), first["count"]) == (1000, 1001)
    second = (await alice.ask("get-online-users", {"cursor": first["nextCursor"]}))["data"]
    assert [user["userId"] for user in second["users"]] == ["user-0999"]
    assert second["nextCursor"] is None


@pytest.mark.parametrize("payload", [None, {}, {"meta": {"page": "home"}}])
async def test_a_heartbeat_is_acknowledged_with_the_time_of_the_activity(
    serve: Serve, closing: AsyncExitStack, payload: object
) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    answer = await alice.ask("heartbeat", payload)
    assert set(answer) == {"event", "data"}
    assert answer["event"] == "heartbeat-ack"
    assert set(answer["data"]) == {"timestamp", "lastActive"}
    assert all(is_timestamp(value) for value in answer["data"].values())
    assert (await alice.status("alice"))["lastActive"] == answer["data"]["lastActive"]


async def test_the_meta_of_a_heartbeat_is_kept_and_is_no_change_of_status(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    await alice.ask("heartbeat", {"meta": {"page": "home", "depth": [1, {"two": None}]}})
    assert gateway.gateway.presence.status("alice").meta == {"page": "home", "depth": [1, {"two": None}]}
    await alice.ask("heartbeat")
    assert gateway.gateway.presence.status("alice").meta == {"page": "home", "depth": [1, {"two": None}]}
    await settled(gateway, bob)
    assert bob.presence("alice") == []


async def test_refresh_token_is_acknowledged_with_its_expiry(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    expires = math.floor(time.time()) + 7200
    answer = await alice.ask("refresh-token", {"token": make_token("alice", exp=expires)})
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(expires))
    assert answer == {"event": "token-refreshed", "data": {"expiresAt": at}}


# Requests that fail


INVALID: list[tuple[str, object]] = [
    ("check-user-status", None),
    ("check-user-status", {}),
    ("check-user-status", {"userId": ""}),
    ("check-user-status", {"userId": 7}),
    ("check-user-status", {"userId": None}),
    ("check-user-status", {"userId": "x" * 129}),
    ("check-user-status", {"userId": "a\nb"}),
    ("check-user-status", {"userId": "ab\n"}),
    ("check-user-status", {"userId": "a\x7f"}),
    ("check-user-status", "alice"),
    ("check-user-status", ["alice"]),
    ("check-user-status", 5),
    ("check-users-status", {}),
    ("check-users-status", {"userIds": "alice"}),
    ("check-users-status", {"userIds": ["alice", 5]}),
    ("check-users-status", {"userIds": ["alice", ""]}),
    ("check-users-status", {"userIds": [str(number) for number in range(1001)]}),
    ("get-online-users", {"limit": 0}),
    ("get-online-users", {"limit": 1001}),
    ("get-online-users", {"limit": "10"}),
    ("get-online-users", {"limit": True}),
    ("get-online-users", {"cursor": "!"}),
    ("get-online-users", {"cursor": 3}),
    ("heartbeat", {"meta": "home"}),
    ("heartbeat", {"meta": {"page": "x" * 2048}}),
    ("heartbeat", [1]),
    ("refresh-token", None),
    ("refresh-token", {"token": 5}),
    ("refresh-token", {"token": "no token"}),
    ("refresh-token", {"token": make_token("alice", ttl=-60)}),
]


async def test_a_payload_of_another_form_is_refused(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    for event, payload in INVALID:
        answer = await alice.ask(event, payload)
        assert set(answer) == {"event", "error"}, (event, payload)
        assert answer["event"] == "error"
        assert set(answer["error"]) == {"code", "message"}
        assert answer["error"]["code"] == "INVALID_PAYLOAD"
        assert isinstance(answer["error"]["message"], str)
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_request_with_two_arguments_is_refused(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    answer = await alice.ask("check-user-status", ({"userId": "alice"}, {"userId": "bob"}))
    assert answer["error"]["code"] == "INVALID_PAYLOAD"


@pytest.mark.parametrize("event", ["no-such-request", "", "message", "user-online", "exception", "__class__"])
async def test_a_request_that_does_not_exist_is_answered_so(serve: Serve, closing: AsyncExitStack, event: str) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    answer = await alice.ask(event, {})
    assert set(answer) == {"event", "error"}
    assert set(answer["error"]) == {"code", "message"}
    assert (answer["event"], answer["error"]["code"]) == ("error", "UNKNOWN_EVENT")


async def test_over_the_rate_requests_are_refused_with_the_time_to_wait(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(rate_limit_events="5/h")
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    answers = [await alice.ask("heartbeat") for _ in range(6)]
    assert [answer["event"] for answer in answers] == ["heartbeat-ack"] * 5 + ["error"]
    assert set(answers[-1]["error"]) == {"code", "message", "retryAfter"}
    assert answers[-1]["error"]["code"] == "RATE_LIMITED"
    assert 0 < answers[-1]["error"]["retryAfter"] <= 720
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_request_is_taken_again_after_the_time_to_wait(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve(rate_limit_events="5/s")).url)
    while (answer := await alice.ask("heartbeat"))["event"] == "heartbeat-ack":
        pass
    await asyncio.sleep(answer["error"]["retryAfter"] + 0.001)  # it is the answer's own advice that is tested
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


@pytest.mark.parametrize("claims", [{"user": "bob"}, {"tenant": "other"}])
async def test_another_users_or_tenants_token_is_forbidden(
    serve: Serve, closing: AsyncExitStack, claims: dict[str, Any]
) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    answer = await alice.ask("refresh-token", {"token": make_token(**({"user": "alice"} | claims))})
    assert set(answer["error"]) == {"code", "message"}
    assert (answer["event"], answer["error"]["code"]) == ("error", "FORBIDDEN")
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_the_gateways_own_failure_is_internal_and_says_nothing_of_it(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await Client.connect(closing, (await serve()).url)

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a detail")

    monkeypatch.setattr(wire, "online_user", broken)
    answer = await alice.ask("get-online-users")
    assert answer["error"]["code"] == "INTERNAL"
    assert "a detail" not in json.dumps(answer)


async def test_without_an_acknowledgement_a_failure_is_an_exception_event(
    serve: Serve, closing: AsyncExitStack
) -> None:
    alice = await Client.connect(closing, (await serve(rate_limit_events="3/h")).url)
    await alice.tell("check-user-status", {})
    await alice.tell("no-such-request")
    await alice.tell("heartbeat")
    await alice.tell("heartbeat")
    await eventually(lambda: len(alice.of("exception")) == 3)
    invalid, unknown, limited = alice.of("exception")
    assert set(invalid) == set(unknown) == {"event", "code", "message"}
    assert (invalid["event"], invalid["code"]) == ("check-user-status", "INVALID_PAYLOAD")
    assert (unknown["event"], unknown["code"]) == ("no-such-request", "UNKNOWN_EVENT")
    assert set(limited) == {"event", "code", "message", "retryAfter"}
    assert (limited["event"], limited["code"]) == ("heartbeat", "RATE_LIMITED")


async def test_with_an_acknowledgement_a_failure_is_no_exception_event_besides(
    serve: Serve, closing: AsyncExitStack
) -> None:
    alice = await Client.connect(closing, (await serve()).url)
    await alice.ask("no-such-request")
    await alice.ask("heartbeat")
    assert alice.names() == ["connected"]


# Being let in


async def refusal(closing: AsyncExitStack, url: str, **options: Any) -> Any:
    """Try to connect; return the code of the ``connect_error``."""
    client = Client()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.try_to_connect(closing, url, **options)
    [error] = client.refusals
    assert set(error) == {"message", "data"}
    assert set(error["data"]) == {"code", "message"}
    assert error["message"] == error["data"]["message"]
    return error["data"]["code"]


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize(
    ("auth", "code"),
    [
        (None, "TOKEN_MISSING"),
        ({}, "TOKEN_MISSING"),
        ({"token": ""}, "TOKEN_MISSING"),
        ({"token": "nonsense"}, "TOKEN_INVALID"),
        ({"token": make_token(secret="another secret, as long as the other one")}, "TOKEN_INVALID"),
        ({"token": make_token(exp=None)}, "TOKEN_INVALID"),
        ({"token": make_token("")}, "TOKEN_INVALID"),
        ({"token": make_token("x" * 129)}, "TOKEN_INVALID"),
        ({"token": {"sub": "alice"}}, "TOKEN_INVALID"),
        ({"token": make_token(ttl=-60)}, "TOKEN_EXPIRED"),
    ],
)
async def test_without_a_good_token_nobody_is_let_in(
    serve: Serve, closing: AsyncExitStack, auth: object, code: str, transport: str
) -> None:
    gateway = await serve()
    assert await refusal(closing, gateway.url, auth=auth, transports=[transport]) == code
    assert gateway.gateway.presence.online_count() == 0


async def test_a_user_has_as_many_connections_as_are_allowed(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(max_connections_per_user=2)
    first = await Client.connect(closing, gateway.url)
    await Client.connect(closing, gateway.url)
    assert await refusal(closing, gateway.url, auth={"token": make_token()}) == "TOO_MANY_CONNECTIONS"
    await Client.connect(closing, gateway.url, "bob")
    await first.leave()
    await eventually(lambda: len(gateway.gateway._connections) == 2)
    await Client.connect(closing, gateway.url)


async def test_a_tenant_has_as_many_connections_as_are_allowed(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(max_connections_per_tenant=1)
    await Client.connect(closing, gateway.url)
    assert await refusal(closing, gateway.url, auth={"token": make_token("bob")}) == "TENANT_FULL"
    await Client.connect(closing, gateway.url, auth={"token": make_token("bob", tenant="other")})


async def test_a_node_that_drains_lets_nobody_in(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    late = await Packets.start(closing, gateway.ws_url)
    closed = asyncio.create_task(late.closed())
    # Not by stopping the server: aiohttp reads nothing more from a connection once that has begun.
    await gateway.gateway.drain()
    notice = await alice.hears("server-draining")
    assert set(notice) == {"timestamp", "retryAfter"}
    assert is_timestamp(notice["timestamp"])
    assert notice["retryAfter"] > 0
    # Refused by a packet, socket.io-client would not come back; after a close, and after a 503, it does.
    assert await closed == 1001
    for transport in ("polling", "websocket"):
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"} if transport == "websocket" else {}
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{gateway.url}/socket.io/?EIO=4&transport={transport}", headers=headers) as response,
        ):
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            told = await response.json()
            assert set(told) == {"code", "message", "retryAfter"}
            assert told["code"] == "SERVER_DRAINING"
            assert 1 <= told["retryAfter"] <= 4


async def test_who_is_being_let_in_as_the_node_drains_is_told_so(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve()
    identify = gateway.gateway._authenticator.identify

    async def drain_first(token: str | None) -> Any:
        await gateway.gateway.drain()
        return await identify(token)

    monkeypatch.setattr(gateway.gateway._authenticator, "identify", drain_first)
    late = await Packets.start(closing, gateway.ws_url)
    await late.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': make_token('bob')})}")
    error = json.loads((await late.packet("44")).removeprefix(f"44{NAMESPACE},"))
    assert error["data"]["code"] == "SERVER_DRAINING"
    assert error["data"]["retryAfter"] > 0
    assert gateway.gateway.presence.status("bob").online is False


async def test_a_namespace_that_is_not_there_is_refused_as_node_would(serve: Serve, closing: AsyncExitStack) -> None:
    raw = await Packets.start(closing, (await serve()).ws_url)
    await raw.ws.send_str('40/elsewhere,{"token":"x"}')
    assert await raw.packet("44") == '44/elsewhere,{"message":"Invalid namespace"}'


TOKEN_PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "auth": lambda token: {"auth": {"token": token}},
    "header": lambda token: {"headers": {"Authorization": f"Bearer {token}"}},
    "query": lambda token: {"query": f"?token={token}"},
    "cookie": lambda token: {"headers": {"Cookie": f"jwt={token}"}},
}


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]], ids="+".join)
@pytest.mark.parametrize("place", TOKEN_PLACES)
async def test_a_token_is_found_in_each_of_its_four_places(
    serve: Serve, closing: AsyncExitStack, place: str, transports: list[str]
) -> None:
    gateway = await serve()
    options = TOKEN_PLACES[place](make_token("alice"))
    client = Client()
    await client.try_to_connect(closing, gateway.url + options.pop("query", ""), transports=transports, **options)
    assert (await client.hears("connected"))["userId"] == "alice"


async def test_the_places_of_a_token_are_looked_at_in_order(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    places = [TOKEN_PLACES[place](make_token(place)) for place in ("auth", "header", "query", "cookie")]
    found = []
    for first in range(4):
        client = Client()
        options: dict[str, Any] = {"headers": {}}
        for place in places[first:]:
            options["headers"] |= place.get("headers", {})
            options |= {name: value for name, value in place.items() if name != "headers"}
        await client.try_to_connect(closing, gateway.url + options.pop("query", ""), **options)
        found.append((await client.hears("connected"))["userId"])
    assert found == ["auth", "header", "query", "cookie"]


async def test_a_bad_token_in_an_earlier_place_is_not_made_good_by_a_later_one(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    code = await refusal(
        closing, gateway.url, auth={"token": "nonsense"}, headers={"Authorization": f"Bearer {make_token()}"}
    )
    assert code == "TOKEN_INVALID"


@pytest.mark.parametrize(
    ("transports", "in_the_end"),
    [(["websocket"], "websocket"), (["polling"], "polling"), (["polling", "websocket"], "websocket")],
    ids=["websocket", "polling", "upgrade"],
)
async def test_every_transport_is_greeted_answered_told_and_let_go(
    serve: Serve, closing: AsyncExitStack, transports: list[str], in_the_end: str
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url, transports=transports)
    assert alice.io.transport() == in_the_end
    assert (await alice.ask("check-users-status", {"userIds": ["alice"]}))["event"] == "users-status"
    bob = await Client.connect(closing, gateway.url, "bob", transports=transports)
    await alice.hears("user-online", userId="bob")
    await alice.tell("no-such-request")
    await alice.hears("exception")
    await bob.leave()
    await alice.hears("user-offline", userId="bob")
    assert [status.user_id for status in map(gateway.gateway.presence.status, ("alice", "bob")) if status.online] == [
        "alice"
    ]


async def test_an_upgrade_loses_nothing_and_is_no_second_connection(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    observer = await Client.connect(closing, gateway.url, "observer")
    polling = await Polling.connect(closing, gateway.url, "alice")
    ws = await closing.enter_async_context(
        polling.session.ws_connect(
            f"{gateway.ws_url}/socket.io/?EIO=4&transport=websocket&sid={polling.sid}",
        )
    )
    poll = asyncio.create_task(polling.poll())
    await ws.send_str("2probe")
    assert await ws.receive_str() == "3probe"
    assert "6" in await poll
    for number in range(5):
        await gateway.gateway.notify("alice", "numbered", {"number": number})
    await ws.send_str("5")
    received: list[int] = []
    while len(received) < 5:
        packet = await ws.receive_str(timeout=5)
        if packet.startswith("42") and "numbered" in packet:
            received.append(json.loads(packet[packet.index("[") :])[1]["number"])
    assert received == [0, 1, 2, 3, 4]
    await settled(gateway, observer)
    assert observer.presence("alice") == [("user-online", "alice", 1)]
    assert len(gateway.gateway._connections) == 2


# When a user is online


async def test_a_connection_is_greeted_first_and_does_not_hear_that_its_own_user_is_online(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    [name, data] = alice.heard[0]
    assert name == "connected"
    assert set(data) == {"userId", "socketId", "timestamp", "reconnect"}
    assert (data["userId"], data["socketId"], data["reconnect"]) == ("alice", alice.socket_id, False)
    assert is_timestamp(data["timestamp"])
    await settled(gateway, alice, bob)
    assert alice.presence("alice") == []
    assert bob.presence("alice") == bob.presence("bob") == []
    assert alice.presence("bob") == [("user-online", "bob", 1)]


async def test_the_events_of_coming_and_going_have_exactly_these_keys(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    token = make_token("bob", name="Bob", avatar="b.png")
    bob = await Client.connect(closing, gateway.url, auth={"token": token})
    online = await alice.hears("user-online", userId="bob")
    assert set(online) == USER_ONLINE | {"name", "avatar"}
    timestamp = online.pop("timestamp")
    assert is_timestamp(timestamp)
    assert online == {
        "userId": "bob",
        "online": True,
        "status": "online",
        "version": 1,
        "name": "Bob",
        "avatar": "b.png",
    }
    await bob.leave()
    offline = await alice.hears("user-offline", userId="bob")
    assert set(offline) == USER_OFFLINE
    assert is_timestamp(offline["timestamp"])
    assert offline["timestamp"] >= timestamp
    assert is_timestamp(offline["lastActive"])
    assert (offline["online"], offline["status"], offline["version"]) == (False, "offline", 2)


async def test_who_has_no_name_is_announced_without_one(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    await Client.connect(closing, gateway.url, "bob")
    assert set(await alice.hears("user-online", userId="bob")) == USER_ONLINE


async def test_several_tabs_are_one_user_who_comes_once_and_goes_once(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    tabs = await asyncio.gather(
        *(
            Client.connect(closing, gateway.url, "bob", transports=[transport])
            for transport in ("websocket", "polling", "websocket", "polling")
        )
    )
    await settled(gateway, alice)
    assert alice.presence("bob") == [("user-online", "bob", 1)]
    for tab in tabs[:-1]:
        await tab.leave()
    await eventually(lambda: len(gateway.gateway._connections) == 2)
    await settled(gateway, alice)
    assert alice.presence("bob") == [("user-online", "bob", 1)]
    await tabs[-1].leave()
    await alice.hears("user-offline", userId="bob")
    await settled(gateway, alice)
    assert alice.presence("bob") == [("user-online", "bob", 1), ("user-offline", "bob", 2)]


async def test_a_tab_hears_nothing_of_its_users_other_tabs(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    first = await Client.connect(closing, gateway.url)
    second = await Client.connect(closing, gateway.url)
    await second.leave()
    await settled(gateway, first)
    assert first.presence("alice") == []


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_goodbye_is_offline_at_once(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    gateway = await serve(presence_offline_grace=60)
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob", transports=[transport])
    await bob.leave()
    await alice.hears("user-offline", userId="bob")


async def test_leaving_the_namespace_alone_is_a_goodbye_too(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=60)
    alice = await Client.connect(closing, gateway.url)
    bob = await Packets.connect(closing, gateway.ws_url, "bob")
    await bob.ws.send_str(f"41{NAMESPACE},")
    await alice.hears("user-offline", userId="bob")


@pytest.mark.parametrize(("code", "goodbye"), [(1000, True), (1001, False), (3000, False)])
async def test_a_websocket_closed_with_1000_is_a_goodbye_without_its_packets(
    serve: Serve, closing: AsyncExitStack, code: int, *, goodbye: bool
) -> None:
    gateway = await serve(presence_offline_grace=60)
    bob = await Packets.connect(closing, gateway.ws_url, "bob")
    await bob.ws.close(code=code)
    await eventually(lambda: len(gateway.gateway._connections) == 0)
    explained = await gateway.gateway._store.explain("default", "bob")
    assert (explained.status.online, explained.grace_until is None) == (not goodbye, goodbye)


@pytest.mark.parametrize("reset", [True, False], ids=["cut off", "killed"])
async def test_a_client_that_ends_without_a_word_is_lost(serve: Serve, closing: AsyncExitStack, *, reset: bool) -> None:
    gateway = await serve(presence_offline_grace=60)
    bob = await Packets.connect(closing, gateway.ws_url, "bob")
    bob.vanish(reset=reset)
    await eventually(lambda: len(gateway.gateway._connections) == 0)
    assert gateway.gateway.presence.status("bob").online is True


async def test_back_within_the_grace_nobody_hears_anything(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=0.6)
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    await alice.hears("user-online", userId="bob")
    bob.vanish()
    await eventually(lambda: len(gateway.gateway._connections) == 1)
    again = await Client.connect(closing, gateway.url, "bob")
    assert again.of("connected")[0]["reconnect"] is True
    await nothing_happens(0.9)  # the grace that was running would have run out, and been swept
    await settled(gateway, alice, again)
    assert alice.presence("bob") == [("user-online", "bob", 1)]
    assert again.presence("bob") == []
    assert (await alice.status("bob"))["version"] == 1


async def test_a_second_tab_is_no_reconnection(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    await Client.connect(closing, gateway.url)
    assert (await Client.connect(closing, gateway.url)).of("connected")[0]["reconnect"] is False


async def test_when_the_grace_runs_out_the_user_is_offline_once(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=0.3)
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, "bob")
    bob.vanish()
    await eventually(lambda: len(gateway.gateway._connections) == 1)
    assert (await alice.status("bob"))["online"] is True
    await alice.hears("user-offline", userId="bob")
    await nothing_happens(0.3)  # one more sweep, that must not find him again
    await settled(gateway, alice)
    assert alice.presence("bob") == [("user-online", "bob", 1), ("user-offline", "bob", 2)]
    late = await Client.connect(closing, gateway.url, "bob")
    assert late.of("connected")[0]["reconnect"] is False
    assert (await alice.hears("user-online", userId="bob", version=3))["online"] is True


async def test_a_client_that_answers_no_pings_is_lost(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(ping_interval=0.2, ping_timeout=0.3)
    await Packets.connect(closing, gateway.ws_url, "bob")
    assert gateway.gateway.presence.status("bob").online
    await eventually(lambda: not gateway.gateway.presence.status("bob").online)
    assert len(gateway.gateway._connections) == 0


@pytest.mark.parametrize(("interval", "said"), [(25, 25000), (2.5, 2500), (0.2, 200)])
async def test_the_ping_interval_is_told_to_the_millisecond(
    serve: Serve, closing: AsyncExitStack, interval: float, said: int
) -> None:
    gateway = await serve(ping_interval=interval)
    session = await closing.enter_async_context(aiohttp.ClientSession(gateway.url))
    async with session.get("/socket.io/?EIO=4&transport=polling") as response:
        assert json.loads((await response.text())[1:])["pingInterval"] == said


async def test_a_polling_client_that_stops_polling_is_lost(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(ping_interval=0.2, ping_timeout=0.3)
    await Polling.connect(closing, gateway.url, "bob")
    assert gateway.gateway.presence.status("bob").online
    await eventually(lambda: not gateway.gateway.presence.status("bob").online)
    assert gateway.gateway._server.eio.sockets == {}


async def test_without_activity_a_user_turns_away_and_back_with_the_next(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_away_after=1)
    bob = await Client.connect(closing, gateway.url, "bob")
    alice = await Client.connect(closing, gateway.url)
    away = await alice.hears("user-status-changed", userId="bob", status="away")
    assert set(away) == USER_STATUS | {"timestamp"}
    assert (away["online"], away["version"]) == (True, 2)
    assert is_timestamp(away["connectedAt"])
    await bob.ask("check-user-status", {"userId": "bob"})
    back = await alice.hears("user-status-changed", userId="bob", status="online")
    assert set(back) == USER_STATUS | {"timestamp"}
    assert (back["online"], back["version"]) == (True, 3)
    assert back["lastActive"] > away["lastActive"]
    assert back["connectedAt"] == away["connectedAt"]
    assert alice.presence("bob") == [("user-status-changed", "bob", 2), ("user-status-changed", "bob", 3)]
    await bob.hears("user-status-changed", userId="bob", status="online")


async def test_a_client_that_vanishes_from_its_poll_is_missed_though_an_event_was_due(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(presence_offline_grace=0.2)
    watcher = await Client.connect(closing, gateway.url, "watcher")
    polling = await Polling.connect(closing, gateway.url, "bob")
    await watcher.hears("user-online", userId="bob")
    poll = asyncio.create_task(polling.poll())
    await asyncio.sleep(0.1)  # the poll waits at the gateway
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    await gateway.gateway.presence.set_online("carol")  # which the poll is answered with, to nobody
    await watcher.hears("user-offline", userId="bob")


async def test_a_heartbeat_brings_back_from_away(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_away_after=0.3)
    bob = await Client.connect(closing, gateway.url, "bob")
    await bob.hears("user-status-changed", userId="bob", status="away")
    await bob.ask("heartbeat")
    await bob.hears("user-status-changed", userId="bob", status="online", version=3)


async def test_a_second_tab_is_no_activity_but_the_list_shows_who_is_away(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(presence_away_after=0.3)
    bob = await Client.connect(closing, gateway.url, "bob")
    await bob.hears("user-status-changed", userId="bob", status="away")
    await Client.connect(closing, gateway.url, "bob")
    data = (await bob.ask("get-online-users"))["data"]
    assert data["count"] == 1
    assert data["users"][0]["online"] is True


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_request_without_the_namespace_is_answered_with_where_it_belongs(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    gateway = await serve()
    client = socketio.AsyncClient(reconnection=False)
    closing.push_async_callback(client.disconnect)
    await client.connect(gateway.url, auth={"token": make_token("alice")}, transports=[transport])
    answer = await client.call("get-online-users", timeout=STEP)
    assert (answer["event"], answer["error"]["code"]) == ("error", "UNKNOWN_EVENT")
    assert answer["error"]["message"].endswith("connect to /ws/messages")


async def test_users_events_come_to_every_observer_in_one_order_with_versions_in_a_row(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(presence_flush_interval=0)
    observers = [
        await Client.connect(closing, gateway.url, "one"),
        await Client.connect(closing, gateway.url, "two", transports=["polling"]),
        await Client.connect(closing, gateway.url, "three", transports=["polling", "websocket"]),
    ]

    async def come_and_go(user: str) -> None:
        for _ in range(3):
            client = await Client.connect(closing, gateway.url, user)
            await client.leave()
            await eventually(lambda: not gateway.gateway.presence.status(user).online)

    users = [f"user-{number}" for number in range(4)]
    await asyncio.gather(*map(come_and_go, users))
    await settled(gateway, *observers)
    for user in users:
        expected = [("user-online" if version % 2 else "user-offline", user, version) for version in (1, 2, 3, 4, 5, 6)]
        assert observers[0].presence(user) == expected
    seen = [[entry for entry in observer.presence() if entry[1] in users] for observer in observers]
    assert seen[0] == seen[1] == seen[2]


async def test_within_one_interval_only_the_net_effect_goes_out(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_flush_interval=1)
    alice = await Client.connect(closing, gateway.url)
    presence = gateway.gateway.presence
    await presence.set_online("first")  # goes out at once, and begins the interval
    await alice.hears("user-online", userId="first")
    await presence.set_online("bob")
    await presence.set_offline("bob")
    await presence.set_online("carol")
    await presence.set_offline("carol")
    await presence.set_online("carol")
    await alice.hears("user-online", userId="carol")
    assert alice.presence("bob") == []
    assert alice.presence("carol") == [("user-online", "carol", 3)]


async def test_an_answer_never_knows_more_than_the_events_before_it(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_flush_interval=1)
    alice = await Client.connect(closing, gateway.url)
    await gateway.gateway.presence.set_online("first")
    await alice.hears("user-online", userId="first")
    await gateway.gateway.presence.set_online("bob")
    assert (await alice.status("bob"))["version"] == 1
    assert alice.presence("bob") == [("user-online", "bob", 1)]


# Tokens that run out


async def test_when_a_token_runs_out_the_client_is_told_and_then_disconnected_and_offline_at_once(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.connections.EXPIRY_NOTICE", 0.2)
    gateway = await serve(presence_offline_grace=60)
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, auth={"token": brief_token("bob")})
    notice = await bob.hears("token-expired")
    assert set(notice) == {"timestamp"}
    assert is_timestamp(notice["timestamp"])
    assert bob.goodbyes == []
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"
    await bob.closed()
    await alice.hears("user-offline", userId="bob")


async def test_a_refreshed_token_keeps_the_connection(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.connections.EXPIRY_NOTICE", 0.4)
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    bob = await Client.connect(closing, gateway.url, auth={"token": brief_token("bob")})
    await bob.hears("token-expired")
    assert (await bob.ask("refresh-token", {"token": make_token("bob")}))["event"] == "token-refreshed"
    await nothing_happens(0.6)  # the notice that was running would have run out
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert bob.names().count("token-expired") == 1
    assert alice.presence("bob") == [("user-online", "bob", 1)]


async def test_another_users_token_does_not_keep_the_connection(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.connections.EXPIRY_NOTICE", 0.3)
    gateway = await serve()
    bob = await Client.connect(closing, gateway.url, auth={"token": brief_token("bob")})
    await bob.hears("token-expired")
    answer = await bob.ask("refresh-token", {"token": make_token("alice")})
    assert answer["error"]["code"] == "FORBIDDEN"
    await bob.closed()
    await eventually(lambda: not gateway.gateway.presence.status("bob").online)


# Tenants


async def test_tenants_see_count_and_hear_nothing_of_each_other(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    red = await Client.connect(closing, gateway.url, auth={"token": make_token("alice", tenant="red")})
    blue = await Client.connect(closing, gateway.url, auth={"token": make_token("alice", tenant="blue")})
    none = await Client.connect(closing, gateway.url, "alice")
    red_bob = await Client.connect(closing, gateway.url, auth={"token": make_token("bob", tenant="red")})
    await red.hears("user-online", userId="bob")
    assert (await red.status("bob"))["online"] is True
    for other in (blue, none):
        assert (await other.status("bob"))["online"] is False
        data = (await other.ask("get-online-users"))["data"]
        assert (data["count"], [user["userId"] for user in data["users"]]) == (1, ["alice"])
        [bob] = (await other.ask("check-users-status", {"userIds": ["bob"]}))["data"]["statuses"]
        assert (bob["online"], bob["lastActive"], bob["version"]) == (False, None, 0)
    await red_bob.leave()
    await red.hears("user-offline", userId="bob")
    await settled(gateway, none)
    assert none.presence("bob") == blue.presence() == []
    assert gateway.gateway.presence.online_users(tenant="blue") == ["alice"]


# Kicks, notifications, ghosts


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_kick_closes_every_connection_and_is_offline_at_once(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    gateway = await serve(presence_offline_grace=60)
    alice = await Client.connect(closing, gateway.url)
    tabs = [await Client.connect(closing, gateway.url, "bob", transports=[transport]) for _ in range(2)]
    assert await gateway.gateway.disconnect("bob") == 2
    for tab in tabs:
        await tab.closed()
    await alice.hears("user-offline", userId="bob")
    await settled(gateway, alice)
    assert alice.presence("bob") == [("user-online", "bob", 1), ("user-offline", "bob", 2)]
    assert await gateway.gateway.disconnect("bob") == 0
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_notification_reaches_every_connection_of_its_user_and_nobody_else(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    tabs = [await Client.connect(closing, gateway.url, "bob", transports=[name]) for name in ("websocket", "polling")]
    delivery = await gateway.gateway.notify("bob", "order-shipped", {"order": 42})
    assert (delivery.sent, delivery.method) == (True, "realtime")
    for tab in tabs:
        assert await tab.hears("order-shipped") == {"order": 42}
    await settled(gateway, alice)
    assert alice.of("order-shipped") == []
    assert (await gateway.gateway.notify("nobody", "order-shipped", {})).method == "queued"


async def test_hooks_are_called_in_order(closing: AsyncExitStack) -> None:
    gateway = Gateway(make_settings())
    called: list[tuple[str, str, int]] = []

    @gateway.on("user-online")
    @gateway.on("user-offline")
    async def _note(change: Transition) -> None:
        called.append((str(change.event), change.user_id, change.now.version))

    app = aiohttp.web.Application()
    gateway.attach(app)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await gateway.presence.set_online("alice")
    await eventually(lambda: len(called) == 1)
    await gateway.presence.set_offline("alice")
    await eventually(lambda: len(called) == 2)
    assert called == [("user-online", "alice", 1), ("user-offline", "alice", 2)]


class Gate:
    """Holds the authenticator until it is opened."""

    def __init__(self, gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.identify = gateway.gateway._authenticator.identify
        monkeypatch.setattr(gateway.gateway._authenticator, "identify", self)

    async def __call__(self, token: str | None) -> Any:
        self.entered.set()
        await self.open.wait()
        return await self.identify(token)


async def test_a_client_that_vanishes_while_it_is_let_in_leaves_no_ghost(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    gate = Gate(gateway, monkeypatch)
    bob = await Packets.start(closing, gateway.ws_url)
    await bob.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': make_token('bob')})}")
    await gate.entered.wait()
    bob.vanish()
    await nothing_happens(0.1)  # the server's side is busy letting bob in, and cannot say that it noticed
    gate.open.set()
    await eventually(lambda: len(gateway.gateway._server.eio.sockets) == 1)
    await eventually(lambda: not gateway.gateway.presence.status("bob").online)
    assert len(gateway.gateway._connections) == 1
    assert (await alice.ask("get-online-users"))["data"]["count"] == 1
    explained = await gateway.gateway._store.explain("default", "bob")
    assert explained.connections == ()


async def test_a_polling_client_that_says_goodbye_while_it_is_let_in_leaves_no_ghost(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve()
    gate = Gate(gateway, monkeypatch)
    bob = await Polling.start(closing, gateway.url)
    joining = asyncio.create_task(bob.post(f"40{NAMESPACE},{json.dumps({'token': make_token('bob')})}"))
    await gate.entered.wait()
    leaving = asyncio.create_task(bob.post("1"))
    gate.open.set()
    await joining
    assert await leaving == 200
    await eventually(lambda: not gateway.gateway.presence.status("bob").online)
    await eventually(lambda: len(gateway.gateway._connections) == 0)
