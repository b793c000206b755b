"""What concerns users wherever they are connected, as one node hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from conftest import STEP, TIMING, Clock

from gateway.delivery.inbox import Inbox
from gateway.delivery.notifications import Notification
from gateway.delivery.queue import Limits, Put, Queued
from gateway.delivery.queue_memory import MemoryQueues
from gateway.errors import StoreUnavailableError
from gateway.nodes import cluster as cluster_module
from gateway.nodes.bus import LocalBus, Message
from gateway.nodes.cluster import Cluster
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import View


class Queues(MemoryQueues):
    """Queues that are away for some time, and that know on which other nodes a user is."""

    away_for = 0
    nodes: tuple[str, ...] = ()

    async def put(self, tenant: str, user_id: str, item: Queued, now: int, **how: Any) -> Put:
        if self.away_for:
            self.away_for -= 1
            raise StoreUnavailableError("away")
        put = await super().put(tenant, user_id, item, now, **how)
        return msgspec.structs.replace(put, nodes=self.nodes)


class Tab:
    def __init__(self) -> None:
        self.handed: list[str] = []

    def hand(self, queued: Sequence[Queued]) -> Sequence[Queued]:
        self.handed += [each.event for each in queued]
        return queued


class Connections:
    def __init__(self, tabs: Sequence[Tab]) -> None:
        self.tabs = tabs

    def of_user(self, _tenant: str, _user_id: str) -> Sequence[Tab]:
        return self.tabs


class Bus(LocalBus):
    """A bus that keeps what it was to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def publish(self, topic: str, data: Any) -> None:
        super().publish(topic, data)
        self.said.append(topic)


class Node:
    def __init__(self, clock: Clock, *tabs: Tab) -> None:
        self.queues, self.bus, connections = Queues(Limits()), Bus(), Connections(tabs)
        self.inbox = Inbox(self.queues, Limits(), clock, "n1", connections.of_user)
        self.cluster = Cluster(self.bus, MemoryStore(TIMING), View(), self.inbox, connections)  # type: ignore[arg-type]

    async def hear(self) -> None:
        """Hear of a notification for one whom the store still believes to be connected here."""
        said = msgspec.structs.replace(Notification.of("acme", "alice", "said", 1), nodes=("n1",), id="n-1")
        await self.bus.hand_on(Message("n2", "notification", msgspec.Raw(msgspec.json.encode(said))))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "RETRY", 0.001)


async def test_what_came_too_late_for_a_connection_is_queued_before_its_node_goes(clock: Clock) -> None:
    node = Node(clock)
    node.queues.away_for = 3
    await node.hear()
    await node.cluster.close(STEP)
    assert node.queues.waits("acme", "alice")


async def test_a_node_that_goes_waits_for_a_store_that_is_away_for_a_time_only(clock: Clock) -> None:
    node = Node(clock)
    node.queues.away_for = 1_000_000
    await node.hear()
    await node.cluster.close(0.01)
    assert not node.cluster._later


async def test_what_is_queued_behind_others_is_handed_over_on_other_nodes_too(clock: Clock) -> None:
    tab = Tab()
    node = Node(clock, tab)
    node.queues.nodes = ("n2",)
    looking = node.inbox.look_soon("acme", "alice")
    delivery = await node.cluster.notify("acme", "alice", "said", 1)
    await looking
    assert delivery.method == "realtime"
    assert tab.handed == ["said"]
    assert node.bus.said == ["look"]
