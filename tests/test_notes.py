"""What webhooks tell that no store commits, with the time passed in: what is told, how often, what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from conftest import Clock
from loops import Loop

from gateway.channels.model import Said
from gateway.errors import StoreUnavailableError
from gateway.nodes.duty import Duty, LocalLeases
from gateway.webhooks.courier import Policy
from gateway.webhooks.endpoint import Endpoint, types_of
from gateway.webhooks.event import NOTE_TYPES, Message
from gateway.webhooks.notes import AT_ONCE, INTERVAL, LARGE, MISS_INTERVAL, MOST, Notes
from gateway.webhooks.outbox import Bounds
from gateway.webhooks.outbox_memory import MemoryOutbox
from gateway.webhooks.pusher import body_of
from gateway.webhooks.sender import Webhooks


class Away(MemoryOutbox):
    """An outbox that can be out of reach, and keeps what it was given all the same: nobody knows then."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.away = False
        self.given: list[Message] = []

    async def add(self, messages: Sequence[Message]) -> int:
        self.given += messages
        if self.away:
            raise StoreUnavailableError
        return await super().add(messages)


class Site:
    def __init__(self, *wanted: str, queue: int = 10_000) -> None:
        self.outbox = Away(Bounds(queue=queue))
        self.loop, self.clock, self.sends, self.woken = Loop(), Clock(), True, 0
        self.notes = Notes(
            self.outbox, wanted or NOTE_TYPES, self.clock, self.loop, is_sender=lambda: self.sends, wake=self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def count(self, *counts: int, channel: str = "news") -> None:
        for count in counts:
            self.notes.count("default", channel, count)

    async def told(self) -> list[dict[str, Any]]:
        """What Pusher's receivers are sent of what was written since the last time."""
        self.outbox.given.clear()
        await self.notes.write()
        bodies = [msgspec.json.decode(body_of(each, 5) or b"") for each in self.outbox.given]
        return [body["events"][0] for body in bodies]

    async def counts(self) -> list[int]:
        return [each["subscription_count"] for each in await self.told()]


def said(data: bytes = b'{"on": true}', channel: str = "private-a", source: str | None = "1.2", **more: Any) -> Said:
    fields: dict[str, Any] = {"tenant": "default", "event": "client-typing", "position": 0, "at": 1} | more
    return Said(channel=channel, data=msgspec.Raw(data), source=source, **fields)


@pytest.mark.parametrize("data", [b'{"on": true}', b"null", b"1e999", b'"5"', b'[1,{"a":"\xc3\xbc"}]'])
async def test_a_client_event_is_told_as_pusher_has_it_with_the_data_as_it_came(data: bytes) -> None:
    site = Site()
    site.notes.client_event(said(data), None)
    site.notes.client_event(said(data, "presence-a", sender="7"), "7")
    told = {"name": "client_event", "event": "client-typing", "data": data.decode(), "socket_id": "1.2"}
    assert await site.told() == [told | {"channel": "private-a"}, told | {"channel": "presence-a", "user_id": "7"}]
    assert site.woken
    assert await site.told() == []


async def test_the_gateway_s_own_form_has_the_same_as_json() -> None:
    site = Site()
    site.notes.client_event(said(b'{"on": true}', "presence-a"), "7")
    await site.notes.write()
    [told] = site.outbox.given
    body = msgspec.json.decode(told.body)
    assert (body["id"], body["type"], body["timestamp"]) == (told.id, "client.event", "1970-01-01T00:16:40.000Z")
    assert body["data"] == {
        "tenant": "default",
        "channel": "presence-a",
        "event": "client-typing",
        "data": {"on": True},
        "socketId": "1.2",
        "userId": "7",
        "timestamp": "1970-01-01T00:16:40.000Z",
    }


@pytest.mark.parametrize("wanted", NOTE_TYPES)
async def test_nothing_is_written_that_nobody_wants(wanted: str) -> None:
    site = Site(wanted)
    site.notes.client_event(said(), None)
    site.notes.cache_miss("default", "cache-a")
    site.count(3)
    assert [each["name"] for each in await site.told()] == [wanted.rpartition(".")[2].replace("event", "client_event")]


async def test_the_events_of_one_connection_and_those_of_one_channel_have_their_order() -> None:
    site = Site()
    for source in ("1.2", "1.2", "3.4"):
        site.notes.client_event(said(source=source), None)
    site.count(3)
    site.count(0)
    await site.told()
    keys = [each.key for each in site.outbox.given]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == keys[4] == "default\x1e\x1fnews", "that of channel.occupied and channel.vacated"
    assert len({each.id for each in site.outbox.given}) == 5


async def test_the_count_of_a_small_channel_is_told_at_once_and_of_a_large_one_once_in_five_seconds() -> None:
    site = Site()
    site.count(1, 2, LARGE, LARGE + 1, LARGE + 2, LARGE + 3)
    site.count(1, channel="other")
    assert await site.counts() == [1, 2, LARGE, LARGE + 1, 1]
    site.loop.run_until(site.loop.now + INTERVAL)
    assert await site.counts() == [LARGE + 3], "the last in the end"
    site.count(LARGE + 4)
    assert await site.counts() == []
    site.count(LARGE)
    assert await site.counts() == [LARGE], "it is small again"
    site.loop.run_until(site.loop.now + INTERVAL)
    assert await site.counts() == []
    site.count(LARGE + 5)
    assert await site.counts() == [LARGE + 5]
    site.loop.run_until(site.loop.now + INTERVAL)
    site.count(0)
    assert await site.counts() == [0]
    site.loop.run_until(site.loop.now + INTERVAL)
    assert not site.loop.timers
    assert not site.notes._told


async def test_counts_are_told_by_the_node_that_sends_and_of_no_presence_channel() -> None:
    site = Site()
    site.count(3, channel="presence-a")
    site.sends = False
    site.count(3)
    assert await site.told() == []


async def test_a_missed_cache_is_told_once_in_a_while_for_each_channel() -> None:
    site = Site()
    for channel in ("cache-a", "cache-a", "cache-b"):
        site.notes.cache_miss("default", channel)
    assert await site.told() == [{"name": "cache_miss", "channel": channel} for channel in ("cache-a", "cache-b")]
    site.loop.run_until(site.loop.now + MISS_INTERVAL)
    site.notes.cache_miss("default", "cache-a")
    assert len(await site.told()) == 1


async def test_what_the_outbox_could_not_be_told_is_told_again_under_the_same_id() -> None:
    site = Site()
    site.outbox.away = True
    site.count(1, 2)
    with pytest.raises(StoreUnavailableError):
        await site.notes.write()
    site.outbox.away = False
    site.count(3)
    await site.notes.write()
    ids = [each.id for each in site.outbox.given]
    assert ids[:2] == ids[2:4]
    assert len(set(ids)) == 3
    assert site.notes.lost == 0


async def test_more_than_can_wait_loses_the_oldest_and_is_counted() -> None:
    site = Site()
    site.count(*(n % 2 for n in range(MOST)), 7, 8)
    counts = await site.counts()
    assert (len(counts), counts[-2:], site.notes.lost) == (MOST, [7, 8], 2)


async def test_what_must_not_be_lost_comes_first() -> None:
    site = Site(queue=2 * AT_ONCE)
    site.count(*(n % 2 for n in range(AT_ONCE + 5)))
    await site.notes.write()
    assert site.notes.lost == 5, "half of the outbox is for the others"
    assert len(site.outbox._committed) == AT_ONCE


async def test_it_writes_by_itself_until_it_is_cancelled() -> None:
    site = Site()
    running = asyncio.create_task(site.notes.run())
    await asyncio.sleep(0)
    site.count(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(site.outbox.given) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("away", [False, True])
async def test_a_node_that_goes_writes_what_waits_if_it_can(away: bool) -> None:  # noqa: FBT001 - a parameter
    outbox = Away(Bounds())
    outbox.away = away
    endpoint = Endpoint("a", "http://127.0.0.1:1", (b"key",), types_of(["client.event"]))
    clock = Clock()
    webhooks = Webhooks(outbox, [endpoint], Policy(), clock, Duty("webhooks", LocalLeases(), ttl=10))
    webhooks.notes.client_event(said(), None)
    await webhooks.close()
    assert [each.type for each in outbox.given] == ["client.event"]
