"""A gateway held to its AsyncAPI document: what it takes, answers and says is what stands there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import jsonschema
import pytest
from clients import Client, brief_token
from conftest import SERVICE_KEY, Running, make_token

from gateway.channels.wire import ChannelMembers, members_of
from gateway.presence.model import Profile
from gateway.wire import encode

Serve = Callable[..., Awaitable[Running]]


class Described:
    """The document of a gateway, as a client gets it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.operations = document["operations"]
        # Nothing may come that is not described.
        self._closed = {
            name: {**schema, "additionalProperties": False} if "properties" in schema else schema
            for name, schema in document["components"]["schemas"].items()
        }

    @classmethod
    async def of(cls, url: str) -> Described:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/asyncapi.json") as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            return cls(await response.json())

    def names(self, action: str) -> set[str]:
        return {
            name
            for name, row in self.operations.items()
            if row["action"] == action and row["channel"]["$ref"] == "#/channels/socketio"
        }

    def check(self, message: str, payload: Any) -> None:
        schema = self.document["components"]["messages"][message]["payload"]
        jsonschema.Draft7Validator({**schema, "components": {"schemas": self._closed}}).validate(payload)

    def is_taken(self, message: str, payload: Any) -> bool:
        try:
            self.check(message, payload)
        except jsonschema.ValidationError:
            return False
        return True


REQUESTS: list[tuple[str, Any]] = [
    ("check-user-status", {"userId": "bob"}),
    ("check-users-status", {"userIds": ["bob", "alice"]}),
    ("get-online-users", None),
    ("get-online-users", {"limit": 1}),
    ("heartbeat", None),
    ("heartbeat", {"meta": {"page": "home"}}),
    ("set-status", {"status": "busy", "statusText": "writing", "expiresIn": 60.5}),
    ("set-status", {"status": "invisible"}),
    ("set-status", {"status": "online", "statusText": None}),
    ("refresh-token", {"token": make_token("alice", name="Alice")}),
    ("ack", {"id": "1-0"}),
    ("ack", {"ids": ["1-0", "2-0"]}),
    ("join-channel", {"channel": "presence-room-5"}),
    ("join-channel", {"channel": "room-5", "since": "0"}),
    ("join-conversation", {"conversationId": "alice-bob", "since": "0"}),
    ("typing", {"recipientId": "bob", "isTyping": True}),
    ("send-message", {"recipientId": "bob", "content": "hello", "clientId": "1"}),
    ("send-message", {"channel": "room-5", "content": "hello, all"}),
    ("mark-read", {"userId": "bob"}),
    ("join-conversation", {"conversationId": "alice-bob", "since": "0"}),
    ("leave-conversation", {"conversationId": "alice-bob"}),
    ("leave-channel", {"channel": "room-5"}),
    ("watch-users", {"userIds": ["bob"]}),
    ("unwatch-users", {"userIds": ["bob"]}),
    ("unwatch-users", None),
]


async def test_every_request_is_taken_and_answered_as_described(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    described = await Described.of(gateway.url)
    alice = await Client.connect(closing, gateway.url, auth={"token": make_token("alice", name="Alice", role="admin")})
    await Client.connect(closing, gateway.url, "bob")
    assert {name for name, _ in REQUESTS} == described.names("receive")
    for name, payload in REQUESTS:
        described.check(name, payload)
        answer = await alice.ask(name, payload)
        assert "error" not in answer, (name, answer)
        [reply, failure] = [each["$ref"].split("/")[-1] for each in described.operations[name]["reply"]["messages"]]
        assert (reply, failure) == (answer["event"], "error")
        described.check(reply, answer)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("check-user-status", {}),
        ("check-user-status", {"userId": ""}),
        ("check-user-status", {"userId": "a\nb"}),
        ("check-user-status", {"userId": "alice\n"}),
        ("check-users-status", {"userIds": ["x"] * 1001}),
        ("get-online-users", {"limit": 0}),
        ("set-status", {"status": "offline"}),
        ("set-status", {"status": "busy", "expiresIn": 0}),
        ("ack", {}),
        ("join-channel", {"channel": "no spaces"}),
        ("send-message", {"content": "to nobody"}),
        ("send-message", {"content": "to two", "recipientId": "bob", "channel": "room-5"}),
        ("mark-read", {"userId": "bob", "messageId": "1"}),
        ("typing", {"channel": "room-5"}),
    ],
)
async def test_what_is_not_as_described_is_refused(
    serve: Serve, closing: AsyncExitStack, name: str, payload: Any
) -> None:
    gateway = await serve()
    described = await Described.of(gateway.url)
    assert not described.is_taken(name, payload)
    alice = await Client.connect(closing, gateway.url)
    answer = await alice.ask(name, payload)
    assert answer["error"]["code"] == "INVALID_PAYLOAD"
    described.check("error", answer)


