"""Events that an application sends to one user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway import wire
from gateway.errors import InvalidPayloadError
from gateway.presence.reads import check_ids

if TYPE_CHECKING:
    from gateway.connections.connections import Connections


class Delivery(msgspec.Struct, frozen=True):
    """What became of a notification."""

    sent: bool
    """True: it has been sent, or is kept until it can be."""
    method: Literal["realtime", "queued"]
    """``realtime`` if the user is connected, ``queued`` if it waits for them to come online."""
    acknowledged: bool = False
    """Whether one of the user's clients has acknowledged it in time. False if nobody asked to wait for that."""


class Notification(msgspec.Struct, frozen=True):
    """An event for all connections of one user, as it travels between nodes."""

    tenant: str
    user_id: str
    event: str
    data: msgspec.Raw
    """As JSON: encoded once, for recipients of any kind."""
    nodes: tuple[str, ...] = ()
    """The nodes that had connections of the user, as the store knew."""
    id: str = ""
    """Its id in the queue, if one of these nodes finds that the user has left it, and queues the notification."""

    @classmethod
    def of(cls, tenant: str, user_id: str, event: Any, data: object) -> Notification:
        """Check the parts of a notification, and encode its data.

        Raises:
            InvalidPayloadError: the tenant or the user id is not valid; `event` is empty, too long or one of the
                gateway's own; or `data` cannot be written as JSON, or is nested too deep.
        """
        check_ids(tenant, user_id)
        if not isinstance(event, str) or not event or event in wire.RESERVED_EVENTS:
            raise InvalidPayloadError(f"{event!r} is no name for a notification: it is empty or the gateway's own")
        if len(event) > wire.MAX_EVENT:
            raise InvalidPayloadError(f"an event's name may have {wire.MAX_EVENT} characters; this has {len(event)}")
        return cls(tenant, user_id, event, msgspec.Raw(wire.encode_given(data)))

    def deliver(self, connections: Connections, mark: Any = None) -> int:
        """Write it to the user's connections to this node, and return how many there were.

        Args:
            connections: this node's.
            mark: how far a client has been told when it has this, for recovery; None without recovery.
        """
        recipients = connections.of_user(self.tenant, self.user_id)
        for live in recipients:
            live.emit(self.event, self.data, mark)
        return len(recipients)

    def reading(self) -> tuple[tuple[tuple[str, str, object], ...], bytes, frozenset[str]]:
        """Return its targets, its text and the clients to skip, in the form that recovery keeps."""
        return (("user", self.tenant, self.user_id),), wire.encode((self.event, self.data)), frozenset()
