"""Channels, as somebody uses them who means no good: what is not theirs to read, and what they would leave behind."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client, Packets
from conftest import Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix
from test_sessions import Tab

from gateway.errors import UnavailableError
from gateway.runtime.tasks import PART

Serve = Callable[..., Awaitable[Running]]


class Page:
    """A page that uses Laravel Echo, packet by packet."""

    def __init__(self, packets: Packets) -> None:
        self.packets = packets

    @classmethod
    async def open(cls, closing: AsyncExitStack, running: Running, token: str | None = None) -> Page:
        packets = await Packets.start(closing, running.ws_url)
        await packets.ws.send_str("40" if token is None else f"40{json.dumps({'token': token})}")
        assert (await packets.packet("4"))[:2] == "40"
        return cls(packets)

    async def say(self, request: str, **body: object) -> None:
        await self.packets.ws.send_str("42" + json.dumps([request, body]))

    async def subscribe(self, channel: str, token: str | None = None) -> None:
        auth = {} if token is None else {"headers": {"Authorization": f"Bearer {token}"}}
        await self.say("subscribe", channel=channel, auth=auth)

    async def event(self) -> list[Any]:
        while True:
            packet = await self.packets.packet("42")
            event: list[Any] = json.loads(packet[2:])
            if event[0] != "user.status":
                return event


def occupied(running: Running, tenant: str = "default") -> list[str]:
    return [each.channel for each in running.gateway.channels.occupied(tenant=tenant)]


async def test_what_was_said_after_a_right_was_lost_nobody_hears_who_comes_back(
    serve: Serve, closing: AsyncExitStack
) -> None:
    banned: set[str] = set()

    async def rule(identity: Any, channel: str) -> bool | None:
        return None if channel != "private-club" else identity.user_id not in banned

    running = await serve(channel_auth=rule)
    alice = await Tab.open(closing, running)
    for channel in ("private-club", "news"):
        assert (await alice.packets.ask("join-channel", {"channel": channel}))["event"] == "joined-channel"
    alice.packets.vanish()
    await eventually(lambda: not occupied(running))
    banned.add("alice")
    await running.gateway.channels.say("private-club", "secret", "of the others")
    await running.gateway.channels.say("news", "hello", 1)
    back = await alice.back(closing, running)
    assert back.pid == alice.pid
    heard: list[Any] = []
    await running.gateway.channels.say("news", "last", 2)
    while not heard or heard[-1][0] != "last":
        packet = await back.packets.packet("42")
        heard.append(json.loads(packet[packet.index("[") :])[:2])
    assert [each for each in heard if not each[0].startswith("user-")] == [
        ["hello", 1],
        ["channel-left", {"channel": "private-club"}],
        ["last", 2],
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_was_said_before_it_came_in_nobody_hears_by_an_old_offset(
    serve: Serve, closing: AsyncExitStack, redis_url: str, *, elsewhere: bool
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if elsewhere else {}
    running = await serve(**shared)
    next_to_it = await serve(**shared) if elsewhere else running
    alice = await Tab.open(closing, running)
    carol = await Packets.connect(closing, running.ws_url, "carol")
    assert (await alice.event())[0] == "user-online"
    await carol.ask("join-channel", {"channel": "club"})
    say = running.gateway.channels.say
    await say("club", "secret", "of those who are in", keep=False)
    assert "secret" in await carol.packet("42")
    assert (await alice.packets.ask("join-channel", {"channel": "club"}))["event"] == "joined-channel"
    await say("club", "hello", 1)
    assert json.loads((await alice.packets.packet("42")).partition(",")[2])[:2] == ["hello", 1]
    alice.packets.vanish()
    await eventually(lambda: len(running.gateway._connections) == 1)
    await say("club", "while it was away", 2)
    back = await alice.back(closing, next_to_it)  # from before it was in the channel
    assert back.pid == alice.pid
    assert [await back.event(), await back.event()] == [["hello", 1], ["while it was away", 2]]
    again = await alice.back(closing, running)  # it heard nothing of that, and comes a second time
    assert again.pid == alice.pid
    assert [await again.event(), await again.event()] == [["hello", 1], ["while it was away", 2]]


async def test_who_comes_back_into_many_channels_costs_as_much_as_those_once(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve(rate_limit_events="1000/s")
    recovery = running.gateway._recovery
    assert recovery is not None
    alice = await Tab.open(closing, running)
    for number in range(100):
        await alice.packets.ask("join-channel", {"channel": f"club-{number}"})
    alice.packets.vanish()
    await eventually(lambda: not running.gateway._connections)
    told: list[int] = []
    monkeypatch.setattr(recovery.sessions, "change", lambda session: told.append(len(session.rooms)))
    back = await alice.back(closing, running)
    assert back.pid == alice.pid
    await eventually(lambda: len(occupied(running)) == 100)
    assert told == [100]


async def test_who_leaves_many_channels_at_once_leaves_others_their_turn(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve(rate_limit_events="1000/s")
    alice = await Tab.open(closing, running)
    for number in range(200):
        await alice.packets.ask("join-channel", {"channel": f"presence-club-{number}"})
    turn, left = 0, Counter[int]()

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    membership = running.gateway._channels.membership
    leave = membership.leave

    async def leave_and_count(*told: Any) -> None:
        left[turn] += 1
        await leave(*told)

    monkeypatch.setattr(membership, "leave", leave_and_count)
    counting = asyncio.create_task(count())
    alice.packets.vanish()
    await eventually(lambda: not occupied(running))
    counting.cancel()
    assert sum(left.values()) == 200
    assert max(left.values()) <= PART


async def test_a_page_that_says_late_of_which_tenant_it_is_leaves_nothing_in_another(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(echo_anonymous=True)
    page = await Page.open(closing, running)
    await page.subscribe("news")
    await eventually(lambda: occupied(running) == ["news"])
    await page.subscribe("presence-room-1", make_token("alice", tenant="acme"))
    assert (await page.event())[:2] == ["presence:subscribed", "presence-room-1"]
    assert occupied(running, "acme") == ["news", "presence-room-1"]
    await eventually(lambda: not occupied(running))
    await running.gateway.channels.say("news", "theirs")
    await running.gateway.channels.say("news", "ours", tenant="acme")
    assert await page.event() == ["ours", "news", None]
    page.packets.vanish()
    await eventually(lambda: not occupied(running, "acme"))


async def test_a_page_that_goes_while_it_says_who_it_is_leaves_nobody_online(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve()
    door: Any = running.gateway._server.namespace_handlers["/"]
    connections, goes_on = door._connections, asyncio.Event()

    class Slow:
        """As a store is that answers late."""

        async def open(self, *args: Any, **options: Any) -> Any:
            live = await connections.open(*args, **options)
            await goes_on.wait()
            return live

        def __getattr__(self, name: str) -> Any:
            return getattr(connections, name)

    door._connections = Slow()
    page = await Page.open(closing, running)
    await page.subscribe("presence-room-1", make_token("alice"))
    await eventually(lambda: len(connections))
    door._clients[next(iter(door._clients))].page.close(4001)
    await eventually(lambda: not door._clients)
    goes_on.set()
    await eventually(lambda: not len(connections))
    await eventually(lambda: not running.gateway.presence.status("alice").online)
    assert occupied(running) == []


async def test_a_whisper_is_no_larger_than_pusher_s(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    alice = await Page.open(closing, running, make_token("alice"))
    bob = await Page.open(closing, running, make_token("bob"))
    for page in (alice, bob):
        await page.subscribe("presence-room-1")
        assert (await page.event())[0] == "presence:subscribed"
    assert (await alice.event())[0] == "presence:joining"
    for text in ("x" * 10_241, "y" * 10_238):
        await alice.say("client event", channel="presence-room-1", event="client-said", data=text)
    assert (await bob.event())[2] == "y" * 10_238


async def test_nobody_whispers_in_the_clear_where_all_else_is_encrypted(serve: Serve, closing: AsyncExitStack) -> None:
    async def rule(_identity: Any, _channel: str) -> bool:
        return True

    running = await serve(channel_auth=rule)
    alice = await Page.open(closing, running, make_token("alice"))
    bob = await Page.open(closing, running, make_token("bob"))
    for page in (alice, bob):
        for channel in ("private-encrypted-room", "presence-room-1"):
            await page.subscribe(channel)
        assert (await page.event())[0] == "presence:subscribed"
    for channel in ("private-encrypted-room", "presence-room-1"):
        await alice.say("client event", channel=channel, event="client-said", data="hush")
    assert (await bob.event())[:2] == ["client-said", "presence-room-1"]


async def test_whispers_are_as_many_as_messages_may_be(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(rate_limit_messages="3/h")
    alice = await Page.open(closing, running, make_token("alice"))
    bob = await Page.open(closing, running, make_token("bob"))
    for page in (alice, bob):
        await page.subscribe("presence-room-1")
        assert (await page.event())[0] == "presence:subscribed"
    assert (await alice.event())[0] == "presence:joining"
    for number in range(5):
        await alice.say("client event", channel="presence-room-1", event="client-said", data=number)
    await alice.say("unsubscribe", channel="presence-room-1")
    told = [await bob.event() for _ in range(4)]
    assert [each[0] for each in told] == ["client-said"] * 3 + ["presence:leaving"]


@pytest.mark.parametrize("text", ['"\\ud800"', "[" * 300 + "]" * 300, '"\x00"', "1e999"])
async def test_what_cannot_be_told_costs_nobody_else_anything(
    serve: Serve, closing: AsyncExitStack, text: str, shared_redis: RedisServer
) -> None:
    running = await serve(redis_url=shared_redis.url, redis_prefix=fresh_prefix())
    bob = await Page.open(closing, running, make_token("bob"))
    await bob.subscribe("presence-room-1")
    assert (await bob.event())[0] == "presence:subscribed"
    alice = await Page.open(closing, running, make_token("alice"))
    await alice.subscribe("presence-room-1")
    for what in ("subscribe", "unsubscribe", "client event"):
        await alice.packets.ws.send_str(
            f'42["{what}",{{"channel":"presence-room-1","event":"client-x","data":{text}}}]'
        )
        await alice.packets.ws.send_str(f'42["{what}",{{"channel":{text},"event":"client-x","data":1}}]')
        await alice.packets.ws.send_str(f'42["{what}",{{"channel":"presence-room-1","event":{text},"data":1}}]')
    assert (await bob.event())[0] == "presence:joining"
    alice.packets.vanish()
    while (await bob.event())[0] != "presence:leaving":
        pass
    assert occupied(running) == ["presence-room-1"]


@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_a_client_that_is_back_misses_nothing_while_its_rights_are_asked(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    asked = asyncio.Event()
    slow = 0.0

    async def rule(_identity: Any, channel: str) -> bool:
        if slow and channel == "private-club":
            asked.set()
            await asyncio.sleep(slow)
        return True

    running = await serve(channel_auth=rule, gateway_engine=engine)
    alice = await Tab.open(closing, running)
    assert (await alice.packets.ask("join-channel", {"channel": "private-club"}))["event"] == "joined-channel"
    alice.packets.vanish()
    await eventually(lambda: not occupied(running))
    slow = 0.3
    coming = asyncio.create_task(alice.back(closing, running))
    await asked.wait()
    await running.gateway.channels.say("private-club", "between", 1)
    back = await coming
    await eventually(lambda: occupied(running))
    await running.gateway.channels.say("private-club", "last", 2)
    heard: list[Any] = []
    while not heard or heard[-1] != "last":
        heard.append((await back.event())[0])
    assert [each for each in heard if not each.startswith("user-")] == ["between", "last"]


async def test_whoever_is_told_that_a_join_failed_is_not_in_the_channel(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    requests: Any = running.gateway._connections.on_end.__self__  # type: ignore[union-attr]

    async def away(_tenant: str, _events: object) -> Any:
        raise UnavailableError("away")

    requests.refresh = away
    alice = await Client.connect(closing, running.url, "alice")
    conversation = {"conversationId": "alice-bob", "since": "0"}
    assert (await alice.ask("join-conversation", conversation))["event"] == "error"
    assert occupied(running) == []


async def test_pages_that_are_nobody_s_count_for_their_address(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(echo_anonymous=True, max_connections_per_address=2)
    one, _two = [await Page.open(closing, running) for _ in range(2)]
    third = await Packets.start(closing, running.ws_url)
    await third.ws.send_str("40")
    assert "TOO_MANY_CONNECTIONS" in await third.packet("44")
    await one.subscribe("presence-room-1", make_token("alice"))
    assert (await one.event())[0] == "presence:subscribed"
    await third.ws.send_str("40")
    assert "TOO_MANY_CONNECTIONS" in await third.packet("44")
    one.packets.vanish()
    await eventually(lambda: not occupied(running))
    await third.ws.send_str("40")
    assert (await third.packet("4"))[:2] == "40"


@pytest.mark.parametrize("store", ["memory", "redis"])
async def test_what_one_user_makes_the_gateway_keep_is_bounded_whomever_they_invent(
    serve: Serve, closing: AsyncExitStack, shared_redis: RedisServer, store: str
) -> None:
    shared = {} if store == "memory" else {"redis_url": shared_redis.url, "redis_prefix": fresh_prefix()}
    running = await serve(
        rate_limit_messages="100000/s", rate_limit_events="100000/s", message_budget=1 << 20, **shared
    )
    mallory = await Client.connect(closing, running.url, auth={"token": make_token("mallory")})
    bob = await Client.connect(closing, running.url, auth={"token": make_token("bob")})
    text, sent, answer = "x" * 10_000, 0, {}
    for number in range(200):
        to = ({"recipientId": f"nobody-{number}"}, {"channel": f"room-{number}"}, {"recipientId": "bob"})[number % 3]
        answer = await mallory.ask("send-message", {"content": text, "clientId": str(number), **to})
        if answer["event"] == "error":
            break
        sent += 1
    assert 20 <= sent < 100
    assert answer["error"]["code"] == "RATE_LIMITED"
    assert 0 < answer["error"]["retryAfter"] < 24 * 3600
    refused = {"recipientId": "bob", "content": text, "clientId": "late"}
    bearer = {"Authorization": f"Bearer {make_token('mallory')}"}
    async with (
        aiohttp.ClientSession(headers=bearer) as session,
        session.post(f"{running.url}/api/messages", json=refused) as response,
    ):
        assert response.status == 429
        assert int(response.headers["Retry-After"]) > 0
    again = await mallory.ask("send-message", {"content": "other", "clientId": "0", "recipientId": "bob"})
    assert again["data"]["message"]["recipient_id"] == "nobody-0", "what was sent is answered as it was"
    # Nobody else is the poorer for it: neither another user, nor the application in whose name there is no budget.
    assert (await bob.ask("send-message", {"content": text, "recipientId": "mallory"}))["event"] == "message-sent"
    await running.gateway.channels.send_message("mallory", text, recipient="bob")
    assert (await bob.ask("mark-read", {"userId": "mallory"}))["data"] == {"count": sent // 3 + 1}
    assert running.gateway._connections.quotas.refused["message_bytes_per_user"] == 2
