"""What operators ask and say of nodes by HTTP: which there are, how they are, and that one drains or does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gateway import wire
from gateway.doors.http import Call, Caller, Operation

if TYPE_CHECKING:
    from gateway.operators.nodes import KnownNode, Nodes, Report
    from gateway.presence.clock import Clock
    from gateway.presence.view import View


class WaitingWebhooks(wire.Body):
    """What waits for one endpoint, on the node that sends."""

    endpoint: str
    waiting: int
    """Events in its queue."""
    lag: float
    """Seconds since the oldest of them was committed; 0 where none waits."""
    stopped: str | None
    """Why nothing is sent to it; null where it is."""


class NodeReport(wire.Body):
    """What a node says of itself."""

    version: str
    compiled: bool
    """Whether it runs compiled."""
    pid: int
    started_at: wire.Timestamp
    connections: int
    users: int
    """Of these connections."""
    sockets: dict[str, int]
    """Clients of Socket.IO, by namespace."""
    draining: bool
    store_away: str | None
    """Why it cannot reach the store; null where it can."""
    clock_offset: float
    """Seconds that its machine's clock is behind the store's."""
    log_lag: float | None
    """Seconds that it needed to show what was committed when it was asked, or is behind; null where nobody knows."""
    webhooks: list[WaitingWebhooks] | None
    """Where it is the node that sends them; null where it is not."""


class Node(wire.Body):
    """A node that holds a lease, or answers."""

    id: str
    here: bool
    """Whether it is the one that answers this request."""
    lease_until: wire.Timestamp | None
    """Null where it holds none, or the store is away."""
    report: NodeReport | None
    """Null where it did not answer in time."""
    differs: list[str]
    """Names of the settings that it has otherwise than the node that answers, and is to have alike."""


class NodeList(wire.Body):
    """The nodes of the cluster, by name."""

    nodes: list[Node]
    timestamp: wire.Timestamp


class Overview(wire.Body):
    """What the operators' page shows of everything."""

    online: int
    """Users of the tenant who are online."""
    tenant: str
    access: Literal["full", "read"]
    """What the key may do that this was asked with."""
    nodes: list[Node]
    timestamp: wire.Timestamp


class DrainQuery(wire.Body):
    """How a node is drained."""

    force: bool = False
    """Whether it is to drain also where no other node takes clients."""


class Draining(wire.Body):
    """A node that has begun to drain, or to take clients again."""

    node: str
    draining: bool
    connections: int
    """How many it had when it began."""


def admin_operations(nodes: Nodes, view: View, clock: Clock) -> tuple[Operation, ...]:
    """The rows of the HTTP door's table that are for operators.

    A service key is asked for. Nodes are not of one tenant; of users only those of the tenant that is asked for count.

    Args:
        nodes: those that there are.
        view: who is online.
        clock: the time, in Unix milliseconds.
    """

    async def look() -> list[Node]:
        return [_node(known, here=known.node == nodes.node) for known in await nodes.look()]

    async def show(_call: Call) -> NodeList:
        return NodeList(nodes=await look(), timestamp=wire.timestamp(clock()))

    async def survey(call: Call) -> Overview:
        return Overview(
            nodes=await look(),
            online=view.online_count(call.tenant),
            tenant=call.tenant,
            access="read" if call.reads_only else "full",
            timestamp=wire.timestamp(clock()),
        )

    async def drain(call: Call) -> Draining:
        return _draining(await nodes.drain(call.path["id"], force=call.query.force))

    async def undrain(call: Call) -> Draining:
        return _draining(await nodes.undrain(call.path["id"]))

    return (
        Operation(
            method="GET",
            path="/api/admin/nodes",
            summary="The nodes of the cluster, their leases, and what each says of itself",
            caller=Caller.SERVICE,
            answers=NodeList,
            handler=show,
        ),
        Operation(
            method="GET",
            path="/api/admin/overview",
            summary="How many users are online, the nodes, and what the key may do",
            caller=Caller.SERVICE,
            answers=Overview,
            handler=survey,
        ),
        Operation(
            method="POST",
            path="/api/admin/nodes/{id}/drain",
            summary="Have a node take no more clients, and let those it has go to others, as SIGTERM does",
            caller=Caller.SERVICE,
            query=DrainQuery,
            answers=Draining,
            handler=drain,
        ),
        Operation(
            method="POST",
            path="/api/admin/nodes/{id}/undrain",
            summary="Have a node that was drained take clients again",
            caller=Caller.SERVICE,
            answers=Draining,
            handler=undrain,
        ),
    )


def _draining(report: Report) -> Draining:
    return Draining(node=report.node, draining=report.draining, connections=report.connections)


def _node(known: KnownNode, *, here: bool) -> Node:
    return Node(
        id=known.node,
        here=here,
        lease_until=wire.optional_timestamp(known.lease_until),
        report=None if known.report is None else _report(known.report),
        differs=list(known.differs),
    )


def _report(report: Report) -> NodeReport:
    return NodeReport(
        version=report.version,
        compiled=report.compiled,
        pid=report.pid,
        started_at=wire.timestamp(report.started_at),
        connections=report.connections,
        users=report.users,
        sockets=report.sockets,
        draining=report.draining,
        store_away=report.away,
        clock_offset=report.clock_offset / 1000,
        log_lag=None if report.log_lag is None else report.log_lag / 1000,
        webhooks=None
        if report.webhooks is None
        else [
            WaitingWebhooks(endpoint=each.endpoint, waiting=each.events, lag=each.lag / 1000, stopped=each.stopped)
            for each in report.webhooks
        ],
    )
