"""Channels over Socket.IO and a plain WebSocket: real nodes, real clients, nodes that are killed and stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from clients import Client, Plain
from conftest import Process, Running, eventually
from receivers import HOOK_SECRET, Receiver, receiver
from redis_servers import fresh_prefix

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]

MEMBER = "alice in presence-a"
"""As the receiver of webhooks names a member."""


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def join(client: Client, channel: str, **fields: Any) -> Any:
    answer = await client.ask("join-channel", {"channel": channel, **fields})
    assert answer["event"] == "joined-channel", answer
    return answer["data"]


def ids(members: list[Any]) -> list[str]:
    return [member["userId"] for member in members]


def changes(client: Client) -> list[tuple[str, str]]:
    return [(name, data["userId"]) for name, data in client.heard if name.startswith("member-")]


async def test_a_name_that_is_none_is_refused_in_words(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Client.connect(closing, (await serve()).url, "alice")
    answer = await alice.ask("join-channel", {"channel": "room 1"})
    assert answer["error"]["code"] == "INVALID_PAYLOAD"
    message = answer["error"]["message"]
    assert message.startswith("Expected `str` of the characters that it may have - at `$.channel`; join-channel takes ")
    assert "A-Z a-z 0-9 _ - = @ , . ; :" in message


async def test_members_are_told_by_both_doors_and_strangers_nothing(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**store)
    alice, stranger = [await Client.connect(closing, running.url, user) for user in ("alice", "stranger")]
    bob = await Plain.connect(closing, running.ws_url, "bob")
    assert ids((await join(alice, "presence-a"))["members"]) == ["alice"]
    await bob.ws.send_json({"event": "join-channel", "data": {"channel": "presence-a"}, "id": 1})
    while (frame := await bob.frame()).get("id") != 1:
        pass
    assert ids(frame["data"]["members"]) == ["alice", "bob"]
    await alice.hears("member-added")
    [added] = alice.of("member-added")
    assert (added["userId"], added["channel"], added["info"]) == ("bob", "presence-a", {})
    await running.gateway._channels.channels.say("default", ["presence-a"], "said", {"n": 1})
    await alice.hears("said")
    await bob.ws.close()
    await alice.hears("member-removed")
    await stranger.status("alice")
    assert not [name for name in stranger.names() if name in {"said", "member-added", "member-removed"}]
    refused = await stranger.ask("join-channel", {"channel": "private-user.alice"})
    assert refused["error"]["code"] == "FORBIDDEN"
    again = await alice.ask("leave-channel", {"channel": "presence-a"})
    assert again == {"event": "left-channel", "data": {"channel": "presence-a"}}


async def test_history_is_told_from_where_a_client_has_come(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(channel_history=3, **store)
    alice = await Client.connect(closing, running.url, "alice")
    begin = await join(alice, "room-1", since="0")
    assert (begin["history"], begin["recovered"]) == ([], True)
    for n in range(3):
        await running.gateway._channels.channels.say("default", ["room-1"], "said", n)
    found = await join(alice, "room-1", since=begin["position"])
    assert ([each["data"] for each in found["history"]], found["recovered"]) == ([0, 1, 2], True)
    assert found["history"][-1]["position"] == found["position"]
    assert {each["event"] for each in found["history"]} == {"said"}
    await running.gateway._channels.channels.say("default", ["room-1"], "said", 3)
    later = await join(alice, "room-1", since=found["history"][1]["position"])
    assert ([each["data"] for each in later["history"]], later["recovered"]) == ([2, 3], True)
    assert (await join(alice, "room-1", since=begin["position"]))["recovered"] is False
    for wrong in (1, "-1", "x", "1" * 20):
        assert (await alice.ask("join-channel", {"channel": "a", "since": wrong}))["error"]["code"] == "INVALID_PAYLOAD"
    assert (await join(alice, "room-1", since="9" * 19))["recovered"] is False


async def test_who_is_invisible_is_so_in_channels(
    serve: Serve, closing: AsyncExitStack, hook: Receiver, store: dict[str, Any]
) -> None:
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    watcher, alice = [await Client.connect(closing, running.url, user) for user in ("watcher", "alice")]
    await join(watcher, "presence-a")
    await join(alice, "presence-a")
    await eventually(lambda: changes(watcher) == [("member-added", "alice")])
    await alice.ask("set-status", {"status": "invisible"})
    await eventually(lambda: changes(watcher)[1:] == [("member-removed", "alice")])
    assert ids((await join(watcher, "presence-a"))["members"]) == ["watcher"]
    assert ids((await join(alice, "presence-a"))["members"]) == ["alice", "watcher"]
    # Nor is it told that they come into another, or go.
    await join(watcher, "presence-b")
    assert ids((await join(alice, "presence-b"))["members"]) == ["alice", "watcher"]
    await alice.ask("leave-channel", {"channel": "presence-b"})
    await alice.ask("set-status", {"status": "online"})
    await eventually(lambda: changes(watcher)[2:] == [("member-added", "alice")])
    await alice.leave()
    await eventually(lambda: changes(watcher)[3:] == [("member-removed", "alice")])
    await eventually(lambda: len([each for each in hook.taken() if each[:2] == ("member.removed", MEMBER)]) == 2)
    members = [each[0] for each in hook.taken() if each[0].startswith("member.") and each[1] == MEMBER]
    assert members == ["member.added", "member.removed", "member.added", "member.removed"]


async def test_webhooks_tell_of_channels_once_whatever_the_number_of_tabs(
    serve: Serve, closing: AsyncExitStack, hook: Receiver, store: dict[str, Any]
) -> None:
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    tabs = [await Client.connect(closing, running.url, "alice") for _ in range(3)]
    for tab in tabs:
        await join(tab, "presence-a")
        await join(tab, "public")
    for tab in tabs:
        await tab.leave()
    expected = {
        *((kind, "presence-a") for kind in ("channel.occupied", "channel.vacated")),
        *((kind, "public") for kind in ("channel.occupied", "channel.vacated")),
        *((kind, MEMBER) for kind in ("member.added", "member.removed")),
        *((kind, "alice") for kind in ("user.online", "user.offline")),
    }
    await eventually(lambda: len(hook.taken()) >= len(expected))
    await asyncio.sleep(0.3)
    assert sorted(each[:2] for each in hook.taken()) == sorted(expected)
    [added] = [each.data for each in hook.calls if each.type == "member.added"]
    assert set(added) == {"tenant", "channel", "userId", "info", "timestamp", "version"}


# Many nodes


async def test_the_members_of_a_killed_node_go_once_and_those_of_a_stopped_one_are_held(
    spawn: Spawn, closing: AsyncExitStack, redis_url: str
) -> None:
    shared = {
        "REDIS_URL": redis_url,
        "REDIS_PREFIX": fresh_prefix(),
        "NODE_LEASE": "2",
        "PRESENCE_OFFLINE_GRACE": "0.5",
    }
    stays, dies, stops = [await spawn(**shared) for _ in range(3)]
    watcher = await Client.connect(closing, stays.url, "watcher")
    await join(watcher, "presence-a")
    on_dying = [await Client.connect(closing, dies.url, user) for user in ("alice", "alice", "bob")]
    on_stopping = await Client.connect(closing, stops.url, "carol")
    also = await Client.connect(closing, stays.url, "bob")
    for client in (*on_dying, on_stopping, also):
        await join(client, "presence-a")
    await join(on_dying[0], "only-here")
    await eventually(lambda: len(changes(watcher)) == 3)
    await dies.stop(signal.SIGKILL)
    await eventually(lambda: ("member-removed", "alice") in changes(watcher), within=15)
    await stops.stop()
    back = await Client.connect(closing, stays.url, "carol")
    assert ids((await join(back, "presence-a"))["members"]) == ["bob", "carol", "watcher"]
    await asyncio.sleep(1)
    assert sorted(changes(watcher)) == [
        *(("member-added", user) for user in ("alice", "bob", "carol")),
        ("member-removed", "alice"),
    ]
