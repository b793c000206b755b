"""Whoever is taken out of a channel is out of it: also who is away just then, or about to come in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from clients import Client
from conftest import Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix
from test_channels_attacked import Page
from test_sessions import Tab

Serve = Callable[..., Awaitable[Running]]
CLUB, NEWS, ROOM = "private-club", "news", "presence-room-1"


async def let_in(_identity: Any, _channel: str) -> bool:
    return True


@pytest.fixture(params=["alone", "elsewhere", "new"])
async def nodes(request: pytest.FixtureRequest, serve: Serve, shared_redis: RedisServer) -> AsyncIterator[Any]:
    """Where clients are first; where the backend asks; and how to get to where they are back."""
    if request.param == "alone":
        one = await serve(channel_auth=let_in)
        yield one, one, lambda: as_is(one)
        return
    shared = {"redis_url": shared_redis.url, "redis_prefix": fresh_prefix(), "channel_auth": let_in}
    one, two = await serve(**shared), await serve(**shared)
    yield one, two, (lambda: as_is(two)) if request.param == "elsewhere" else (lambda: serve(**shared))


async def as_is(running: Running) -> Running:
    return running


async def join(tab: Tab, *channels: str) -> None:
    for channel in channels:
        assert (await tab.packets.ask("join-channel", {"channel": channel}))["event"] == "joined-channel"


async def heard(tab: Tab, last: str) -> list[list[Any]]:
    """What a client hears up to an event, but for presence."""
    found: list[list[Any]] = []
    while not found or found[-1][0] != last:
        packet = await tab.packets.packet("42")
        event = json.loads(packet[packet.index("[") :])
        tab.offset = event[-1] if isinstance(event[-1], str) else tab.offset
        if not event[0].startswith("user-"):
            found.append(event[:2])
    return found


def inside(running: Running, channel: str) -> int:
    return len([*running.gateway._channels.channels.subscribers("default", channel)])


@pytest.mark.parametrize("whom", ["alice", None])
async def test_who_was_taken_out_while_away_comes_back_outside_and_is_told(
    nodes: Any, closing: AsyncExitStack, whom: str | None
) -> None:
    one, two, where = nodes
    alice, bob = await Tab.open(closing, one), await Tab.open(closing, one, "bob")
    await join(alice, CLUB, NEWS, ROOM)
    await join(bob, CLUB)
    await one.gateway.channels.say(NEWS, "hello", 0)
    await heard(alice, "hello")
    await eventually(lambda: two.gateway.channels.occupied(CLUB))
    for tab in (alice, bob):
        tab.packets.vanish()
    await eventually(lambda: not inside(one, CLUB))
    await two.gateway.channels.remove(CLUB, whom)
    await two.gateway.channels.say(CLUB, "secret", "of the others")
    await two.gateway.channels.say(NEWS, "missed", 1)
    there = await where()
    back = await alice.back(closing, there)
    assert back.pid == alice.pid
    await eventually(lambda: inside(there, NEWS) == 1)
    await there.gateway.channels.say(CLUB, "secret", "and more of it")
    await there.gateway.channels.say(NEWS, "last", 2)
    told = [each for each in await heard(back, "last") if each[0] != "channel-members"]
    assert told == [["missed", 1], ["channel-left", {"channel": CLUB}], ["last", 2]]
    assert (inside(there, CLUB), inside(there, ROOM)) == (0, 1)
    # Whom it was not about is where they were, and whom it was about may come in again, and then stay.
    if whom is not None:
        again = await bob.back(closing, there, "bob")
        assert await heard(again, "secret") == [["secret", "of the others"]]
        await eventually(lambda: inside(there, CLUB) == 1)
        again.packets.vanish()
        await eventually(lambda: inside(there, CLUB) == 0)
    await join(back, CLUB)
    await there.gateway.channels.say(CLUB, "welcome", 3)
    await heard(back, "welcome")
    back.packets.vanish()
    await eventually(lambda: not inside(there, CLUB))
    await there.gateway.channels.say(CLUB, "welcome", 4)
    third = await back.back(closing, there)
    assert await heard(third, "welcome") == [["welcome", 4]]
    await eventually(lambda: inside(there, CLUB) == 1)


async def test_who_came_in_again_before_they_were_away_is_inside(nodes: Any, closing: AsyncExitStack) -> None:
    one, two, where = nodes
    alice = await Tab.open(closing, one)
    await join(alice, CLUB)
    await one.gateway.channels.say(CLUB, "hello", 0)
    await heard(alice, "hello")
    offset = alice.offset
    await two.gateway.channels.remove(CLUB, "alice")
    await heard(alice, "channel-left")
    await join(alice, CLUB)
    await asyncio.sleep(0.1)  # other nodes are told of it
    alice.packets.vanish()
    await eventually(lambda: not inside(one, CLUB))
    alice.offset = offset  # as of a client that has heard nothing since
    there = await where()
    back = await alice.back(closing, there)
    assert back.pid == alice.pid
    await eventually(lambda: inside(there, CLUB) == 1)
    await there.gateway.channels.say(CLUB, "last", 1)
    assert await heard(back, "last") == [["last", 1]]


# About to come in


class Slow:
    """An application's rule that takes its time, and says what was so when it was asked."""

    def __init__(self) -> None:
        self.banned: set[str] = set()
        self.asked = 0
        self.asking = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, identity: Any, channel: str) -> bool:
        self.asked += 1
        allowed = identity.user_id not in self.banned
        if channel in {CLUB, ROOM}:
            self.asking.set()
            await self.goes_on.wait()
        return allowed

    def stop(self) -> None:
        self.asking.clear()
        self.goes_on.clear()