async def test_every_event_is_said_as_described(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=0.05)
    described = await Described.of(gateway.url)
    alice = await Client.connect(closing, gateway.url)
    for channel in ("presence-room-5", "room-5"):
        assert "data" in await alice.ask("join-channel", {"channel": channel})

    bob = await Client.connect(closing, gateway.url, auth={"token": make_token("bob", name="Bob", avatar="/bob.png")})
    await alice.hears("user-online", userId="bob")
    await bob.ask("set-status", {"status": "dnd", "statusText": "in a meeting"})
    await alice.hears("user-status-changed", userId="bob", status="dnd")
    await bob.ask("join-channel", {"channel": "presence-room-5"})
    await alice.hears("member-added", userId="bob")
    await bob.ask("typing", {"conversationId": "alice-bob", "isTyping": True})
    await alice.ask("join-conversation", {"conversationId": "alice-bob"})
    await bob.ask("typing", {"conversationId": "alice-bob", "isTyping": False})
    await alice.hears("user-typing", user_id="bob")
    sent = await bob.ask("send-message", {"recipientId": "alice", "content": "hello"})
    await bob.ask("send-message", {"channel": "room-5", "content": "hello, all"})
    await alice.hears("new-message", content="hello")
    await alice.hears("new-message", room_id="5")
    await alice.ask("mark-read", {"messageId": sent["data"]["message"]["id"]})
    await bob.hears("message-read", read_by="alice")
    async with aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as backend:

        async def call(method: str, path: str, body: Any = None) -> None:
            async with backend.request(method, f"{gateway.url}{path}", json=body) as response:
                assert response.ok, await response.text()

        await call("POST", "/api/rooms/5/activity", {"action": "joined", "userName": "Bob"})
        await alice.hears("new-activity", room_id="5")
        await call("POST", "/api/notifications", {"userId": "alice", "event": "notification", "data": {"n": 1}})
        await alice.hears("notification", n=1)
        await call("DELETE", "/api/channels/presence-room-5/members/bob")
    await bob.hears("channel-left", channel="presence-room-5")
    await alice.hears("member-removed", userId="bob")
    await bob.tell("no-such-request")
    await bob.hears("exception", code="UNKNOWN_EVENT")
    await bob.io.disconnect()
    await alice.hears("user-offline", userId="bob")
    carol = await Client.connect(closing, gateway.url, auth={"token": brief_token("carol")})
    await carol.hears("token-expired")
    await gateway.gateway.drain()
    await alice.hears("server-draining")

    said = [each for client in (alice, bob, carol) for each in client.heard]
    for name, data in said:
        described.check(name, data)
    # Who recovers hears it, which no client of Python's can: tests/js/recover.mjs.
    members = ChannelMembers("presence-room-5", members_of([("bob", Profile(name="Bob"))]))
    described.check("channel-members", json.loads(encode(members)))
    assert described.names("send") - {name for name, _ in said} == {"channel-members"}


async def test_a_frame_of_a_plain_websocket_is_as_described(serve: Serve) -> None:
    gateway = await serve()
    described = await Described.of(gateway.url)
    request = {"event": "check-user-status", "data": {"userId": "alice"}, "id": 7}
    wrong = {"event": "check-user-status", "id": "eight"}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{gateway.ws_url}/ws?token={make_token('alice')}") as ws,
    ):
        for frame in (request, wrong):
            described.check("request-frame", frame)
            await ws.send_json(frame)
        frames = [await ws.receive_json() for _ in range(3)]
    assert [frame["event"] for frame in frames] == ["connected", "user-status", "error"]
    for frame in frames:
        described.check("frame", frame)
    assert [frame.get("id") for frame in frames] == [None, 7, "eight"]
