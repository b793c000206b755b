"""Messages between people, over every native door: sent, heard once, read, typed; refused, limited, said again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from clients import Client, Plain, is_timestamp
from conftest import eventually, make_token
from redis_servers import RedisServer, fresh_prefix

from gateway.channels.names import user_channel

DIRECT = {"id", "content", "sender_id", "recipient_id", "is_read", "created_at", "sender"}
ROOM = {"id", "room_id", "sender_role", "sender_name", "message", "type", "created_at"}


async def person(closing: AsyncExitStack, url: str, user: str, **claims: Any) -> Client:
    return await Client.connect(closing, url, auth={"token": make_token(user, **claims)})


async def send(client: Client | Plain, content: str = "hello", **to: str) -> Any:
    answer = await client.ask("send-message", {"content": content, **to})
    assert answer["event"] == "message-sent", answer
    return answer["data"]["message"]


async def settled(*clients: Client) -> None:
    """What was said before has been heard when this returns."""
    for client in clients:
        await client.ask("heartbeat")
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_a_message_reaches_every_connection_of_both_once(
    serve: Any, closing: AsyncExitStack, engine: str
) -> None:
    url = (await serve(gateway_engine=engine)).url
    alice = await person(closing, url, "alice", name="Alice", role="admin", avatar="a.png")
    other_tab = await person(closing, url, "alice")
    bob, joined = await person(closing, url, "bob"), await person(closing, url, "bob")
    both = await person(closing, url, "bob")
    carol = await person(closing, url, "carol")
    await joined.ask("join-conversation", {"conversationId": "bob-alice"})
    await both.ask("join-conversation", {"conversationId": "alice-bob"})
    await both.ask("join-channel", {"channel": "private-user.bob"})

    message = await send(alice, "hello", recipientId="bob")
    assert set(message) == DIRECT
    assert is_timestamp(message["created_at"])
    assert {name: message[name] for name in DIRECT - {"id", "created_at"}} == {
        "content": "hello",
        "sender_id": "alice",
        "recipient_id": "bob",
        "is_read": False,
        "sender": {"id": "alice", "name": "Alice", "avatar": "a.png", "role": "admin"},
    }
    for client in (bob, joined, both, other_tab):
        assert await client.hears("new-message") == message
    await settled(alice, other_tab, bob, joined, both, carol)
    heard = [len(each.of("new-message")) for each in (bob, joined, both, other_tab, alice, carol)]
    assert heard == [1, 1, 1, 1, 0, 0]


async def test_a_conversation_a_channel_of_it_and_the_recipient_are_one_place(
    serve: Any, closing: AsyncExitStack
) -> None:
    url = (await serve()).url
    alice, bob = await person(closing, url, "7"), await person(closing, url, "12")
    for to in (
        {"recipientId": "12"},
        {"conversationId": "12-7"},
        {"conversationId": "7-12"},
        {"channel": "private-conversation.12-7"},
        {"channel": "private-user.12"},
    ):
        await send(alice, str(to), **to)
    await eventually(lambda: len(bob.of("new-message")) == 5)
    history = (await bob.ask("join-conversation", {"conversationId": "12-7", "since": "0"}))["data"]
    assert history["channel"] == "private-conversation.7-12"
    assert [each["data"] for each in history["history"]] == bob.of("new-message")
    assert {each["event"] for each in history["history"]} == {"new-message"}


async def test_a_plain_websocket_sends_and_hears_the_same(serve: Any, closing: AsyncExitStack) -> None:
    running = await serve()
    alice = await Plain.connect(closing, running.ws_url, "alice")
    bob = await Plain.connect(closing, running.ws_url, "bob")
    message = await send(alice, recipientId="bob")
    assert (await bob.until("new-message"))["data"] == message
    assert (await bob.ask("mark-read", {"userId": "alice"}))["data"] == {"count": 1}
    read = (await alice.until("message-read"))["data"]
    assert (read["message_id"], read["read_by"]) == (message["id"], "bob")
    await bob.ask("join-conversation", {"conversationId": "alice-bob"})
    await alice.ask("typing", {"recipientId": "bob", "isTyping": True})
    assert (await bob.until("user-typing"))["data"]["is_typing"] is True
    await alice.ws.close()
    assert (await bob.until("user-typing"))["data"]["is_typing"] is False


async def test_a_room_hears_messages_as_rooms_do(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, bob = await person(closing, url, "alice", name="Alice", role="host"), await person(closing, url, "bob")
    for channel, room_id in (("room-5", "5"), ("presence-room-6", "6"), ("lobby", "lobby")):
        await bob.ask("join-channel", {"channel": channel})
        message = await send(alice, "hi all", channel=channel)
        assert set(message) == ROOM
        assert await bob.hears("new-message", room_id=room_id) == message
        expected = {"sender_role": "host", "sender_name": "Alice", "message": "hi all", "type": "text"}
        assert expected.items() <= message.items()
    refused = await alice.ask("send-message", {"channel": "private-other", "content": "x"})
    assert refused["error"]["code"] == "FORBIDDEN"
    refused = await alice.ask("send-message", {"conversationId": "bob-carol", "content": "x"})
    assert refused["error"]["code"] == "FORBIDDEN"
    assert len(bob.of("new-message")) == 3


async def test_a_message_sent_again_is_the_first_one(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, bob, carol = [await person(closing, url, user) for user in ("alice", "bob", "carol")]
    first = await send(alice, "once", recipientId="bob", clientId="1")
    assert await send(alice, "once", recipientId="bob", clientId="1") == first
    assert await send(alice, "twice", recipientId="carol", clientId="1") == first
    mine = await send(carol, "mine", recipientId="bob", clientId="1")
    assert mine["id"] != first["id"], "each has names of their own"
    await settled(bob, carol)
    assert [each["content"] for each in bob.of("new-message")] == ["once", "mine"]
    assert carol.of("new-message", content="twice") == []
    assert (await carol.ask("mark-read", {"userId": "alice"}))["data"] == {"count": 0}
    assert (await bob.ask("mark-read", {"userId": "alice"}))["data"] == {"count": 1}


async def test_only_the_recipient_marks_messages_as_read_and_each_once(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, bob, carol = [await person(closing, url, user) for user in ("alice", "bob", "carol")]
    bobs_tab = await person(closing, url, "bob")
    messages = [await send(alice, content, recipientId="bob") for content in "abc"]
    theirs = await send(carol, recipientId="bob")
    first = messages[0]["id"]
    for nobody in (alice, carol):
        assert (await nobody.ask("mark-read", {"messageId": first}))["data"] == {"count": 0}
    assert (await bob.ask("mark-read", {"messageId": first}))["data"] == {"count": 1}
    assert (await bob.ask("mark-read", {"messageId": first}))["data"] == {"count": 0}
    assert (await bob.ask("mark-read", {"userId": "alice"}))["data"] == {"count": 2}
    await eventually(lambda: len(alice.of("message-read")) == 3)
    await settled(alice, bob, bobs_tab, carol)
    assert [each["message_id"] for each in alice.of("message-read")] == [each["id"] for each in messages]
    assert all(set(each) == {"message_id", "read_by", "read_at"} for each in alice.of("message-read"))
    assert len(bobs_tab.of("message-read")) == 3, "the reader's other tabs know, too"
    assert carol.of("message-read") == []
    history = (await alice.ask("join-conversation", {"conversationId": "alice-bob", "since": "0"}))["data"]["history"]
    assert [each["data"]["is_read"] for each in history] == [True, True, True]
    assert (await bob.ask("mark-read", {"messageId": theirs["id"]}))["data"] == {"count": 1}


async def test_typing_is_told_and_ends_with_a_message_or_the_connection(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, bob = await person(closing, url, "alice", name="Alice"), await person(closing, url, "bob")
    for client in (alice, bob):
        await client.ask("join-conversation", {"conversationId": "alice-bob"})

    def told() -> list[bool]:
        return [each["is_typing"] for each in bob.of("user-typing")]

    for _ in range(3):
        typing = {"recipientId": "bob", "isTyping": True}
        assert await alice.ask("typing", typing) == {"event": "typing-sent", "data": {}}
    event = await bob.hears("user-typing")
    assert {"user_id": "alice", "user_name": "Alice", "is_typing": True}.items() <= event.items()
    assert is_timestamp(event["timestamp"])
    await send(alice, recipientId="bob")
    await bob.hears("user-typing", is_typing=False)
    assert told() == [True, False]
    await alice.ask("typing", {"conversationId": "alice-bob", "isTyping": False})
    await alice.ask("typing", {"conversationId": "alice-bob", "isTyping": True})
    await eventually(lambda: told() == [True, False, True])
    alice.vanish()
    await eventually(lambda: told() == [True, False, True, False])
    assert alice.of("user-typing") == []
    history = (await bob.ask("join-conversation", {"conversationId": "alice-bob", "since": "0"}))["data"]["history"]
    assert [each["event"] for each in history] == ["new-message"], "that somebody typed is not kept"


async def test_whoever_may_not_be_written_to_is_as_one_who_is_not_there(serve: Any, closing: AsyncExitStack) -> None:
    asked: list[tuple[str, str]] = []

    async def can_message(sender: str, recipient: str) -> bool:
        asked.append((sender, recipient))
        return recipient != "carol"

    hidden = {("alice", "nobody"), ("alice", "dave"), ("bob", "alice")}
    gateway = await serve(visibility=lambda viewer, user: (viewer, user) not in hidden, can_message=can_message)
    alice, bob, carol = [await person(closing, gateway.url, user) for user in ("alice", "bob", "carol")]
    refused = [
        await alice.ask(event, {"recipientId": user, **fields})
        for user in ("nobody", "dave", "carol", "bob")
        for event, fields in (("send-message", {"content": "x"}), ("typing", {"isTyping": True}))
    ]
    assert {str(each["error"]) for each in refused} == {str(refused[0]["error"])}
    assert refused[0]["error"]["code"] == "FORBIDDEN"
    assert {each for each in asked if each[0] == "alice"} == {
        ("alice", user) for user in ("nobody", "dave", "carol", "bob")
    }, "the rule is asked whatever the other says"
    assert (await carol.ask("send-message", {"recipientId": "bob", "content": "x"}))["event"] == "message-sent"
    await settled(bob, carol)
    assert [each["sender_id"] for each in bob.of("new-message")] == ["carol"]
    assert (await bob.ask("mark-read", {"userId": "carol"}))["data"] == {"count": 1}
    await settled(carol)
    assert carol.of("message-read") == [], "bob may not write to her, also not that he has read it"


async def test_what_a_rule_breaks_on_is_refused(serve: Any, closing: AsyncExitStack) -> None:
    def broken(sender: str, recipient: str, *, tenant: str) -> bool:
        assert tenant == "default"
        raise RuntimeError(sender)

    alice = await person(closing, (await serve(can_message=broken)).url, "alice")
    refused = await alice.ask("send-message", {"recipientId": "bob", "content": "x"})
    assert refused["error"]["code"] == "FORBIDDEN"


async def test_a_user_sends_so_many_messages_and_no_more(serve: Any, closing: AsyncExitStack) -> None:
    gateway = await serve(rate_limit_messages="2/min")
    alice, tab = await person(closing, gateway.url, "alice"), await person(closing, gateway.url, "alice")
    bob = await person(closing, gateway.url, "bob")
    await send(alice, recipientId="bob")
    await send(tab, recipientId="bob")
    for event, fields in (("send-message", {"content": "x"}), ("typing", {"isTyping": True})):
        if event == "typing":
            for _ in range(2):
                assert (await alice.ask(event, {"recipientId": "bob", **fields}))["event"] == "typing-sent"
        error = (await alice.ask(event, {"recipientId": "bob", **fields}))["error"]
        assert error["code"] == "RATE_LIMITED"
        assert 20 < error["retryAfter"] <= 30
    await send(bob, recipientId="alice")
    refused = gateway.gateway._connections.quotas.refused
    assert (refused["messages_per_user"], refused["typing_per_user"]) == (1, 1)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("send-message", {"recipientId": "bob"}),
        ("send-message", {"content": "x"}),
        ("send-message", {"recipientId": "bob", "channel": "room-1", "content": "x"}),
        ("send-message", {"recipientId": "bob", "content": ""}),
        ("send-message", {"recipientId": "bob", "content": "x" * 10_001}),
        ("send-message", {"recipientId": "bob", "content": 5}),
        ("send-message", {"recipientId": "bob", "content": "x", "clientId": "a\x1fb"}),
        ("send-message", {"channel": "private-user==.x", "content": "x"}),
        ("send-message", {"channel": "a b", "content": "x"}),
        ("send-message", {"conversationId": "a b-c", "content": "x"}),
        ("mark-read", {}),
        ("mark-read", {"messageId": "x", "userId": "bob"}),
        ("typing", {"recipientId": "bob"}),
        ("typing", {"recipientId": "bob", "isTyping": "yes"}),
    ],
)
async def test_what_makes_no_sense_is_said_to_and_reaches_nobody(
    serve: Any, closing: AsyncExitStack, event: str, payload: dict[str, object]
) -> None:
    url = (await serve()).url
    alice, bob = await person(closing, url, "alice"), await person(closing, url, "bob")
    error = (await alice.ask(event, payload))["error"]
    assert error["code"] == "INVALID_PAYLOAD"
    await settled(alice, bob)
    assert bob.of("new-message") == []


async def test_ids_that_make_no_conversation_are_written_to_all_the_same(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, bob = await person(closing, url, "a-1"), await person(closing, url, "bob")
    tab = await person(closing, url, "a-1")
    message = await send(alice, recipientId="bob")
    assert await bob.hears("new-message") == message
    assert await tab.hears("new-message") == message
    assert (await bob.ask("mark-read", {"userId": "a-1"}))["data"] == {"count": 1}
    await alice.hears("message-read", message_id=message["id"])
    assert (await alice.ask("typing", {"recipientId": "bob", "isTyping": True}))["data"] == {}
    await settled(alice, bob, tab)
    assert [len(each.of("new-message")) for each in (alice, bob, tab)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("one", "two", "channel"),
    [
        ("a b", "b+o/b", "private-conversation=.a=20b-b=2Bo=2Fb"),
        ("a-1", "bob", "private-conversation=.a=2D1-bob"),
        ("用户", "bob", "private-conversation=.bob-=E7=94=A8=E6=88=B7"),
        ("💬" * 128, " " * 128, None),
    ],
)
async def test_whatever_is_in_their_ids_people_write_to_each_other(
    serve: Any, closing: AsyncExitStack, shared_redis: RedisServer, one: str, two: str, channel: str | None
) -> None:
    shared = {"redis_url": shared_redis.url, "redis_prefix": fresh_prefix()}
    url, elsewhere = (await serve(**shared)).url, (await serve(**shared)).url
    alice, bob, tab = (
        await person(closing, url, one),
        await person(closing, elsewhere, two),
        await person(closing, url, one),
    )
    message = await send(alice, recipientId=two)
    for client in (bob, tab):
        assert await client.hears("new-message") == message
    assert (await bob.ask("mark-read", {"userId": one}))["data"] == {"count": 1}
    for client in (alice, tab):
        await client.hears("message-read", message_id=message["id"])
    own = user_channel(two)
    assert (await alice.ask("join-channel", {"channel": own}))["error"]["code"] == "FORBIDDEN"
    history = (await bob.ask("join-channel", {"channel": own, "since": "0"}))["data"]["history"]
    assert [each["data"] for each in history] == [message | {"is_read": True}]
    answer = await alice.ask("join-conversation", {"conversationId": f"{one}-{two}", "since": "0"})
    if channel is None:
        assert answer["error"]["code"] == "INVALID_PAYLOAD"
    elif "-" not in one:
        assert answer["data"]["channel"] == channel
        assert [each["data"]["id"] for each in answer["data"]["history"]] == [message["id"]]
    if channel is not None:
        assert (await bob.ask("join-channel", {"channel": channel}))["event"] == "joined-channel"
        assert (await alice.ask("typing", {"recipientId": two, "isTyping": True}))["data"] == {}
        await bob.hears("user-typing", user_id=one)
        carol = await person(closing, url, "carol")
        assert (await carol.ask("join-channel", {"channel": channel}))["error"]["code"] == "FORBIDDEN"
    await settled(alice, bob, tab)
    assert [len(each.of("new-message")) for each in (alice, bob, tab)] == [0, 1, 1]


async def test_a_note_to_oneself_is_heard_by_ones_other_connections_once(serve: Any, closing: AsyncExitStack) -> None:
    url = (await serve()).url
    alice, tab = await person(closing, url, "alice"), await person(closing, url, "alice")
    message = await send(alice, recipientId="alice")
    await tab.hears("new-message")
    await settled(alice, tab)
    assert ([each["id"] for each in tab.of("new-message")], alice.of("new-message")) == ([message["id"]], [])
    assert (await tab.ask("mark-read", {"userId": "alice"}))["data"] == {"count": 0}


async def test_whom_the_application_lets_into_a_user_s_channel_hears_what_is_said_to_that_user(
    serve: Any, closing: AsyncExitStack
) -> None:
    url = (await serve(channel_auth=lambda identity, _channel: identity.user_id == "auditor")).url
    alice, bob, auditor = [await person(closing, url, user) for user in ("alice", "bob", "auditor")]
    for client in (bob, auditor):
        await client.ask("join-channel", {"channel": "private-user.bob"})
    message = await send(alice, recipientId="bob")
    assert await auditor.hears("new-message") == message
    await settled(alice, bob, auditor)
    assert [len(each.of("new-message")) for each in (alice, bob, auditor)] == [0, 1, 1]


async def test_a_group_that_the_application_knows_is_a_conversation(serve: Any, closing: AsyncExitStack) -> None:
    group = "private-conversation.team"
    url = (await serve(channel_auth=lambda _identity, channel: channel == group)).url
    alice, bob, carol = [await person(closing, url, user) for user in ("alice", "bob", "carol")]
    await bob.ask("join-conversation", {"conversationId": "team"})
    message = await send(alice, conversationId="team")
    assert (set(message), message["recipient_id"]) == (DIRECT, None)
    assert await bob.hears("new-message") == message
    await settled(bob, carol)
    assert carol.of("new-message") == []


async def test_what_people_write_is_kept_nowhere_but_where_it_is_said(serve: Any, closing: AsyncExitStack) -> None:
    gateway = await serve(channel_history=0)
    alice = await person(closing, gateway.url, "alice")
    await send(alice, "a secret", recipientId="bob")
    await alice.ask("check-user-status", {"userId": "bob"})
    prepared = gateway.gateway._requests._prepared
    assert not [each for each in prepared if b"secret" in each]
    history = (await alice.ask("join-conversation", {"conversationId": "alice-bob", "since": "0"}))["data"]
    assert history["history"] == []
