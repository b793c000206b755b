"""What is told of one user alone, to a backend or to that user: connections, sessions, and why a status is.

Types of the wire, as `wire` has the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from gateway.presence.model import Status
from gateway.wire import MAX_IDS, Body, OwnUserStatus, Timestamp, optional_timestamp, own_user_status, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.presence import model
    from gateway.presence.store import Explanation


class GetSessions(Body):
    """Which of a user's sessions."""

    limit: Annotated[int, Meta(ge=1, le=MAX_IDS)] = 20
    """The newest so many."""


class ExplainedConnection(Body):
    """One live connection."""

    id: str
    node: str
    door: str
    connected_at: Timestamp
    last_active: Timestamp | None
    """When its client last asked for something; null where its node does not say that in time."""
    user_agent: str | None
    page: str | None
    """`page` of its meta, where that is a text."""
    meta: dict[str, Any] | None
    """What its client said of itself, in its handshake or with its last heartbeat that said anything."""


class Device(Body):
    """What a connection's client was, by its own account."""

    door: str
    user_agent: str | None
    page: str | None
    meta: dict[str, Any] | None


class UserSession(Body):
    """One time that a user was online, also where nobody else was told."""

    begun_at: Timestamp = msgspec.field(name="from")
    ended_at: Timestamp | None = msgspec.field(name="to")
    """Null while it lasts."""
    reason: str | None
    """What took the user offline; null while it lasts."""
    connections: int
    """How many connections were opened in it."""
    device: Device | None
    """Of the connection that opened it; null where none did: by heartbeats over HTTP, or a backend."""


class UserSessions(Body):
    """A user's sessions, newest first."""

    sessions: list[UserSession]


class ExplainedTransition(Body):
    """One committed change."""

    version: int
    was: Status
    status: Status
    timestamp: Timestamp
    reason: str


class Explained(Body):
    """Why a user has the status it has."""

    status: OwnUserStatus
    because: str
    connections: list[ExplainedConnection]
    leases: dict[str, Timestamp]
    """Until when each node of the connections holds its lease."""
    grace_until: Timestamp | None
    ttl_until: Timestamp | None
    transitions: list[ExplainedTransition]
    """The most recent, oldest first."""


def user_sessions(sessions: Iterable[model.OnlineSession]) -> UserSessions:
    """A user's sessions, for that user and for backends alone."""
    return UserSessions(
        sessions=[
            UserSession(
                begun_at=timestamp(session.begun_at),
                ended_at=optional_timestamp(session.ended_at),
                reason=session.reason,
                connections=session.connections,
                device=None if session.device is None else _device(session.device),
            )
            for session in sessions
        ]
    )


def _device(device: model.Device) -> Device:
    return Device(door=device.door, user_agent=device.user_agent, page=device.page, meta=device.meta)


def explained(explanation: Explanation, connections: Iterable[model.Connection] | None = None) -> Explained:
    """Why a user has the status it has.

    Args:
        explanation: what the store says.
        connections: its connections, with what else is known of them; None where nothing is.
    """
    return Explained(
        status=own_user_status(explanation.status),
        because=explanation.because,
        connections=[
            ExplainedConnection(
                id=connection.id,
                node=connection.node,
                door=connection.door,
                connected_at=timestamp(connection.connected_at),
                last_active=optional_timestamp(connection.active_at),
                user_agent=connection.user_agent,
                page=connection.page,
                meta=connection.meta,
            )
            for connection in (explanation.connections if connections is None else connections)
        ],
        leases={node: timestamp(until) for node, until in explanation.leases.items()},
        grace_until=optional_timestamp(explanation.grace_until),
        ttl_until=optional_timestamp(explanation.status.ttl_until),
        transitions=[
            ExplainedTransition(
                version=transition.now.version,
                was=transition.was,
                status=transition.now.status,
                timestamp=timestamp(transition.at),
                reason=transition.reason,
            )
            for transition in explanation.transitions
        ],
    )
