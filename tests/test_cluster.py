"""What concerns users wherever they are connected, as one node hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from conftest import STEP, TIMING, Clock

from gateway import cluster as cluster_module
from gateway.bus import LocalBus, Message
from gateway.cluster import Cluster
from gateway.delivery.inbox import Inbox
from gateway.delivery.notifications import Notification
from gateway.delivery.queue import Limits, Put, Queued
from gateway.delivery.queue_memory import MemoryQueues
from gateway.errors import StoreUnavailableError
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import View


class Queues(MemoryQueues):
    """Queues that are away for some time."""

    away_for = 0

    async def put(self, tenant: str, user_id: str, item: Queued, now: int, **how: Any) -> Put:
        if self.away_for:
            self.away_for -= 1
            raise StoreUnavailableError("away")
        return await super().put(tenant, user_id, item, now, **how)


class Nobody:
    """A node whose connections have just ended."""

    def of_user(self, _tenant: str, _user_id: str) -> Sequence[Any]:
        return ()


class Node:
    def __init__(self, clock: Clock) -> None:
        self.queues, self.bus, nobody = Queues(Limits()), LocalBus(), Nobody()
        inbox = Inbox(self.queues, Limits(), clock, "n1", nobody.of_user)
        self.cluster = Cluster(self.bus, MemoryStore(TIMING), View(), inbox, nobody)  # type: ignore[arg-type]

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
