"""What a node tells Prometheus: read off its parts when it asks, so that it costs nothing in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from gateway.doors import figures
from gateway.presence.model import Ending
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.core import Metric

    from gateway.access.admission import Admission
    from gateway.channels.part import ChannelsPart
    from gateway.connections.connections import Connections
    from gateway.connections.counts import Counts
    from gateway.delivery.inbox import Inbox
    from gateway.doors.http import HTTPDoor
    from gateway.doors.pusher import PusherDoor
    from gateway.export.exporter import Exporter
    from gateway.inprocess.hooks import Hooks
    from gateway.nodes.bus import Bus
    from gateway.presence.fanout import FanOut
    from gateway.presence.figures import LogFigures
    from gateway.presence.follower import Follower
    from gateway.presence.tracker import Tracker
    from gateway.presence.watching import Watching
    from gateway.redis.commands import RoundTrips
    from gateway.runtime.looplag import LoopLag
    from gateway.webhooks.sender import Webhooks


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a node's figures are read off."""

    connections: Connections
    admission: Admission
    counts: Counts
    """What became of connections that it did not keep."""
    http: HTTPDoor
    tracker: Tracker
    follower: Follower
    log: LogFigures
    fanout: FanOut
    watching: Watching
    channels: ChannelsPart
    hooks: Hooks
    bus: Bus
    inbox: Inbox
    loop: LoopLag
    redis: RoundTrips | None
    """What was asked of Redis; None without it."""
    tenants: int
    """Of how many tenants it is told how many users they have online: the largest."""
    exporter: Exporter | None
    """What takes presence to a database; None where none does."""
    webhooks: Webhooks | None
    """What is sent to endpoints; None where there are none."""
    pusher: PusherDoor | None
    """Pusher's clients; None where there is no application."""


class NodeCollector(Collector):
    """One node's figures.

    Args:
        sources: what they are read off.
    """

    def __init__(self, sources: Sources) -> None:
        self._from = sources

    def collect(self) -> Iterator[Metric]:
        """Read every figure now."""
        yield InfoMetricFamily("presence_build", "Which version this is.", value={"version": __version__})
        yield from self._collect_connections()
        yield from self._collect_connecting()
        yield from self._collect_limits()
        yield from figures.collect_users(self._from.follower.view, self._from.tenants)
        yield from self._collect_commits()
        yield from self._collect_log()
        yield from figures.collect_deliveries(
            {
                "presence": self._from.fanout.deliveries,
                "watched": self._from.watching.deliveries,
                "members": self._from.channels.audience.deliveries,
            },
            self._from.channels.audience.said,
        )
        yield from self._collect_node()
        yield from self._collect_queues()
        if self._from.redis is not None:
            yield from figures.collect_redis(self._from.redis)
        if self._from.webhooks is not None:
            yield from figures.collect_webhooks(self._from.webhooks, self._from.tracker.now())
        if (backend := self._from.channels.backend) is not None:
            yield CounterMetricFamily(
                "presence_channel_auth_requests", "Times that CHANNEL_AUTH_URL was asked.", value=backend.asked
            )
            yield CounterMetricFamily(
                "presence_channel_auth_failures",
                "Times that it could not be reached, did not answer in time, or said nothing that lets in or refuses.",
                value=backend.failed,
            )
        if self._from.exporter is not None:
            yield from self._collect_export(self._from.exporter)

    def _collect_connections(self) -> Iterator[Metric]:
        connections = self._from.connections
        live = GaugeMetricFamily("presence_connections", "Live connections to this node, by door.", labels=["door"])
        opened = CounterMetricFamily("presence_connections_opened", "Connections that were let in.", labels=["door"])
        ended = CounterMetricFamily(
            "presence_connections_ended", "Connections that have ended, by how.", labels=["door", "reason"]
        )
        for door, count in connections.opened.items():
            endings = connections.ended.get(door, {})
            live.add_metric([door], count - sum(endings.values()))
            opened.add_metric([door], count)
            for ending in Ending:
                if ending is not Ending.NODE_DIED:  # which the node itself does not live to count
                    ended.add_metric([door, figures.word(ending.value)], endings.get(ending, 0))
        yield from (live, opened, ended)
        if self._from.pusher is not None:
            yield GaugeMetricFamily(
                "presence_pusher_anonymous",
                "Clients of the Pusher door that are nobody's, yet; they are not among presence_connections.",
                value=self._from.pusher.anonymous,
            )

    def _collect_commits(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(
            "presence_commits",
            "Changes that this node has committed: of users (presence) and of members (channels).",
            labels=["log", "kind", "reason"],
        )
        logs = {"presence": self._from.tracker, "channels": self._from.channels.membership.tracker}
        for log, tracker in logs.items():
            commits = tracker.commits
            for kind, counts in (
                ("online", commits.online),
                ("offline", commits.offline),
                ("changed", commits.changed),
            ):
                for reason, count in counts.items():
                    counter.add_metric([log, kind, figures.word(reason)], count)
        yield counter

    def _collect_log(self) -> Iterator[Metric]:
        tracker, commits, now = self._from.tracker, self._from.tracker.commits, self._from.tracker.now()
        yield GaugeMetricFamily(
            "presence_log_lag_seconds",
            "For how long the log has held what this node has not read; looked at with each sweep.",
            value=tracker.log_lag,
        )
        yield figures.histogram(
            "presence_log_delay_seconds", "From a commit, on any node, to this node's view.", {(): self._from.log.delay}
        )
        yield CounterMetricFamily(
            "presence_log_resyncs",
            "Snapshots taken because the log did not go on from where this node was.",
            value=self._from.follower.resyncs,
        )
        yield figures.histogram(
            "presence_leave_detection_seconds",
            "From the last that was there of a user to this node's view without them, by how that was found.",
            {(cause,): each for cause, each in self._from.log.leaves.items()},
            ["cause"],
        )
        yield GaugeMetricFamily(
            "presence_sweep_age_seconds",
            "How long ago this node last finished a sweep, which commits what time has changed.",
            value=math.inf if commits.swept_at is None else max(0, now - commits.swept_at) / 1000,
        )
        yield figures.histogram(
            "presence_sweep_lag_seconds",
            "From when a user's time was over to when this node committed that they have gone.",
            {(): commits.late},
        )

    def _collect_node(self) -> Iterator[Metric]:
        tracker = self._from.tracker
        yield GaugeMetricFamily(
            "presence_store_up", "1 while the store can be reached.", value=int(tracker.away is None)
        )
        yield GaugeMetricFamily(
            "presence_clock_offset_seconds",
            "How far this machine's clock is behind the store's.",
            value=tracker.clock_offset / 1000,
        )
        yield GaugeMetricFamily(
            "presence_draining", "1 while this node lets its clients go.", value=int(self._from.connections.draining)
        )
        yield CounterMetricFamily(
            "presence_bus_gaps", "Times that messages of other nodes were missed.", value=self._from.bus.gaps
        )
        yield figures.histogram(
            "presence_event_loop_lag_seconds",
            "How late the event loop was, looked at four times a second.",
            {(): self._from.loop.late},
        )
        refused = CounterMetricFamily(
            "presence_http_refusals", "HTTP calls that were answered with an error, by its code.", labels=["code"]
        )
        for code, count in self._from.http.refused.items():
            refused.add_metric([code], count)
        yield refused

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
        for limit, count in self._from.connections.quotas.refused.items():
            refusals.add_metric([limit], count)
        refusals.add_metric(["channels_per_connection"], self._from.channels.channels.refused)
        yield refusals
        hooks = CounterMetricFamily(
            "presence_hook_calls",
            "Transitions that hooks were to be called with, by outcome.",
            labels=["outcome"],
        )
        for outcome, count in self._from.counts.hooks.items():
            hooks.add_metric([outcome], count)
        yield hooks
        users, connections, names = self._from.connections.watch_sizes()
        yield GaugeMetricFamily("presence_watched_users", "Users whom somebody on this node watches.", value=users)
        yield GaugeMetricFamily(
            "presence_watching_connections", "Connections to this node that watch somebody.", value=connections
        )
        yield GaugeMetricFamily("presence_watch_list_names", "Names on their watch lists, together.", value=names)

    def _collect_queues(self) -> Iterator[Metric]:
        inbox = self._from.inbox
        queues = GaugeMetricFamily("presence_queue_length", "What waits in this node, by where.", labels=["queue"])
        for name, waiting in (
            ("redis", 0 if self._from.redis is None else self._from.redis.waiting),
            ("view", self._from.follower.waiting),
            ("bus", self._from.bus.waiting),
            ("hooks", self._from.hooks.waiting),
        ):
            queues.add_metric([name], waiting)
        yield queues
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
            ("unreadable", "Notifications that this node could not read, and put aside.", inbox.unreadable),
        ):
            yield CounterMetricFamily(f"presence_notifications_{name}", documentation, value=value)

    def _collect_connecting(self) -> Iterator[Metric]:
        too_slow = CounterMetricFamily(
            "presence_connections_too_slow",
            "Connections closed with 4008: their clients did not read, and more waited for them than MAX_SEND_BUFFER.",
            labels=["door"],
        )
        for door, count in self._from.counts.too_slow.items():
            too_slow.add_metric([door], count)
        yield too_slow
        refused = CounterMetricFamily(
            "presence_connections_refused", "Connections that were not let in, by why.", labels=["door", "code"]
        )
        for (door, code), count in self._from.counts.refused.items():
            refused.add_metric([door, code], count)
        yield refused
        admission = self._from.admission
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
