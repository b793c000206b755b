"""Channels as a backend uses them: over HTTP and in process, on one node and on two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client
from conftest import SERVICE_KEY, Running, eventually
from redis_servers import RedisServer, fresh_prefix

Serve = Callable[..., Awaitable[Running]]
ROOM = "presence-room-1"


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def call(running: Running, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as session,
        session.request(method, running.url + path, json=body) as response,
    ):
        return response.status, await response.json()


async def test_a_backend_sees_who_is_in_which_channel_says_something_and_reads_it(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve()
    alice = await Client.connect(closing, running.url, "alice")
    assert await call(running, "GET", "/api/channels") == (200, {"channels": []})
    await alice.ask("join-channel", {"channel": ROOM})
    await alice.ask("join-channel", {"channel": "news"})
    assert (await call(running, "GET", "/api/channels"))[1]["channels"] == [
        {"channel": "news", "subscriptions": 1},
        {"channel": ROOM, "subscriptions": 1, "members": 1},
    ]
    assert (await call(running, "GET", "/api/channels?prefix=presence-"))[1]["channels"][0]["channel"] == ROOM
    assert (await call(running, "GET", f"/api/channels/{ROOM}/members"))[1]["members"] == [
        {"userId": "alice", "info": {}}
    ]
    status, said = await call(running, "POST", f"/api/channels/{ROOM}/events", {"event": "hello", "data": [1]})
    assert status == 200
    assert await call(running, "POST", f"/api/channels/{ROOM}/events", {"event": "now", "keep": False}) == (
        200,
        {"position": None},
    )
    await eventually(lambda: "now" in alice.names())
    assert [each for each in alice.heard if each[0] in {"hello", "now"}] == [("hello", [1]), ("now", None)]
    history = (await call(running, "GET", f"/api/channels/{ROOM}/history"))[1]
    assert [(each["event"], each["position"]) for each in history["history"]] == [("hello", said["position"])]
    since = (await call(running, "GET", f"/api/channels/{ROOM}/history?since={said['position']}"))[1]
    assert (since["history"], since["recovered"]) == ([], True)
    assert int(since["position"]) >= int(said["position"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/channels/bad%20name/members", None),
        ("GET", "/api/channels/news/history?limit=0", None),
        ("GET", "/api/channels/news/history?since=x", None),
        ("POST", "/api/channels/news/events", {"event": "user-online"}),
        ("POST", "/api/channels/news/events", {"data": 1}),
        ("DELETE", "/api/channels/bad%20name/members/alice", None),
    ],
)
async def test_what_is_wrong_with_a_call_is_said(serve: Serve, method: str, path: str, body: object) -> None:
    status, problem = await call(await serve(), method, path, body)
    assert (status, problem["code"]) == (400, "INVALID_PAYLOAD")


async def two(serve: Serve, redis: RedisServer, **settings: Any) -> list[Running]:
    store = {"redis_url": redis.url, "redis_prefix": fresh_prefix()}
    return [await serve(**store, **settings), await serve(**store, **settings)]


async def test_a_user_is_taken_out_of_a_channel_on_every_node_and_told(
    serve: Serve, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    here, there = await two(serve, shared_redis)
    alice = await Client.connect(closing, there.url, "alice")
    bob = await Client.connect(closing, here.url, "bob")
    for each in (alice, bob):
        assert (await each.ask("join-channel", {"channel": ROOM}))["event"] == "joined-channel"
    assert await call(here, "DELETE", f"/api/channels/{ROOM}/members/alice") == (200, {"channel": ROOM})
    await alice.hears("channel-left", channel=ROOM)
    await bob.hears("member-removed", channel=ROOM, userId="alice")
    assert (await alice.ask("leave-channel", {"channel": ROOM}))["event"] == "left-channel"
    assert [each["userId"] for each in (await alice.ask("join-channel", {"channel": ROOM}))["data"]["members"]] == [
        "alice",
        "bob",
    ]


async def test_whoever_may_not_be_in_a_channel_any_more_is_taken_out_when_that_is_asked_again(
    serve: Serve, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    banned: set[str] = set()

    async def rule(identity: Any, channel: str) -> bool | None:
        return None if channel != "private-club" else identity.user_id not in banned

    here, there = await two(serve, shared_redis, channel_auth=rule)
    alice = await Client.connect(closing, there.url, "alice")
    bob = await Client.connect(closing, there.url, "bob")
    for each in (alice, bob):
        for channel in ("private-club", "news", ROOM):
            assert (await each.ask("join-channel", {"channel": channel}))["event"] == "joined-channel"
    banned.update({"alice", "bob"})
    assert await call(here, "POST", "/api/users/alice/reauthorize") == (200, {"userId": "alice"})
    await alice.hears("channel-left", channel="private-club")
    await here.gateway.channels.say("private-club", "hello")
    await eventually(lambda: "hello" in bob.names())
    assert "hello" not in alice.names()
    assert [data["channel"] for data in alice.of("channel-left")] == ["private-club"]
    assert (await alice.ask("join-channel", {"channel": "private-club"}))["error"]["code"] == "FORBIDDEN"
