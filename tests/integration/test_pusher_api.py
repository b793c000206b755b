"""Pusher's HTTP API, asked by Pusher's own server library, and by whoever means ill."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import aiohttp
import pytest
from clients import Client, Plain
from conftest import Running, eventually
from pusher import Pusher
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus
from redis_servers import fresh_prefix, redis_server

from gateway.pusher.signature import Signer

Serve = Callable[..., Awaitable[Running]]
APP = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}
SIGNER = Signer(APP["pusher_app_key"], APP["pusher_app_secret"])


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


class Backend:
    """An application's backend, which has Pusher's library and calls it from a thread."""

    def __init__(self, running: Running, **options: Any) -> None:
        host, _, port = running.url.removeprefix("http://").partition(":")
        given = {"app_id": "42", "key": APP["pusher_app_key"], "secret": APP["pusher_app_secret"]} | options
        self.pusher = Pusher(ssl=False, host=host, port=int(port), **given)

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self.pusher, name), *args, **options)

    def close(self) -> None:
        for client in (self.pusher._pusher_client, self.pusher._authentication_client):
            client.http.session.close()


@pytest.fixture
def backend_of(closing: AsyncExitStack) -> Callable[..., Backend]:
    def make(running: Running, **options: Any) -> Backend:
        made = Backend(running, **options)
        closing.callback(made.close)
        return made

    return make


def _heard(client: Client, name: str) -> bool:
    return name in client.names()


async def joined(client: Client, channel: str) -> Any:
    answer = await client.ask("join-channel", {"channel": channel})
    assert answer["event"] == "joined-channel", answer
    return answer["data"]


def pairs(parameters: Mapping[str, str | list[str]]) -> list[tuple[str, str]]:
    """Parameters as a query has them: each of a list by itself."""
    return [
        (name, each) for name, value in parameters.items() for each in ([value] if isinstance(value, str) else value)
    ]


async def signed(
    running: Running,
    method: str,
    path: str,
    body: object = None,
    *,
    query: Mapping[str, str | list[str]] | None = None,
    at: float | None = None,
    signer: Signer = SIGNER,
    **changes: str | None,
) -> tuple[int, str]:
    """Ask as a library would, but for some changes: parameters by name, ``path_sent`` and ``body_sent``."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    parameters: dict[str, str | list[str]] = {
        "auth_key": SIGNER.key,
        "auth_timestamp": str(int(time.time() if at is None else at)),
        "auth_version": "1.0",
        **({"body_md5": hashlib.md5(raw).hexdigest()} if raw else {}),
        **(query or {}),
    }
    path_sent, body_sent = changes.pop("path_sent", None) or path, changes.pop("body_sent", None)
    parameters["auth_signature"] = signer.request_signature(method, path, pairs(parameters))
    for name, value in changes.items():
        if value is None:
            parameters.pop(name, None)
        else:
            parameters[name] = value
    sent = raw if body_sent is None else body_sent.encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, running.url + path_sent, params=pairs(parameters), data=sent or None) as response,
    ):
        return response.status, await response.text()


def event(**changes: object) -> dict[str, object]:
    return {"name": "shipped", "channel": "orders", "data": "{}"} | changes


# What a backend does


