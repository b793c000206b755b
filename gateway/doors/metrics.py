"""What a node tells Prometheus: read off its parts when it asks, so that it costs nothing in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.core import Metric

    from gateway.bus import Bus
    from gateway.connections import Connections
    from gateway.presence.follower import Follower
    from gateway.presence.tracker import Tracker


class NodeCollector(Collector):
    """One node's figures.

    Args:
        connections: its live connections.
        tracker: its hand on the store.
        follower: its reader of the log.
        bus: its ear for other nodes.
    """

    def __init__(self, connections: Connections, tracker: Tracker, follower: Follower, bus: Bus) -> None:
        self._connections = connections
        self._tracker = tracker
        self._follower = follower
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        """Read every figure now."""
        yield GaugeMetricFamily("presence_connections", "Live connections to this node.", value=len(self._connections))
        yield GaugeMetricFamily(
            "presence_store_up", "1 while the store can be reached.", value=int(self._tracker.away is None)
        )
        yield GaugeMetricFamily(
            "presence_clock_offset_seconds",
            "How far this machine's clock is behind the store's.",
            value=self._tracker.clock_offset / 1000,
        )
        yield CounterMetricFamily(
            "presence_log_resyncs",
            "Snapshots taken because the log did not go on from where this node was.",
            value=self._follower.resyncs,
        )
        yield CounterMetricFamily(
            "presence_bus_gaps", "Times that messages of other nodes were missed.", value=self._bus.gaps
        )


def metrics_handler(collector: NodeCollector) -> Callable[[web.Request], Awaitable[web.Response]]:
    """``GET /metrics``: the node's figures, and those of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    for make in (ProcessCollector, PlatformCollector, GCCollector):
        make(registry=registry)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics
