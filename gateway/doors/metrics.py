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
    from gateway.channels.backend import HTTPBackend
    from gateway.channels.channels import Channels
    from gateway.connections import Connections
    from gateway.counts import Counts
    from gateway.delivery.inbox import Inbox
    from gateway.doors.pusher import PusherDoor
    from gateway.export.exporter import Exporter
    from gateway.presence.follower import Follower
    from gateway.presence.tracker import Tracker
    from gateway.webhooks.sender import Webhooks


class NodeCollector(Collector):
    """One node's figures.

    Args:
        connections: its live connections.
        admission: what lets them in.
        counts: what became of those that it did not keep.
        tracker: its hand on the store.
        follower: its reader of the log.
        bus: its ear for other nodes.
        inbox: what waits for users.
        exporter: what takes presence to a database; None where none does.
    """

    def __init__(
        self,
        connections: Connections,
        admission: Admission,
        counts: Counts,
        tracker: Tracker,
        follower: Follower,
        bus: Bus,
        inbox: Inbox,
        exporter: Exporter | None = None,
    ) -> None:
        self._connections = connections
        self._admission = admission
        self._counts = counts
        self._tracker = tracker
        self._follower = follower
        self._bus = bus
        self._inbox = inbox
        self._exporter = exporter
        self.webhooks: Webhooks | None = None
        """What is sent to endpoints; None where there are none."""
        self.channel_auth: HTTPBackend | None = None
        """Who is asked who may be in channels; None where nobody is."""
        self.channels: Channels | None = None
        """Who is in channels; None where there are none."""
        self.pusher: PusherDoor | None = None
        """Pusher's clients; None where there is no application."""

    def collect(self) -> Iterator[Metric]:
        """Read every figure now."""
        yield GaugeMetricFamily("presence_connections", "Live connections to this node.", value=len(self._connections))
        if self.pusher is not None:
            yield GaugeMetricFamily(
                "presence_pusher_anonymous",
                "Clients of the Pusher door that are nobody's, yet; they are not among presence_connections.",
                value=self.pusher.anonymous,
            )
        yield from self._collect_connecting()
        yield from self._collect_limits()
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
        yield from self._collect_queues()
        if self.webhooks is not None:
            yield from _collect_webhooks(self.webhooks, self._tracker.now())
        if self.channel_auth is not None:
            asked, failed = self.channel_auth.asked, self.channel_auth.failed
            yield CounterMetricFamily(
                "presence_channel_auth_requests", "Times that CHANNEL_AUTH_URL was asked.", value=asked
            )
            yield CounterMetricFamily(
                "presence_channel_auth_failures",
                "Times that it could not be reached, did not answer in time, or said nothing that lets in or refuses.",
                value=failed,
            )
        if self._exporter is not None:
            yield from self._collect_export(self._exporter)

    def _collect_export(self, exporter: Exporter) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "presence_export_running", "1 on the node that exports presence to the database.", value=exporter.running
        )
        yield GaugeMetricFamily(
            "presence_export_lag_seconds", "How far the database is behind; 0 on other nodes.", value=exporter.lag
        )
        for name, documentation, value in (
            ("changes", "Changes that this node has written to the database.", exporter.exported),
            ("errors", "Times that the database could not be read or written.", exporter.errors),
            ("gaps", "Times that changes were lost to the export; presence_gaps says which.", exporter.gaps),
        ):
            yield CounterMetricFamily(f"presence_export_{name}", documentation, value=value)

    def _collect_limits(self) -> Iterator[Metric]:
        refusals = CounterMetricFamily(
            "presence_limit_refusals",
            "Connections, requests, watch lists and channels that were refused, by the limit that they were over.",
            labels=["limit"],
        )
        for limit, count in self._connections.quotas.refused.items():
            refusals.add_metric([limit], count)
        if self.channels is not None:
            refusals.add_metric(["channels_per_connection"], self.channels.refused)
        yield refusals
        hooks = CounterMetricFamily(
            "presence_hook_calls",
            "Transitions that hooks were to be called with, by outcome.",
            labels=["outcome"],
        )
        for outcome, count in self._counts.hooks.items():
            hooks.add_metric([outcome], count)
        yield hooks
        users, connections, names = self._connections.watch_sizes()
        yield GaugeMetricFamily("presence_watched_users", "Users whom somebody on this node watches.", value=users)
        yield GaugeMetricFamily(
            "presence_watching_connections", "Connections to this node that watch somebody.", value=connections
        )
        yield GaugeMetricFamily("presence_watch_list_names", "Names on their watch lists, together.", value=names)

    def _collect_queues(self) -> Iterator[Metric]:
        inbox = self._inbox
        yield GaugeMetricFamily(
            "presence_notifications_waiting",
            "Notifications in all queues, on whatever node; looked at twice a minute.",
            value=inbox.depth,
        )
        for name, documentation, value in (
            ("queued", "Notifications that this node has queued.", inbox.queued),
            ("dropped", "Notifications that had to go, because their user's queue was full.", inbox.dropped),
            ("expired", "Notifications that waited for longer than NOTIFICATION_TTL.", inbox.expired),
            ("acknowledged", "Notifications that clients of this node have acknowledged.", inbox.acknowledged),
        ):
            yield CounterMetricFamily(f"presence_notifications_{name}", documentation, value=value)

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


