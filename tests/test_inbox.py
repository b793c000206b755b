"""What waits, on its way to connections: order, once to each, retries, and acknowledgements that are told later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import pytest
from conftest import Clock, eventually

from gateway import wire
from gateway.delivery import inbox as inbox_module
from gateway.delivery.inbox import UNTOLD, Inbox, check_wait, new_id
from gateway.delivery.notifications import Notification
from gateway.delivery.queue import Found, Limits, Queued
from gateway.delivery.queue_memory import MemoryQueues
from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.runtime.tasks import end

LIMITS = Limits(size=3, bytes=1000, ttl=60_000, largest=500)


class Queues(MemoryQueues):
    """Queues that can be away."""

    away = stuck = False
    reads = 0

    async def read(self, tenant: str, user_id: str, now: int) -> Found:
        self._check()
        self.reads += 1
        found = await super().read(tenant, user_id, now)
        await asyncio.sleep(0)  # as one over a network would
        return found

    async def acknowledge(self, tenant: str, user_id: str, ids: Collection[str], now: int) -> Sequence[str]:
        self._check()
        if self.stuck:
            await asyncio.Event().wait()
        return await super().acknowledge(tenant, user_id, ids, now)

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("away")


class Tab:
    def __init__(self) -> None:
        self.handed: list[list[str]] = []

    def hand(self, queued: Sequence[Queued]) -> Sequence[Queued]:
        self.handed.append([each.id for each in queued])
        return queued


class House:
    def __init__(self, clock: Clock) -> None:
        self.queues = Queues(LIMITS)
        self.tabs: list[Tab] = []
        self.inbox = Inbox(self.queues, LIMITS, clock, "n1", lambda _tenant, user: self.tabs if user == "alice" else [])

    async def put(self, item_id: str, data: object = None) -> None:
        await self.inbox.put(Notification.of("acme", "alice", "said", data), item_id)


@pytest.fixture
async def house(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(inbox_module, "RETRY", 0.01)
    house = House(clock)
    running = asyncio.create_task(house.inbox.run())
    yield house
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await house.inbox.close()


async def test_what_is_put_is_handed_to_who_is_there(house: House) -> None:
    house.tabs = [Tab(), Tab()]
    await house.put("a")
    assert house.inbox.is_looking("acme", "alice"), "what is said now has to come after it"
    await house.put("b")
    await eventually(lambda: not house.inbox.is_looking("acme", "alice"))
    for tab in house.tabs:
        assert tab.handed[-1] == ["a", "b"]


async def test_nobody_is_looked_for_who_is_not_there(house: House) -> None:
    await house.put("a")
    assert not house.inbox.is_looking("acme", "alice")
    house.inbox.look_soon("acme", "alice")
    await eventually(lambda: not house.inbox.is_looking("acme", "alice"))
    assert house.queues.reads == 0


async def test_what_cannot_be_read_is_handed_over_later(house: House) -> None:
    await house.put("a")
    house.tabs, house.queues.away = [Tab()], True
    assert await house.inbox.fetch("acme", "alice") == ()
    await asyncio.sleep(0.05)
    assert house.tabs[0].handed == []
    house.queues.away = False
    await eventually(lambda: house.tabs[0].handed)
    assert house.tabs[0].handed == [["a"]]


async def test_an_acknowledgement_is_told_when_the_queues_are_back(house: House) -> None:
    await house.put("a")
    await house.put("b")
    house.queues.away = True
    house.inbox.acknowledge("acme", "alice", "a")
    await asyncio.sleep(0.05)
    house.inbox.acknowledge("acme", "alice", "b")
    house.queues.away = False
    await eventually(lambda: not house.queues.waits("acme", "alice"))
    assert house.inbox.acknowledged == 2


async def test_what_was_acknowledged_last_is_told_at_the_end(clock: Clock) -> None:
    house = House(clock)
    await house.put("a")
    house.inbox.acknowledge("acme", "alice", "a")
    await house.inbox.close()
    assert not house.queues.waits("acme", "alice")


async def test_what_was_being_told_as_the_node_stopped_is_told_at_the_end(clock: Clock) -> None:
    house = House(clock)
    await house.put("a")
    house.queues.stuck = True
    running = asyncio.create_task(house.inbox.run())
    house.inbox.acknowledge("acme", "alice", "a")
    await eventually(lambda: not house.inbox._untold)
    await end([running])
    house.queues.stuck = False
    await house.inbox.close()
    assert not house.queues.waits("acme", "alice")


async def test_a_client_that_acknowledges_without_end_fills_no_memory(clock: Clock) -> None:
    house = House(clock)
    for n in range(3 * UNTOLD):
        house.inbox.acknowledge("acme", "mallory", str(n))
    assert [len(ids) for ids in house.inbox._untold.values()] == [UNTOLD]


async def test_an_acknowledgement_is_awaited(house: House) -> None:
    item_id = new_id(awaited=True)
    await house.put(item_id)
    waiting = asyncio.create_task(house.inbox.acknowledgement(item_id, 5))
    await asyncio.sleep(0)
    house.inbox.acknowledge("acme", "alice", item_id)
    assert await waiting is True
    assert await house.inbox.acknowledgement("w-never", 0.02) is False
    assert house.inbox._waiting == {}


async def test_figures(house: House, clock: Clock) -> None:
    for n in range(5):
        await house.put(str(n))
    clock.advance(s=60)
    await house.inbox.fetch("acme", "alice")
    inbox = house.inbox
    assert (inbox.queued, inbox.dropped, inbox.expired, inbox.acknowledged) == (5, 2, 3, 0)


async def test_what_is_too_large_to_be_kept_is_refused_and_takes_nothing_with_it(house: House) -> None:
    await house.put("a")
    with pytest.raises(InvalidPayloadError, match="may have 500 bytes"):
        await house.put("b", "x" * 500)
    assert [each.id for each in await house.inbox.fetch("acme", "alice")] == ["a"]


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "5", True, None])
def test_a_time_that_is_none_is_refused(wait: object) -> None:
    with pytest.raises(InvalidPayloadError, match="seconds"):
        check_wait(wait)


def nested(depth: int) -> Any:
    """So many lists, each in the other."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_brackets_in_texts_nest_nothing() -> None:
    said: list[Any] = [nested(wire.MAX_NESTING), "[{" * 500, ["\\", '\\"[[', "[" * 500], [[]] * 500]
    for data in said:
        assert bytes(Notification.of("acme", "alice", "said", data).data) == wire.encode(data)


@pytest.mark.parametrize(
    "of",
    [
        lambda: Notification.of("acme", "", "said", 1),
        lambda: Notification.of("acme", "a" * 129, "said", 1),
        lambda: Notification.of("acme", "a\n", "said", 1),
        lambda: Notification.of("", "alice", "said", 1),
        lambda: Notification.of("a\x1fb", "alice", "said", 1),
        lambda: Notification.of("acme", "alice", "", 1),
        lambda: Notification.of("acme", "alice", "e" * 257, 1),
        lambda: Notification.of("acme", "alice", 5, 1),
        lambda: Notification.of("acme", "alice", "user-online", 1),
        lambda: Notification.of("acme", "alice", "disconnect", 1),
        lambda: Notification.of("acme", "alice", "said", object()),
        lambda: Notification.of("acme", "alice", "said", {1.5: object}),
        lambda: Notification.of("acme", "alice", "said", nested(wire.MAX_NESTING + 1)),
        lambda: Notification.of("acme", "alice", "said", {"a": nested(wire.MAX_NESTING)}),
    ],
)
def test_what_is_no_notification_is_refused(of: Callable[[], Notification]) -> None:
    with pytest.raises(InvalidPayloadError):
        of()
