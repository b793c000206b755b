"""Families of figures, as Prometheus has them, each from the part of a node that counts it."""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from gateway.presence.fanout import Deliveries
    from gateway.presence.view import View
    from gateway.redis.commands import RoundTrips
    from gateway.runtime.measures import Histogram
    from gateway.webhooks.sender import Webhooks


def word(text: str) -> str:
    """A reason as the value of a label."""
    return text.replace(" ", "_")


def histogram(
    name: str, documentation: str, by: Mapping[tuple[str, ...], Histogram], labels: Sequence[str] = ()
) -> HistogramMetricFamily:
    """One family.

    Args:
        name: with its unit.
        documentation: what it is, for people to read.
        by: each histogram, by the values of its labels.
        labels: their names.
    """
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for values, each in by.items():
        family.add_metric(list(values), each.buckets(), each.sum)
    return family


def collect_users(view: View, tenants: int) -> Iterator[Metric]:
    """Who is online on all nodes, by tenant of the largest ones."""
    counts = view.online_counts()
    yield GaugeMetricFamily(
        "presence_users_online",
        "Users who are online, on whatever node, as this one sees them.",
        value=sum(counts.values()),
    )
    yield GaugeMetricFamily(
        "presence_tenants_online", "Tenants with anybody online, on whatever node.", value=len(counts)
    )
    largest = GaugeMetricFamily(
        "presence_tenant_users_online",
        "Users who are online, of the METRICS_TENANTS tenants that have the most.",
        labels=["tenant"],
    )
    for tenant, count in nlargest(tenants, counts.items(), key=lambda item: item[1]):
        largest.add_metric([tenant], count)
    yield largest


def collect_deliveries(of: Mapping[str, Deliveries], said: int) -> Iterator[Metric]:
    """What clients of this node were told.

    Args:
        of: what was told together, by what it is of.
        said: times that somebody was told what was said in a channel.
    """
    delivered = CounterMetricFamily(
        "presence_fanout_deliveries", "Batches that were written, each to one client, by what they tell.", labels=["of"]
    )
    for name, deliveries in of.items():
        delivered.add_metric([name], deliveries.delivered)
    delivered.add_metric(["said"], said)
    yield delivered
    changes: dict[tuple[str, ...], Histogram] = {(name,): deliveries.changes for name, deliveries in of.items()}
    yield histogram("presence_fanout_batch_changes", "How many changes were told together.", changes, ["of"])
    seconds: dict[tuple[str, ...], Histogram] = {(name,): deliveries.seconds for name, deliveries in of.items()}
    yield histogram("presence_fanout_flush_seconds", "How long it took to tell them to all.", seconds, ["of"])


def collect_redis(redis: RoundTrips) -> Iterator[Metric]:
    """What was asked of Redis."""
    yield histogram(
        "presence_redis_round_trip_seconds",
        "From a batch of commands to its answers; without those that wait for something to come.",
        {(): redis.seconds},
    )
    yield histogram("presence_redis_batch_commands", "How many commands went out together.", {(): redis.commands})
    yield CounterMetricFamily(
        "presence_redis_failures", "Batches that Redis did not answer, or not in time.", value=redis.failures
    )


def collect_webhooks(webhooks: Webhooks, now: int) -> Iterator[Metric]:
    """What is sent to endpoints, at `now` in Unix milliseconds."""
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
    dead = GaugeMetricFamily(
        "presence_webhooks_dead_letters", "Dead letters that are kept; on the node that sends.", labels=["endpoint"]
    )
    for courier in webhooks.couriers:
        oldest_at = courier.oldest_at
        waiting.add_metric([courier.name], courier.waiting)
        lag.add_metric([courier.name], 0 if oldest_at is None else max(0, now - oldest_at) / 1000)
        stopped.add_metric([courier.name], int(courier.stopped is not None))
        dead.add_metric([courier.name], courier.dead)
    yield from (waiting, lag, stopped, dead)
    yield histogram(
        "presence_webhooks_attempt_seconds",
        "How long an endpoint took to answer, or not to.",
        {(name,): counts.seconds for name, counts in webhooks.counts.items()},
        ["endpoint"],
    )