async def test_what_is_triggered_is_heard_as_json_where_it_is_json(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    backend = backend_of(running)
    alice = await Client.connect(closing, running.url, "alice")
    bob = await Plain.connect(closing, running.ws_url, "bob")
    await joined(alice, "orders")
    await joined(alice, "private-user.alice")
    assert (await bob.ask("join-channel", {"channel": "orders"}))["event"] == "joined-channel"
    assert await backend.call("trigger", ["orders", "private-user.alice"], "shipped", {"id": 7, "to": "Köln"}) == {}
    assert await backend.call("trigger", "orders", "App\\Events\\Shipped", "no JSON") == {}
    assert await backend.call("trigger", "orders", "counted", "5") == {}
    await eventually(lambda: "counted" in alice.names())
    said = [("shipped", {"id": 7, "to": "Köln"}), ("App\\Events\\Shipped", "no JSON"), ("counted", 5)]
    heard = [each for each in alice.heard if each[0] in {name for name, _data in said}]
    assert sorted(heard, key=str) == sorted([said[0], *said], key=str)  # by both of her channels
    for expected in said:
        frame = await bob.until(expected[0])
        assert frame["data"] == expected[1]


async def test_a_batch_is_told_in_its_order(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    alice = await Client.connect(closing, running.url, "alice")
    await joined(alice, "orders")
    batch = [{"channel": "orders", "name": f"step-{number}", "data": {"number": number}} for number in range(10)]
    assert await backend_of(running).call("trigger_batch", batch) == {}
    await eventually(lambda: "step-9" in alice.names())
    assert [name for name in alice.names() if name.startswith("step-")] == [f"step-{number}" for number in range(10)]


async def test_the_one_whose_request_it_was_is_not_told(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP)
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    for client in (alice, bob):
        await joined(client, "orders")
    assert await signed(running, "POST", "/apps/42/events", event(socket_id=alice.socket_id)) == (200, "{}")
    assert await signed(running, "POST", "/apps/42/events", event(name="last")) == (200, "{}")
    for client in (alice, bob):
        await eventually(partial(_heard, client, "last"))
    assert "shipped" not in alice.names()
    assert bob.names().count("shipped") == 1


async def test_what_is_known_of_channels(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    backend = backend_of(running)
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    for channel in ("orders", "presence-room-5", "presence-room-6"):
        await joined(alice, channel)
    await joined(bob, "presence-room-5")

    assert await backend.call("channels_info") == {
        "channels": {"orders": {}, "presence-room-5": {}, "presence-room-6": {}}
    }
    assert await backend.call("channels_info", "presence-room-", ["user_count"]) == {
        "channels": {"presence-room-5": {"user_count": 2}, "presence-room-6": {"user_count": 1}}
    }
    assert await backend.call("channels_info", "private-") == {"channels": {}}
    with pytest.raises(PusherBadRequest, match="presence-"):
        await backend.call("channels_info", None, ["user_count"])

    known = await backend.call("channel_info", "presence-room-5", ["user_count", "subscription_count"])
    assert known == {"occupied": True, "user_count": 2, "subscription_count": 2}
    assert await backend.call("channel_info", "nobody-here", ["subscription_count"]) == {
        "occupied": False,
        "subscription_count": 0,
    }
    with pytest.raises(PusherBadRequest, match="presence"):
        await backend.call("channel_info", "orders", ["user_count"])
    with pytest.raises(PusherBadRequest, match="info takes"):
        await backend.call("channel_info", "orders", ["everything"])

    assert await backend.call("users_info", "presence-room-5") == {"users": [{"id": "alice"}, {"id": "bob"}]}
    assert await backend.call("users_info", "presence-nobody") == {"users": []}
    odd = "presence-a@b=c,d;e.f_g"  # whatever a name may have, as it is signed
    await joined(alice, odd)
    assert await backend.call("users_info", odd) == {"users": [{"id": "alice"}]}
    assert await backend.call("channels_info", odd) == {"channels": {odd: {}}}
    with pytest.raises(PusherBadRequest, match="presence"):
        await backend.call("users_info", "orders")


async def test_an_event_can_be_answered_with_what_is_known_of_its_channels(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(**APP)
    alice = await Client.connect(closing, running.url, "alice")
    for channel in ("orders", "presence-room-5"):
        await joined(alice, channel)
    asked = event(channel=None, channels=["orders", "presence-room-5"], info="user_count,subscription_count")
    status, text = await signed(running, "POST", "/apps/42/events", asked)
    channels = {"orders": {"subscription_count": 1}, "presence-room-5": {"user_count": 1, "subscription_count": 1}}
    assert (status, json.loads(text)) == (200, {"channels": channels})
    batch = {"batch": [event(), event(channel="presence-room-5", info="user_count")]}
    status, text = await signed(running, "POST", "/apps/42/batch_events", batch)
    assert (status, json.loads(text)) == (200, {"batch": [{}, {"user_count": 1}]})


async def test_the_last_event_of_a_cache_channel(serve: Serve, backend_of: Callable[..., Backend]) -> None:
    running = await serve(**APP)
    backend = backend_of(running)
    assert await backend.call("channel_info", "cache-orders", ["cache"]) == {"occupied": False}
    await backend.call("trigger", "cache-orders", "shipped", {"id": 1})
    await backend.call("trigger", "cache-orders", "shipped", '{"id":   2}')
    cache = (await backend.call("channel_info", "cache-orders", ["cache"]))["cache"]
    assert cache["data"] == '{"id":   2}'
    assert 0 < cache["ttl"] <= 86_400
    with pytest.raises(PusherBadRequest, match="cache channel"):
        await backend.call("channel_info", "orders", ["cache"])


async def test_a_user_is_told_on_all_connections_and_nothing_waits_for_one_who_is_away(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack
) -> None:
    running = await serve(**APP)
    backend = backend_of(running)
    assert await backend.call("send_to_user", "alice", "too-early", {}) == {}
    tabs = [await Client.connect(closing, running.url, "alice") for _ in range(2)]
    bob = await Client.connect(closing, running.url, "bob")
    assert await backend.call("send_to_user", "alice", "greeting", {"text": "hello"}) == {}
    body = {"name": "farewell", "data": "bye"}
    assert await signed(running, "POST", "/apps/42/users/alice/events", body) == (200, "{}")
    for tab in tabs:
        await eventually(partial(_heard, tab, "farewell"))
        assert ("farewell", "bye") in tab.heard
        assert ("greeting", {"text": "hello"}) in tab.heard
        assert "too-early" not in tab.names()
    assert not {"greeting", "farewell"} & set(bob.names())


async def test_a_users_connections_are_ended(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack
) -> None:
    running = await serve(**APP)
    alice = await Client.connect(closing, running.url, "alice")
    bob = await Client.connect(closing, running.url, "bob")
    assert await backend_of(running).call("terminate_user_connections", "alice") == {}  # without /apps/42 before it
    await alice.closed()
    assert await signed(running, "POST", "/apps/42/users/bob/terminate_connections", {}) == (200, "{}")
    await bob.closed()
    assert running.gateway.presence.online_users() == []


async def test_every_node_tells_what_one_was_asked_to(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack, redis_url: str
) -> None:
    cluster = APP | {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    one, other = await serve(**cluster), await serve(**cluster)
    alice = await Client.connect(closing, other.url, "alice")
    await joined(alice, "presence-room-5")
    backend = backend_of(one)
    await backend.call("trigger", "presence-room-5", "shipped", {"id": 1})
    await backend.call("send_to_user", "alice", "greeting", {})
    await eventually(lambda: {"shipped", "greeting"} <= set(alice.names()))
    assert await backend.call("users_info", "presence-room-5") == {"users": [{"id": "alice"}]}
    await backend.call("terminate_user_connections", "alice")
    await alice.closed()


async def test_while_the_store_is_away_nothing_is_said_and_reads_go_on(
    serve: Serve, backend_of: Callable[..., Backend], closing: AsyncExitStack
) -> None:
    async with redis_server() as server:
        running = await serve(**APP, redis_url=server.url)
        backend = backend_of(running, timeout=30)
        alice = await Client.connect(closing, running.url, "alice")
        await joined(alice, "presence-room-5")
        await server.kill()
        with pytest.raises(PusherBadStatus, match="503"):
            await backend.call("trigger", "presence-room-5", "shipped", {})
        assert await backend.call("users_info", "presence-room-5") == {"users": [{"id": "alice"}]}
        await server.start()

        async def triggered() -> bool:
            try:
                await backend.call("trigger", "presence-room-5", "shipped", {})
            except PusherBadStatus:
                return False
            return True

        for _ in range(300):
            if await triggered():
                break
            await asyncio.sleep(0.1)
        await eventually(partial(_heard, alice, "shipped"))


# Who else asks


async def test_another_secret_another_key_and_another_application(
    serve: Serve, backend_of: Callable[..., Backend]
) -> None:
    running = await serve(**APP)
    with pytest.raises(PusherBadAuth):
        await backend_of(running, secret="guessed").call("trigger", "orders", "shipped", {})
    with pytest.raises(PusherBadAuth):
        await backend_of(running, key="another").call("trigger", "orders", "shipped", {})
    with pytest.raises(PusherBadStatus, match="404"):
        await backend_of(running, app_id="43").call("trigger", "orders", "shipped", {})


@pytest.mark.parametrize("off", [-590, 590])
async def test_a_request_is_good_within_the_tolerance_of_the_clock(serve: Serve, off: int) -> None:
    running = await serve(**APP)
    assert (await signed(running, "POST", "/apps/42/events", event(), at=time.time() + off))[0] == 200


@pytest.mark.parametrize("off", [-610, 610, -(10**9)])
async def test_a_replay_outside_it_is_refused(serve: Serve, closing: AsyncExitStack, off: int) -> None:
    running = await serve(**APP)
    alice = await Client.connect(closing, running.url, "alice")
    await joined(alice, "orders")
    status, text = await signed(running, "POST", "/apps/42/events", event(), at=time.time() + off)
    assert status == 401
    assert "auth_timestamp" in text
    assert (await signed(running, "POST", "/apps/42/events", event(name="last")))[0] == 200
    await eventually(lambda: "last" in alice.names())
    assert "shipped" not in alice.names()


@pytest.mark.parametrize(
    "changes",
    [
        {"auth_signature": None},
        {"auth_signature": ""},
        {"auth_signature": "0" * 64},
        {"auth_signature": "\u00e9" * 64},
        {"auth_signature": "0" * 5000},
        {"auth_key": None},
        {"auth_version": None},
        {"auth_version": "2.0"},
        {"auth_timestamp": None},
        {"auth_timestamp": "soon"},
        {"body_md5": None},
        {"body_md5": "0" * 32},
        {"body_sent": json.dumps(event(channel="private-admin"))},
        {"path_sent": "/apps/42/batch_events"},
        {"info": "user_count"},
    ],
)
async def test_a_request_that_is_not_what_was_signed_is_refused(serve: Serve, changes: dict[str, Any]) -> None:
    running = await serve(**APP)
    status, _text = await signed(running, "POST", "/apps/42/events", event(), **changes)
    assert status == 401


@pytest.mark.parametrize(
    "body",
    [
        event(name=""),
        event(name="n" * 201),
        event(name="pusher:subscribe"),
        event(name="pusher_internal:member_added"),
        event(name="user-online"),
        event(name="disconnect"),
        event(name="new\nline"),
        event(name=None),
        event(data=None),
        event(data={"not": "a text"}),
        event(data="\ud800"),
        event(channel=None),
        event(channel=""),
        event(channel="c" * 165),
        event(channel="no spaces"),
        event(channel="orders\n"),
        event(channel="#server-to-user-"),
        event(channel="#server-to-user-" + "u" * 129),
        event(channel=None, channels=[]),
        event(channel=None, channels=[f"orders-{number}" for number in range(101)]),
        event(channels="orders"),
        event(socket_id=""),
        event(socket_id="x" * 1000),
        event(socket_id=7),
        event(info="everything"),
        [],
        None,
        7,
    ],
)
async def test_a_bad_event_says_what_is_wrong_with_it(serve: Serve, body: object) -> None:
    running = await serve(**APP)
    raw = json.dumps(body).encode()
    status, text = await signed(running, "POST", "/apps/42/events", raw)
    assert status == 400
    assert len(text) > 20


# Parameters in the query


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ({"name": "shipped", "data": '{"id":7}', "channels[]": ["orders", "presence-room-5"]}, None),
        ({"name": "shipped", "data": '{"id":7}', "channels[]": ["orders"], "channel": "presence-room-5"}, None),
        ({"channels[]": ["orders", "presence-room-5"]}, {"name": "shipped", "data": '{"id":7}'}),
        (
            {"name": "shipped", "channels[]": ["orders", "presence-room-5"]},  # in both, as old libraries have it
            {"name": "shipped", "data": '{"id":7}', "channels": ["orders", "presence-room-5"]},
        ),
    ],
)
async def test_what_a_body_has_may_stand_in_the_query(
    serve: Serve, closing: AsyncExitStack, query: dict[str, Any], body: object
) -> None:
    running = await serve(**APP)
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    for channel in ("orders", "presence-room-5"):
        await joined(alice, channel)
    await joined(bob, "orders")
    asked = query | {"socket_id": bob.socket_id or "", "info": "user_count"}
    status, text = await signed(running, "POST", "/apps/42/events", body, query=asked)
    assert (status, json.loads(text)) == (200, {"channels": {"orders": {}, "presence-room-5": {"user_count": 1}}})
    assert await signed(running, "POST", "/apps/42/events", event(name="last")) == (200, "{}")
    for client in (alice, bob):
        await eventually(partial(_heard, client, "last"))
    assert [each for each in alice.heard if each[0] == "shipped"] == [("shipped", {"id": 7})] * 2
    assert "shipped" not in bob.names()


async def test_an_event_of_a_user_may_stand_in_the_query(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP)
    alice = await Client.connect(closing, running.url, "alice")
    query = {"name": "greeting", "data": '"hello"'}
    assert await signed(running, "POST", "/apps/42/users/alice/events", query=query) == (200, "{}")
    await eventually(lambda: ("greeting", "hello") in alice.heard)


@pytest.mark.parametrize(
    ("query", "body", "says"),
    [
        ({"name": "shipped", "channel": "orders"}, None, "data"),
        ({"name": "shipped", "data": "{}", "channel": "no spaces"}, None, "channel's name"),
        ({"name": "shipped", "data": "{}", "channels": "orders"}, None, "channels[]=…&channels[]=…"),
        ({"name": "shipped", "data": "{}", "channels[]": ["orders"] * 2 + ["c d"]}, None, "channel's name"),
        ({"name": "other"}, event(), "another name than the body"),
        ({"channels[]": ["orders"]}, event(channel=None, channels=["orders", "more"]), "another channels than"),
        ({"name": "shipped"}, [], "body"),
        ({"name": "pusher:error", "data": "{}", "channel": "orders"}, None, "only the server"),
    ],
)
async def test_a_query_that_is_wrong_is_refused(serve: Serve, query: dict[str, Any], body: object, says: str) -> None:
    running = await serve(**APP)
    status, text = await signed(running, "POST", "/apps/42/events", body, query=query)
    assert (status, says in text) == (400, True), text


async def test_a_parameter_that_is_added_to_a_query_makes_another_signature(serve: Serve) -> None:
    running = await serve(**APP)
    query: dict[str, Any] = {"name": "shipped", "data": "{}", "channels[]": ["orders"]}
    changed: dict[str, Any] = {"channels[]": ["orders", "private-admin"]}
    assert (await signed(running, "POST", "/apps/42/events", query=query))[0] == 200
    assert (await signed(running, "POST", "/apps/42/events", query=query, **changed))[0] == 401
    doubled: dict[str, Any] = {"name": ["shipped", "shipped"], "data": "{}", "channel": "orders"}
    status, text = await signed(running, "POST", "/apps/42/events", query=doubled)
    assert (status, "'name' twice" in text) == (401, True)


async def test_an_event_as_libraries_of_before_2012_send_it(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP)
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    for client in (alice, bob):
        await joined(client, "orders")
    path = "/apps/42/channels/orders/events"
    query = {"name": "shipped", "socket_id": bob.socket_id or ""}
    assert await signed(running, "POST", path, b'{"id": 7}', query=query) == (202, "{}")
    assert await signed(running, "POST", path, b"no JSON", query={"name": "last"}) == (202, "{}")
    for client in (alice, bob):
        await eventually(partial(_heard, client, "last"))
    assert ("shipped", {"id": 7}) in alice.heard
    assert ("last", "no JSON") in alice.heard
    assert "shipped" not in bob.names()
    for wrong, sent in (({}, b"{}"), ({"name": "a"}, b"\xff"), ({"name": "pusher:error"}, b"{}")):
        assert (await signed(running, "POST", path, sent, query=wrong))[0] == 400
    assert (await signed(running, "POST", path, b"x" * 10_241, query={"name": "a"}))[0] == 413


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 50_000, b'{"batch": 1}', b'{"batch": [{}]}'])
async def test_a_body_that_is_none(serve: Serve, raw: bytes) -> None:
    running = await serve(**APP)
    for path in ("/apps/42/events", "/apps/42/batch_events", "/apps/42/users/alice/events"):
        assert (await signed(running, "POST", path, raw))[0] == 400


async def test_nothing_of_a_batch_is_said_that_has_a_bad_event(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP)
    alice = await Client.connect(closing, running.url, "alice")
    await joined(alice, "orders")
    for batch in ([event(), event(channel="no spaces")], [event()] * 11, [event(), event(channels=["a"])]):
        assert (await signed(running, "POST", "/apps/42/batch_events", {"batch": batch}))[0] == 400
    assert (await signed(running, "POST", "/apps/42/events", event(name="last")))[0] == 200
    await eventually(lambda: "last" in alice.names())
    assert "shipped" not in alice.names()


async def test_sizes(serve: Serve) -> None:
    running = await serve(**APP)
    assert (await signed(running, "POST", "/apps/42/events", event(data="x" * 10_240)))[0] == 200
    status, text = await signed(running, "POST", "/apps/42/events", event(data="x" * 10_241))
    assert (status, "10240" in text) == (413, True)
    status, _text = await signed(running, "POST", "/apps/42/events", event(data="ü" * 5_121))
    assert status == 413  # bytes, not characters
    quotes = [event(data='"' * 10_240)] * 10
    assert (await signed(running, "POST", "/apps/42/batch_events", {"batch": quotes}))[0] == 200
    assert (await signed(running, "POST", "/apps/42/events", b" " * 400_000))[0] == 413
    larger = await serve(**APP, pusher_max_data=20_000)
    assert (await signed(larger, "POST", "/apps/42/events", event(data="x" * 20_000)))[0] == 200


async def test_without_an_application_there_is_no_api(serve: Serve) -> None:
    running = await serve()
    assert (await signed(running, "POST", "/apps/42/events", event()))[0] == 404
