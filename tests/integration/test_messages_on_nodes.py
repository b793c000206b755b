"""Messages between people on two nodes of one Redis; over HTTP, and from code in the same process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client
from conftest import SERVICE_KEY, STEP, Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix, redis_server

from gateway.channels.typists import EXPIRES
from gateway.errors import ForbiddenError, InvalidPayloadError

Pair = tuple[Running, Running]


@pytest.fixture(params=["memory", "redis"])
async def nodes(request: pytest.FixtureRequest, serve: Any, redis_url: str) -> Pair:
    """Two nodes of one gateway; without Redis, one that is both."""
    if request.param == "memory":
        one = await serve()
        return one, one
    settings = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    return await serve(**settings), await serve(**settings)


async def post(url: str, path: str, payload: object = None, **headers: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession(url) as session, session.post(path, json=payload, headers=headers) as response:
        return response.status, await response.json(content_type=None)


def bearer(user: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(user, **claims)}"}


async def test_two_nodes_tell_one_conversation_once_and_in_one_order(nodes: Pair, closing: AsyncExitStack) -> None:
    one, two = (node.url for node in nodes)
    alice, tab = await Client.connect(closing, one, "alice"), await Client.connect(closing, two, "alice")
    bob, other = await Client.connect(closing, two, "bob"), await Client.connect(closing, one, "bob")
    joined = await Client.connect(closing, one, "bob")
    await joined.ask("join-conversation", {"conversationId": "alice-bob"})
    for number in range(10):
        sender, to = ((alice, "bob"), (bob, "alice"))[number % 2]
        sent = await sender.ask("send-message", {"recipientId": to, "content": str(number), "clientId": str(number)})
        again = await sender.ask("send-message", {"recipientId": to, "content": "x", "clientId": str(number)})
        assert sent == again
    await eventually(lambda: all(len(each.of("new-message")) == 10 for each in (tab, other, joined)))
    await eventually(lambda: len(alice.of("new-message")) == len(bob.of("new-message")) == 5)
    orders = [[each["content"] for each in client.of("new-message")] for client in (tab, other, joined)]
    assert orders[0] == orders[1] == orders[2] == [str(number) for number in range(10)]

    ids = [each["id"] for each in joined.of("new-message", sender_id="alice")]
    counts = await asyncio.gather(*(each.ask("mark-read", {"userId": "alice"}) for each in (bob, other, joined)))
    assert sum(each["data"]["count"] for each in counts) == 5
    await eventually(lambda: len(alice.of("message-read")) == len(tab.of("message-read")) == 5)
    await asyncio.sleep(0.1)
    assert [each["message_id"] for each in tab.of("message-read")] == ids
    history = (await alice.ask("join-conversation", {"conversationId": "alice-bob", "since": "0"}))["data"]["history"]
    assert [each["data"]["is_read"] for each in history] == [number % 2 == 0 for number in range(10)]

    await joined.ask("typing", {"recipientId": "alice", "isTyping": True})
    await alice.hears("user-typing", user_id="bob", is_typing=True)
    await joined.leave()
    await alice.hears("user-typing", user_id="bob", is_typing=False)


async def test_http_sends_marks_and_types(nodes: Pair, closing: AsyncExitStack) -> None:
    one, two = (node.url for node in nodes)
    alice, bob = await Client.connect(closing, one, "alice"), await Client.connect(closing, two, "bob")
    await bob.ask("join-conversation", {"conversationId": "alice-bob"})
    status, typed = await post(one, "/api/messages/typing/bob", **bearer("alice", name="Alice"))
    assert (status, typed) == (200, {})
    await bob.hears("user-typing", user_name="Alice", is_typing=True)
    body = {"recipientId": "bob", "content": "hi", "clientId": "1"}
    status, sent = await post(one, "/api/messages", body, **bearer("alice"))
    assert status == 200
    assert await bob.hears("new-message") == sent["message"]
    await bob.hears("user-typing", is_typing=False)
    assert await alice.hears("new-message") == sent["message"], "all of the sender's connections hear it"
    assert await post(two, "/api/messages", body, **bearer("alice")) == (200, sent)
    assert await post(two, "/api/messages/mark-read/alice", **bearer("bob")) == (200, {"count": 1})
    await alice.hears("message-read", message_id=sent["message"]["id"], read_by="bob")

    for payload in ({"content": "x"}, {"recipientId": "bob", "content": "x" * 10_001}):
        status, error = await post(one, "/api/messages", payload, **bearer("alice"))
        assert (status, error["code"]) == (400, "INVALID_PAYLOAD")
    status, error = await post(one, "/api/messages", {"channel": "private-x", "content": "x"}, **bearer("alice"))
    assert (status, error["code"]) == (403, "FORBIDDEN")
    assert len(bob.of("new-message")) == 1


async def test_a_backend_sends_in_the_name_of_a_user(nodes: Pair, closing: AsyncExitStack) -> None:
    one, two = (node.url for node in nodes)
    key = {"X-API-Key": SERVICE_KEY}
    alice, bob = await Client.connect(closing, one, "alice"), await Client.connect(closing, two, "bob")
    await eventually(lambda: nodes[1].gateway.presence.status("alice").online)
    body = {"recipientId": "bob", "content": "hi", "clientId": "1"}
    status, sent = await post(two, "/api/messages", body | {"senderId": "alice"}, **key)
    message = sent["message"]
    assert (status, message["sender_id"], message["sender"]["id"]) == (200, "alice", "alice")
    assert await bob.hears("new-message") == await alice.hears("new-message") == message
    # It is the user's own message: also under the clientId, and for whoever has read it.
    assert await post(one, "/api/messages", body, **bearer("alice")) == (200, sent)
    assert (await bob.ask("mark-read", {"messageId": message["id"]}))["data"] == {"count": 1}
    await alice.hears("message-read", message_id=message["id"])
    assert (await post(one, "/api/messages", body | {"senderId": "alice"}, **bearer("alice")))[0] == 200
    elsewhere = await post(one, "/api/messages?tenant=other", body | {"senderId": "alice"}, **key)
    assert (elsewhere[0], elsewhere[1]["message"]["id"] != message["id"]) == (200, True)
    status, room = await post(
        one, "/api/messages", {"senderId": "carol", "channel": "private-x", "content": "x"}, **key
    )
    assert (status, room["message"]["sender_name"]) == (200, "carol"), "whom it lets in is its own to say"
    for payload, headers, code in (
        (body, key, (400, "INVALID_PAYLOAD")),
        (body | {"senderId": ""}, key, (400, "INVALID_PAYLOAD")),
        (body | {"senderId": "bob"}, bearer("alice"), (403, "FORBIDDEN")),
    ):
        status, error = await post(one, "/api/messages", payload, **headers)
        assert ((status, error["code"]), "senderId" in error["detail"]) == (code, True), error
    for path in ("/api/messages/mark-read/bob", "/api/messages/typing/bob"):
        status, error = await post(one, path, **key)
        assert (status, error["code"]) == (403, "FORBIDDEN")
        assert "a user's token" in error["detail"]
    assert [len(each.of("new-message")) for each in (alice, bob)] == [1, 1]


async def test_a_backend_tells_a_room_what_happened(nodes: Pair, closing: AsyncExitStack) -> None:
    one, two = nodes
    bob = await Client.connect(closing, two.url, "bob")
    await bob.ask("join-channel", {"channel": "room-5"})
    body = {"action": "joined", "userName": "Ann", "role": "host", "description": "Ann came in"}
    status, answer = await post(one.url, "/api/rooms/5/activity", body, **{"X-API-Key": SERVICE_KEY})
    assert status == 200
    told = await bob.hears("new-activity")
    assert told == answer["activity"]
    timestamp = told.pop("timestamp")
    assert told == {
        "room_id": "5",
        "action": "joined",
        "user_name": "Ann",
        "role": "host",
        "description": "Ann came in",
    }
    assert timestamp
    await one.gateway.channels.activity("5", "left", "Ann")
    assert (await bob.hears("new-activity", action="left"))["role"] is None
    assert (await post(one.url, "/api/rooms/5/activity", body, **bearer("bob")))[0] == 403


async def test_code_in_the_process_says_sends_and_reads(nodes: Pair, closing: AsyncExitStack) -> None:
    one, two = nodes
    channels = one.gateway.channels
    bob = await Client.connect(closing, two.url, auth={"token": make_token("bob", name="Bob")})
    await bob.ask("join-channel", {"channel": "presence-room-5"})
    await bob.ask("join-conversation", {"conversationId": "alice-bob"})
    await channels.say("presence-room-5", "order.shipped", {"id": 5})
    assert await bob.hears("order.shipped") == {"id": 5}
    await channels.say("private-user.bob", "for-bob", {"n": 1})
    assert await bob.hears("for-bob") == {"n": 1}
    message = await channels.send_message("alice", "hello", recipient="bob", client_id="1")
    assert await bob.hears("new-message") == message
    assert await channels.send_message("alice", "hello", recipient="bob", client_id="1") == message
    await channels.typing("alice", recipient="bob")
    await bob.hears("user-typing", user_name="alice")
    assert await channels.mark_read("bob", message_id=message["id"]) == 1
    await channels.send_message("bob", "mine", channel="presence-room-5")
    assert (await bob.hears("new-message", room_id="5"))["sender_name"] == "Bob", "as his token says"
    history = await channels.history("private-conversation.alice-bob")
    assert [b'"is_read":true' in bytes(each.data) for each in history.events] == [True]
    await eventually(lambda: [each.user_id for each in channels.members("presence-room-5")] == ["bob"])
    names = ["presence-room-5", "private-conversation.alice-bob"]
    await eventually(lambda: [each.channel for each in channels.occupied()] == names)
    assert await two.gateway.channels.remove("presence-room-5", "bob") == 1
    await eventually(lambda: [each.channel for each in channels.occupied("presence-")] == [])
    for wrong in (
        channels.say("a b", "x"),
        channels.say("room-5", "user-online"),
        channels.say("room-5", ""),
        channels.send_message("alice", "x"),
        channels.send_message("alice", "", recipient="bob"),
        channels.send_message("", "x", recipient="bob"),
        channels.mark_read("bob"),
        channels.history("room-5", limit=0),
        channels.activity("a b", "x", "y"),
        channels.typing("alice", recipient="bob", channel="room-1"),
    ):
        with pytest.raises(InvalidPayloadError):
            await wrong


async def test_code_in_the_process_keeps_to_who_may_write_to_whom(serve: Any) -> None:
    gateway = await serve(can_message=lambda sender, recipient: sender == "bob")
    with pytest.raises(ForbiddenError):
        await gateway.gateway.channels.send_message("alice", "x", recipient="bob")
    assert (await gateway.gateway.channels.send_message("bob", "x", recipient="alice"))["content"] == "x"


@pytest.fixture
async def own_redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


async def test_a_message_that_an_outage_swallowed_the_answer_of_is_sent_once(
    serve: Callable[..., Awaitable[Running]], own_redis: RedisServer, closing: AsyncExitStack
) -> None:
    settings: dict[str, Any] = {"redis_url": own_redis.url, "redis_prefix": fresh_prefix()}
    one, two = await serve(**settings), await serve(**settings)
    alice, bob = await Client.connect(closing, one.url, "alice"), await Client.connect(closing, two.url, "bob")
    message = {"recipientId": "bob", "content": "hello", "clientId": "1"}
    first = (await alice.ask("send-message", message))["data"]["message"]
    await own_redis.pause()
    failed = await alice.ask("send-message", message | {"clientId": "2"})
    assert failed["error"]["code"] == "UNAVAILABLE"
    failed = await alice.ask("mark-read", {"userId": "bob"})
    assert failed["error"]["code"] == "UNAVAILABLE"
    await own_redis.resume()

    async def again(client: Client, client_id: str) -> Any:
        async with asyncio.timeout(STEP):
            while True:
                answer = await client.ask("send-message", message | {"clientId": client_id})
                if "data" in answer:
                    return answer["data"]["message"]
                await asyncio.sleep(0.1)

    tab = await Client.connect(closing, two.url, "alice")
    second = await again(tab, "2")
    assert await again(tab, "1") == first
    assert await again(alice, "2") == second
    await eventually(lambda: len(bob.of("new-message")) == 2)
    await asyncio.sleep(0.2)
    assert [each["id"] for each in bob.of("new-message")] == [first["id"], second["id"]]


async def test_who_types_on_a_node_that_is_killed_types_no_more(
    serve: Callable[..., Awaitable[Running]], spawn: Any, redis_url: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    dies, other = await asyncio.gather(
        spawn(REDIS_URL=redis_url, REDIS_PREFIX=prefix), serve(redis_url=redis_url, redis_prefix=prefix)
    )
    alice, bob = await Client.connect(closing, dies.url, "alice"), await Client.connect(closing, other.url, "bob")
    await bob.ask("join-conversation", {"conversationId": "alice-bob"})
    await alice.ask("typing", {"recipientId": "bob", "isTyping": True})
    await bob.hears("user-typing", is_typing=True)
    await dies.stop(signal.SIGKILL)
    await eventually(lambda: bob.of("user-typing", is_typing=False), within=EXPIRES + STEP)
    assert [each["is_typing"] for each in bob.of("user-typing")] == [True, False]
