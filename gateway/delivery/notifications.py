"""Events that an application sends to one user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway import wire
from gateway.errors import InvalidPayloadError
from gateway.presence.model import Event

if TYPE_CHECKING:
    from gateway.connections import Connections

_RESERVED = frozenset({*Event, *wire.OWN_EVENTS, *wire.SOCKET_IO_EVENTS})


class Delivery(msgspec.Struct, frozen=True):
    """What became of a notification."""

    sent: bool
    """True where it was written to a connection here, or went out to other nodes for a user who is online."""
    method: Literal["realtime"] | None
    """``realtime`` where it was; None where the user has no connection, and it is gone."""


class Notification(msgspec.Struct, frozen=True):
    """An event for all connections of one user, as it travels between nodes."""

    tenant: str
    user_id: str
    event: str
    data: msgspec.Raw
    """As JSON: encoded once, whatever the recipients' codecs."""

    @classmethod
    def of(cls, tenant: str, user_id: str, event: str, data: object) -> Notification:
        """Check and encode one.

        Raises:
            InvalidPayloadError: `event` is empty or one of the gateway's own, or `data` cannot be written as JSON.
        """
        if not event or event in _RESERVED:
            raise InvalidPayloadError(f"{event!r} is no name for a notification: it is empty or the gateway's own")
        try:
            return cls(tenant, user_id, event, msgspec.Raw(wire.encode(data)))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPayloadError(f"data must be JSON: {error}") from None

    def deliver(self, connections: Connections, mark: Any = None) -> int:
        """Write it to the user's connections to this node, and return to how many.

        Args:
            connections: this node's.
            mark: up to where clients have been told with it; None where nobody recovers.
        """
        recipients = connections.of_user(self.tenant, self.user_id)
        for live in recipients:
            live.emit(self.event, self.data, mark)
        return len(recipients)

    def reading(self) -> tuple[tuple[tuple[str, str, object], ...], bytes, frozenset[str]]:
        """Whom it is for, its text, and who is skipped, as recovery keeps it."""
        return (("user", self.tenant, self.user_id),), wire.encode((self.event, self.data)), frozenset()
