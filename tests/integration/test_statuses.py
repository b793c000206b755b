"""Statuses set by hand, through every door; what others are told of one who is invisible."""

import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import USER_STATUS, Client, Listener, Plain, abort
from conftest import SERVICE_KEY, Running, eventually, make_token
from redis_servers import fresh_prefix
from test_sessions import Tab

from gateway.client import PresenceClient
from gateway.errors import InvalidPayloadError, StoreUnavailableError

Serve = Callable[..., Awaitable[Running]]


class API:
    """What one caller is answered over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, user: str | None) -> None:
        self.session = session
        self.headers = (
            {"X-API-Key": SERVICE_KEY} if user is None else {"Authorization": f"Bearer {make_token(user, name=user)}"}
        )

    async def call(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        async with self.session.request(method, path, headers=self.headers, json=payload) as response:
            return response.status, await response.json(content_type=None)


async def api(closing: AsyncExitStack, gateway: Running, user: str | None) -> API:
    return API(await closing.enter_async_context(aiohttp.ClientSession(gateway.url)), user)


async def test_set_status_is_answered_with_what_the_owner_sees_and_heard_once(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    answer = await alice.ask("set-status", {"status": "busy", "statusText": "in a call", "expiresIn": 60})
    assert answer["event"] == "status-set"
    assert set(answer["data"]) == USER_STATUS
    assert (answer["data"]["status"], answer["data"]["statusText"]) == ("busy", "in a call")
    heard = (await bob.until("user-status-changed"))["data"]
    assert {name: heard[name] for name in USER_STATUS} == answer["data"]
    plain = await bob.ask("set-status", {"status": "dnd"}, id=1)
    assert (plain["event"], plain["data"]["status"], plain["data"]["statusText"]) == ("status-set", "dnd", None)
    await alice.hears("user-status-changed", userId="bob", status="dnd")
    assert bob.presence("alice") == [("user-status-changed", "alice", answer["data"]["version"])]


async def test_put_presence_status_is_as_set_status(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await api(closing, gateway, "alice")
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    status, answer = await alice.call("PUT", "/presence/status", {"status": "dnd", "statusText": "later"})
    assert (status, set(answer)) == (200, USER_STATUS)
    assert (answer["status"], answer["online"]) == ("offline", False)  # a status set keeps nobody online
    assert (await alice.call("POST", "/presence/heartbeat"))[1]["status"] == "dnd"
    online = (await bob.until("user-online"))["data"]
    assert (online["userId"], online["status"]) == ("alice", "dnd")
    _, seen = await alice.call("GET", "/api/users/alice/online-status")
    assert (seen["status"], seen["statusText"]) == ("dnd", "later")


async def test_put_presence_status_is_throttled_and_takes_a_user_s_token(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(rate_limit_heartbeat="2/min")
    alice, backend = await api(closing, gateway, "alice"), await api(closing, gateway, None)
    said = [(await alice.call("PUT", "/presence/status", {"status": "busy"}))[0] for _ in range(3)]
    assert said == [200, 200, 429]
    status, problem = await backend.call("PUT", "/presence/status", {"status": "busy"})
    assert (status, problem["code"]) == (403, "FORBIDDEN")


BAD: list[tuple[object, str]] = [
    (None, "status"),
    ({}, "status"),
    ({"status": "offline"}, "offline"),
    ({"status": 5}, "status"),
    ({"status": "busy", "statusText": 5}, "statusText"),
    ({"status": "busy", "statusText": "x" * 129}, "128"),
    ({"status": "busy", "statusText": "a\nb"}, "statusText must have no control characters"),
    ({"status": "busy", "statusText": "a\u0000"}, "statusText must have no control characters"),
    ({"status": "busy", "expiresIn": 0}, "expiresIn"),
    ({"status": "busy", "expiresIn": -1}, "expiresIn"),
    ({"status": "busy", "expiresIn": 31_536_001}, "31536000"),
    ({"status": "busy", "expiresIn": "60"}, "expiresIn"),
    ({"status": "busy", "expiresIn": True}, "expiresIn"),
]


@pytest.mark.parametrize(("payload", "says"), BAD)
async def test_what_is_no_status_is_refused_and_heard_by_nobody(
    serve: Serve, closing: AsyncExitStack, payload: object, says: str
) -> None:
    gateway = await serve()
    alice = await Plain.connect(closing, gateway.ws_url)
    bob = await Client.connect(closing, gateway.url, "bob")
    error = (await alice.ask("set-status", payload))["error"]
    assert error["code"] == "INVALID_PAYLOAD"
    assert says in error["message"]
    status, problem = await (await api(closing, gateway, "alice")).call("PUT", "/presence/status", payload)
    assert (status, problem["code"]) == (400, "INVALID_PAYLOAD")
    assert says in problem["detail"]
    await bob.ask("heartbeat")
    assert bob.presence("alice") == []


async def test_in_process(serve: Serve, closing: AsyncExitStack) -> None:
    presence = (await serve()).gateway.presence
    await presence.set_online("alice")
    busy = await presence.set_status("alice", "busy", "in a call", expires_in=0.3)
    assert (busy.status, busy.status_text) == ("busy", "in a call")
    assert presence.status("alice").status == "busy"
    await eventually(lambda: presence.status("alice").status == "online")
    hidden = await presence.set_status("alice", "invisible")
    assert (hidden.status, hidden.invisible) == ("online", True)
    assert presence.status("alice").status == "offline"
    assert (await presence.set_status("alice", "dnd", tenant="other")).status == "offline"
    assert presence.status("alice").own is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("alice", "nonsense"),
        ("alice", "busy", "x" * 129),
        ("alice", "busy", "a\x7f"),
        ("alice", "busy", None, 0),
        ("alice", "busy", None, math.nan),
        ("alice", "busy", None, math.inf),
        ("", "busy"),
        ("alice\n", "busy"),
    ],
)
async def test_in_process_bad_arguments_are_refused(serve: Serve, arguments: tuple[Any, ...]) -> None:
    presence = (await serve()).gateway.presence
    with pytest.raises(InvalidPayloadError):
        await presence.set_status(*arguments)


async def test_a_client_beside_the_gateways_sets_it_by_their_timing(
    serve: Serve, closing: AsyncExitStack, redis_url: str
) -> None:
    prefix = fresh_prefix()
    gateway = await serve(redis_url=redis_url, redis_prefix=prefix)
    alice = await Plain.connect(closing, gateway.ws_url)
    bob = await Client.connect(closing, gateway.url, "bob")
    client = await closing.enter_async_context(PresenceClient(redis_url, prefix=prefix))
    assert (await client.presence.set_status("alice", "busy", "in a call", 60)).status_text == "in a call"
    await bob.hears("user-status-changed", userId="alice", status="busy")
    # Of inactivity the gateways decide, and not a client, which does not know after how long.
    assert (await client.presence.set_status("alice", "online")).status == "online"
    assert (await client.presence.set_status("alice", "invisible")).invisible
    await bob.hears("user-offline", userId="alice")
    assert client.presence.status("alice").status == "offline"
    assert (await alice.ask("check-user-status", {"userId": "alice"}))["data"]["invisible"] is True
    with pytest.raises(InvalidPayloadError):
        await client.presence.set_status("alice", "gone")


async def test_while_the_store_is_away_nothing_is_set(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Plain.connect(closing, gateway.ws_url)
    gateway.gateway._tracker.away = "for this test"
    error = (await alice.ask("set-status", {"status": "busy"}))["error"]
    assert error["code"] == "UNAVAILABLE"
    with pytest.raises(StoreUnavailableError):
        await gateway.gateway.presence.set_status("alice", "busy")


# Invisible


async def test_the_owner_sees_the_truth_through_every_door(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Client.connect(closing, gateway.url)
    other_tab = await Plain.connect(closing, gateway.ws_url)
    http = await api(closing, gateway, "alice")
    answer = await alice.ask("set-status", {"status": "invisible", "statusText": "hush"})
    truth = answer["data"]
    assert set(truth) == USER_STATUS | {"invisible"}
    assert (truth["online"], truth["status"], truth["statusText"], truth["invisible"]) == (
        *(True, "online", "hush", True),
    )
    assert truth["connectedAt"] is not None
    for tab in (alice, other_tab):
        seen = (await tab.ask("check-user-status", {"userId": "alice"}))["data"]
        assert {name: seen[name] for name in truth if name != "lastActive"} == {
            name: value for name, value in truth.items() if name != "lastActive"
        }
        listed = (await tab.ask("check-users-status", {"userIds": ["bob", "alice"]}))["data"]["statuses"]
        assert [(each["userId"], each["status"], "invisible" in each) for each in listed] == [
            ("bob", "offline", False),
            ("alice", "online", True),
        ]
        assert (await tab.ask("heartbeat"))["data"]["lastActive"] >= truth["lastActive"]
    _, seen = await http.call("GET", "/api/users/alice/online-status")
    assert (seen["status"], seen["invisible"]) == ("online", True)
    assert (await http.call("GET", "/online-status?ids=alice,bob"))[1] == [
        {"id": "alice", "online": True},
        {"id": "bob", "online": False},
    ]
    assert (await http.call("POST", "/presence/heartbeat"))[1]["status"] == "online"
    _, explained = await (await api(closing, gateway, None)).call("GET", "/api/users/alice/explain")
    assert (explained["status"]["status"], explained["status"]["invisible"]) == ("online", True)
    assert explained["because"].endswith("; set to invisible by hand")
    _, put = await http.call("PUT", "/presence/status", {"status": "online"})
    assert "invisible" not in put
    assert "invisible" not in (await alice.ask("check-user-status", {"userId": "alice"}))["data"]


async def test_a_user_s_other_connections_hear_the_truth_and_never_that_they_are_gone(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    bob = await Client.connect(closing, gateway.url, "bob")
    alice, tab = await Client.connect(closing, gateway.url), await Plain.connect(closing, gateway.ws_url)
    watching, looking_away = [await Client.connect(closing, gateway.url) for _ in range(2)]
    await watching.ask("watch-users", {"userIds": ["alice", "bob"]})
    await looking_away.ask("watch-users", {"userIds": ["bob"]})
    truth = (await alice.ask("set-status", {"status": "invisible", "statusText": "hush"}))["data"]
    told = (await tab.until("user-status-changed"))["data"]
    assert {name: told[name] for name in truth} == truth
    assert set(told) == USER_STATUS | {"invisible", "timestamp"}
    for client in (alice, watching):
        await client.hears("user-status-changed", userId="alice", invisible=True, status="online")
    await alice.ask("set-status", {"status": "invisible", "statusText": "another"})
    await watching.hears("user-status-changed", userId="alice", statusText="another")
    await alice.ask("set-status", {"status": "dnd"})
    await watching.hears("user-status-changed", userId="alice", status="dnd")
    await bob.hears("user-online", userId="alice", status="dnd")
    await tab.ask("heartbeat")
    listeners: list[Listener] = [alice, tab, watching]
    for listener in listeners:
        changes = listener.of("user-status-changed", userId="alice")
        assert [(each["status"], each["statusText"], "invisible" in each) for each in changes] == [
            ("online", "hush", True),
            ("online", "another", True),
            ("dnd", None, False),
        ]
        assert listener.of("user-offline", userId="alice") == []
    for listener in listeners[1:]:
        assert listener.of("user-online", userId="alice") == []
    assert looking_away.presence("alice") == []
    assert [name for name, _, _ in bob.presence("alice")] == ["user-online", "user-offline", "user-online"]


async def test_what_others_did_is_heard_around_one_s_own_invisibility_once_and_in_order(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(presence_flush_interval=0.3)
    alice = await Client.connect(closing, gateway.url)
    presence = gateway.gateway.presence
    await presence.set_online("bob")  # goes out at once; the next waits
    await alice.hears("user-online", userId="bob")
    await presence.set_online("carol")
    await presence.set_status("alice", "busy")
    await presence.set_status("alice", "invisible")
    await presence.set_online("dave")
    await alice.hears("user-online", userId="dave")
    await alice.ask("heartbeat")
    heard = [(name, data["userId"], data["status"]) for name, data in alice.heard if name.startswith("user-")]
    assert heard == [
        ("user-online", "bob", "online"),
        ("user-online", "carol", "online"),
        ("user-status-changed", "alice", "busy"),
        ("user-status-changed", "alice", "online"),
        ("user-online", "dave", "online"),
    ]


@pytest.mark.parametrize("node", ["same", "another"])
async def test_who_was_away_is_told_the_truth_about_themselves(
    serve: Serve, closing: AsyncExitStack, redis_url: str, node: str
) -> None:
    values = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    one = await serve(**values)
    other = one if node == "same" else await serve(**values)
    tab = await Tab.open(closing, one)
    phone = await Client.connect(closing, one.url)
    await Client.connect(closing, one.url, "bob")
    assert (await tab.event())[1]["userId"] == "bob"
    abort(tab.packets.ws)
    await phone.ask("set-status", {"status": "invisible"})
    await Client.connect(closing, one.url, "carol")
    await eventually(lambda: other.gateway.presence.status("carol").online)
    again = await tab.back(closing, other)
    assert again.pid == tab.pid
    heard = [await again.event(), await again.event()]
    assert [(name, data["userId"], data["status"], data.get("invisible")) for name, data in heard] == [
        ("user-online", "carol", "online", None),
        ("user-status-changed", "alice", "online", True),
    ]


async def test_one_who_was_invisible_from_the_first_was_never_seen(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await api(closing, gateway, "alice")
    assert (await http.call("PUT", "/presence/status", {"status": "invisible"}))[1]["invisible"] is True
    bob = await Client.connect(closing, gateway.url, "bob")
    alice = await Client.connect(closing, gateway.url)
    seen, nobody = [
        (await bob.ask("check-user-status", {"userId": user}))["data"] | {"timestamp": 0, "userId": 0}
        for user in ("alice", "nobody")
    ]
    assert seen == nobody
    own = (await alice.ask("check-user-status", {"userId": "alice"}))["data"]
    assert (own["status"], own["invisible"]) == ("online", True)
    assert (await alice.ask("set-status", {"status": "online"}))["data"]["version"] == 1
    await bob.hears("user-online", userId="alice", version=1)


async def test_one_who_is_invisible_is_still_notified_and_kicked(
    serve: Serve, closing: AsyncExitStack, redis_url: str
) -> None:
    values = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    one, other = await serve(**values), await serve(**values)
    alice = await Plain.connect(closing, one.ws_url)
    await alice.ask("set-status", {"status": "invisible"})
    await eventually(lambda: ("default", "alice") in other.gateway._view.hidden)
    await other.gateway.notify("alice", "notification", {"message": "hi"})
    assert (await alice.until("notification"))["data"] == {"message": "hi"}
    assert await other.gateway.disconnect("alice") == 1


async def test_a_status_that_is_none_is_refused_with_those_that_are(serve: Serve) -> None:
    presence = (await serve()).gateway.presence
    with pytest.raises(InvalidPayloadError, match="status takes online, away, busy, dnd, invisible; not 'bussy'"):
        await presence.set_status("alice", "bussy")