def _collect_webhooks(webhooks: Webhooks, now: int) -> Iterator[Metric]:
    for name, documentation in (
        ("sent", "Webhooks that their endpoint has taken, sent by this node."),
        ("failed", "Attempts that an endpoint did not answer with 2xx."),
        ("retried", "Attempts that were not their event's first."),
        ("dead", "Webhooks that became dead letters."),
        ("dropped", "Dead letters that had to go for newer ones."),
    ):
        counter = CounterMetricFamily(f"presence_webhooks_{name}", documentation, labels=["endpoint"])
        for endpoint, counts in webhooks.counts.items():
            counter.add_metric([endpoint], getattr(counts, name))
        yield counter
    yield CounterMetricFamily(
        "presence_webhooks_let_go",
        "Webhooks that no node had taken from the outbox when it was full.",
        value=webhooks.let_go,
    )
    yield CounterMetricFamily(
        "presence_webhooks_unreadable",
        "Webhooks in a queue that this node could not read; they became dead letters.",
        value=webhooks.unreadable,
    )
    yield CounterMetricFamily(
        "presence_webhooks_lost",
        "Client events, missed caches and counts that came faster than they could be written into the outbox.",
        value=webhooks.notes.lost,
    )
    waiting = GaugeMetricFamily(
        "presence_webhooks_waiting", "Webhooks in a queue; on the node that sends.", labels=["endpoint"]
    )
    lag = GaugeMetricFamily(
        "presence_webhooks_lag_seconds",
        "How long ago the oldest that waits was committed; on the node that sends.",
        labels=["endpoint"],
    )
    stopped = GaugeMetricFamily(
        "presence_webhooks_stopped",
        "1 where an endpoint answered 410 and was not resumed; on the node that sends.",
        labels=["endpoint"],
    )
    for courier in webhooks.couriers:
        oldest_at = courier.oldest_at
        waiting.add_metric([courier.name], courier.waiting)
        lag.add_metric([courier.name], 0 if oldest_at is None else max(0, now - oldest_at) / 1000)
        stopped.add_metric([courier.name], int(courier.stopped is not None))
    yield from (waiting, lag, stopped)


def metrics_handler(collector: NodeCollector) -> Callable[[web.Request], Awaitable[web.Response]]:
    """``GET /metrics``: the node's figures, and those of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    for make in (ProcessCollector, PlatformCollector, GCCollector):
        make(registry=registry)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics
