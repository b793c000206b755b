"""Whoever is taken out of a channel is out of it: also who is away just then, or about to come in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from conftest import Running, eventually
from redis_servers import RedisServer, fresh_prefix
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
