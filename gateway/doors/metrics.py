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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.core import Metric

    from gateway.admission import Admission
    from gateway.bus import Bus
    from gateway.connections import Connections
    from gateway.counts import Counts
    from gateway.presence.follower import Follower
    from gateway.presence.tracker import Tracker


class NodeCollector(Collector):
    """One node's figures.

    Args:
        connections: its live connections.
        admission: what lets them in.
        counts: what became of those that it did not keep.
        tracker: its hand on the store.
        follower: its reader of the log.
        bus: its ear for other nodes.
    """

    def __init__(
        self,
        connections: Connections,
        admission: Admission,
        counts: Counts,
        tracker: Tracker,
        follower: Follower,
        bus: Bus,
    ) -> None:
        self._connections = connections
        self._admission = admission
        self._counts = counts
        self._tracker = tracker
        self._follower = follower
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        """Read every figure now."""
        yield GaugeMetricFamily("presence_connections", "Live connections to this node.", value=len(self._connections))
        yield from self._collect_connecting()
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

    def _collect_connecting(self) -> Iterator[Metric]:
        too_slow = CounterMetricFamily(
            "presence_connections_too_slow",
            "Connections closed with 4008: their clients did not read, and more waited for them than MAX_SEND_BUFFER.",
            labels=["door"],
        )
        for door, count in self._counts.too_slow.items():
            too_slow.add_metric([door], count)
        yield too_slow
        refused = CounterMetricFamily(
            "presence_connections_refused", "Connections that were not let in, by why.", labels=["door", "code"]
        )
        for (door, code), count in self._counts.refused.items():
            refused.add_metric([door, code], count)
        yield refused
        admission = self._admission
        yield GaugeMetricFamily(
            "presence_admission_waiting", "Handshakes that wait for their turn.", value=admission.waiting
        )
        yield SummaryMetricFamily(
            "presence_admission_wait_seconds",
            "How long handshakes waited for their turn; those that did not have to are not counted.",
            count_value=admission.waited,
            sum_value=admission.waited_seconds,
        )
        yield CounterMetricFamily(
            "presence_admission_refusals",
            "Handshakes over CONNECT_RATE that were asked to come back.",
            value=admission.refused,
        )
        yield CounterMetricFamily(
            "presence_admission_departures", "Clients that left while they waited for their turn.", value=admission.left
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
