"""Channels as a gateway has them, on one node or on several, with subscribers that a test holds in its hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import msgspec
from conftest import STEP, eventually, make_settings
from redis_servers import fresh_prefix

from gateway.channels.model import ADDED, ChannelCodec, Joined, Person, Said, Subscriber
from gateway.channels.part import ChannelsPart
from gateway.channels.wire import MemberChanged
from gateway.nodes.bus import Bus, LocalBus
from gateway.parts import make_visibility
from gateway.presence.clock import SteadyClock
from gateway.presence.model import Ending, Profile
from gateway.presence.view import View
from gateway.presence.visibility import Rule
from gateway.redis.bus import RedisBus
from gateway.redis.connection import connect
from gateway.runtime.tasks import end
from gateway.runtime.timers import RunningLoop


class Codec:
    """Encodes nothing: what is written is what happened."""

    def encode(self, events: Sequence[tuple[str, object]]) -> list[Any]:
        return list(events)

    def encode_said(self, said: Said) -> list[Any]:
        return [(said.event, said)]

    def write_all(self, batch: list[Any], sinks: Sequence[Any]) -> None:
        for sink in sinks:
            sink.extend(batch)


CODEC = cast("ChannelCodec", Codec())
_ids = itertools.count()


class Listener:
    def __init__(self) -> None:
        self.codec = CODEC
        self.sink: list[Any] = []
        self.removals: list[str] = []
        self.removed = self.removals.append

    def write(self, batch: list[Any]) -> None:
        self.sink.extend(batch)


class Tab:
    """One connection to one node, and who it knows to be in each channel."""

    def __init__(self, node: Node, user: str) -> None:
        self.node = node
        self.user = user
        self.listener = Listener()
        self.subscriber = Subscriber("acme", f"tab-{next(_ids)}", cast("Any", self.listener), user_id=user)
        self.joined: dict[str, tuple[Joined, int]] = {}
        """How each channel was found, and how much had been heard by then."""

    async def join(self, channel: str, *, since: int | None = None) -> Joined:
        person = Person(user_id=self.user, profile=Profile(name=self.user.title()))
        presence = channel.startswith("presence-")
        joined = await self.node.part.channels.join(self.subscriber, channel, person if presence else None, since=since)
        self.joined[channel] = joined, len(self.listener.sink)
        return joined

    async def leave(self, channel: str) -> bool:
        self.joined.pop(channel, None)
        return await self.node.part.channels.leave(self.subscriber, channel)

    async def end(self, ending: Ending = Ending.GOODBYE) -> None:
        self.joined.clear()
        await self.node.part.channels.end(self.subscriber, ending)

    def knows(self, channel: str) -> set[str]:
        """Who is in a presence channel, by the answer and what was told after it; each is told once.

        Of itself a tab knows that it is there, also while the store, or others, do not.
        """
        joined, heard = self.joined[channel]
        members = {person.user_id for person in joined.members or ()}
        assert self.user in members
        for name, change in self.listener.sink[heard:]:
            if isinstance(change, MemberChanged) and change.channel == channel and change.user_id != self.user:
                assert (change.user_id in members) is (name != ADDED), f"{self.user} is told twice of {change}"
                members ^= {change.user_id}
        return members

    def changes(self) -> list[tuple[str, str]]:
        """Each member who came or went."""
        return [(name, change.user_id) for name, change in self.listener.sink if not isinstance(change, Said)]

    def heard(self) -> list[Any]:
        """What was said."""
        return [msgspec.json.decode(said.data) for _name, said in self.listener.sink if isinstance(said, Said)]


class Node:
    """One node of a gateway, without doors."""

    def __init__(self, part: ChannelsPart, presence: View) -> None:
        self.part = part
        self.presence = presence

    def tab(self, user: str = "alice") -> Tab:
        return Tab(self, user)

    def members(self, channel: str) -> set[str]:
        return {person.user_id for person in self.part.channels.members("acme", channel)}

    def occupied(self) -> set[str]:
        return {each.channel for each in self.part.channels.occupied("acme")}

    def leftovers(self) -> list[object]:
        """What is kept of connections in channels; all of it is empty where there are none."""
        audience, membership = self.part.channels._audience, self.part.membership
        kept = (
            *(audience._subscribers, audience._fanout._audiences, audience._singly, audience._viewers),
            *(membership._places, membership._scopes),
        )
        return [each for each in kept if each]


@asynccontextmanager
async def nodes(
    count: int, redis_url: str | None, *, rule: Rule | None = None, **settings: Any
) -> AsyncIterator[list[Node]]:
    """Run nodes of one gateway; without Redis there can be but one. `rule` is who may see whom."""
    async with AsyncExitStack() as stack:
        prefix, made = fresh_prefix(), []
        for number in range(count):
            name, clock, presence = f"node-{number}", SteadyClock(), View()
            client = None if redis_url is None else connect(redis_url, timeout=STEP)
            bus: Bus = LocalBus() if client is None else RedisBus(client, prefix, name)
            values = {"presence_offline_grace": 0.2, "node_lease": 2.0, "redis_prefix": prefix, "redis_url": redis_url}
            configured = make_settings(**(values | settings))
            part = ChannelsPart(
                configured,
                name,
                clock,
                RunningLoop(),
                client,
                bus,
                presence=presence,
                visibility=make_visibility(configured, clock, rule, None),
                recovery=None,
            )
            await bus.start()
            await part.start()
            stack.push_async_callback(part.close)
            stack.push_async_callback(bus.close)
            stack.push_async_callback(end, [asyncio.create_task(part.run()), asyncio.create_task(bus.run())])
            made.append(Node(part, presence))
        yield made


async def settled(nodes: Sequence[Node], tabs: Sequence[Tab]) -> None:
    """Wait until all nodes, and all who hear of members, agree with who is in which channel."""
    channels: dict[str, set[str]] = {}
    for tab in tabs:
        for channel in tab.joined:
            channels.setdefault(channel, set()).add(tab.user)
    presence = {channel: users for channel, users in channels.items() if channel.startswith("presence-")}

    def picture() -> dict[str, Any]:
        return {
            "occupied": [node.occupied() for node in nodes],
            "members": [{channel: node.members(channel) for channel in presence} for node in nodes],
            "known": [{channel: tab.knows(channel) for channel in tab.joined if channel in presence} for tab in tabs],
        }

    expected = {
        "occupied": [set(channels)] * len(nodes),
        "members": [presence] * len(nodes),
        "known": [{channel: presence[channel] for channel in tab.joined if channel in presence} for tab in tabs],
    }
    try:
        await eventually(lambda: picture() == expected, within=2 * STEP)
    except AssertionError:
        assert picture() == expected  # says what differs
        raise