async def remove(running: Running, _rule: Slow) -> None:
    await running.gateway.channels.remove(CLUB, "alice")


async def ban(running: Running, rule: Slow) -> None:
    rule.banned.add("alice")
    await running.gateway.channels.reauthorize("alice")


WAYS = pytest.mark.parametrize("take_out", [remove, ban])


@pytest.fixture
async def slow(serve: Serve, shared_redis: RedisServer) -> Any:
    """Where clients are, where the backend asks, and the rule of both."""
    rule = Slow()
    shared = {"redis_url": shared_redis.url, "redis_prefix": fresh_prefix(), "channel_auth": rule}
    one = await serve(**shared)
    return one, await serve(**shared), rule


async def let_go_on(take_out: Any, at: Running, here: Running, rule: Slow) -> None:
    """Take a user out while the rule is asked whether they may come in, on another node; then let it answer."""
    await rule.asking.wait()
    bus = here.gateway._bus
    told = bus.told
    await asyncio.wait_for(take_out(at, rule), 1)
    await eventually(lambda: bus.told > told)
    rule.goes_on.set()


@WAYS
async def test_who_is_taken_out_while_a_rule_is_asked_does_not_come_in(
    slow: Any, closing: AsyncExitStack, take_out: Any
) -> None:
    one, two, rule = slow
    alice = await Client.connect(closing, one.url, "alice")
    rule.stop()
    joining = asyncio.create_task(alice.ask("join-channel", {"channel": CLUB}))
    await let_go_on(take_out, two, one, rule)
    assert (await joining)["error"]["code"] == "FORBIDDEN"
    assert (inside(one, CLUB), one.gateway.channels.occupied(CLUB)) == (0, [])
    rule.banned.clear()
    assert (await alice.ask("join-channel", {"channel": CLUB}))["event"] == "joined-channel"


async def test_who_is_asked_for_again_while_a_rule_is_asked_comes_in_if_they_still_may(
    slow: Any, closing: AsyncExitStack
) -> None:
    one, two, rule = slow
    alice = await Client.connect(closing, one.url, "alice")
    rule.stop()
    joining = asyncio.create_task(alice.ask("join-channel", {"channel": CLUB}))
    await let_go_on(lambda at, _rule: at.gateway.channels.reauthorize("alice"), two, one, rule)
    assert (await joining)["event"] == "joined-channel"
    assert rule.asked == 2
    rule.stop()
    joining = asyncio.create_task(alice.ask("join-channel", {"channel": ROOM}))
    await let_go_on(lambda at, _rule: at.gateway.channels.remove(ROOM, "bob"), two, one, rule)
    assert (await joining)["event"] == "joined-channel", "it was about another"
    assert rule.asked == 3


@WAYS
async def test_who_is_taken_out_while_they_are_put_back_is_not(
    slow: Any, closing: AsyncExitStack, take_out: Any
) -> None:
    one, two, rule = slow
    alice = await Tab.open(closing, one)
    await join(alice, CLUB, NEWS)
    await one.gateway.channels.say(NEWS, "hello", 0)
    await heard(alice, "hello")
    alice.packets.vanish()
    await eventually(lambda: not inside(one, CLUB))
    rule.stop()
    coming = asyncio.create_task(alice.back(closing, one))
    await rule.asking.wait()
    told = one.gateway._bus.told
    await take_out(two, rule)
    await eventually(lambda: one.gateway._bus.told > told)
    await two.gateway.channels.say(CLUB, "secret", 1)
    rule.goes_on.set()
    back = await coming
    await eventually(lambda: inside(one, NEWS) == (1 if take_out is remove else 0))
    await one.gateway.notify("alice", "notification", "last")
    told_last = [each for each in await heard(back, "notification") if each[1] != {"channel": NEWS}]
    assert told_last == [["channel-left", {"channel": CLUB}], ["notification", "last"]]
    assert inside(one, CLUB) == 0


@WAYS
async def test_a_page_that_is_taken_out_while_a_rule_is_asked_does_not_come_in(
    slow: Any, closing: AsyncExitStack, take_out: Any
) -> None:
    one, two, rule = slow
    page = await Page.open(closing, one, make_token("alice"))
    rule.stop()
    await page.subscribe(CLUB)
    await let_go_on(take_out, two, one, rule)
    assert await page.event() == ["subscription_error", CLUB, 403]
    assert inside(one, CLUB) == 0
