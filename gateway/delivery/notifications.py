"""Events that an application sends to one user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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
    """True where it was written to at least one connection."""
    method: Literal["realtime"] | None
    """``realtime`` where it was; None where the user has no connection, and it is gone."""


def notify(connections: Connections, tenant: str, user_id: str, event: str, data: object) -> Delivery:
    """Send an event to every live connection of a user on this node.

    Raises:
        InvalidPayloadError: `event` is empty or one of the gateway's own, or `data` cannot be written as JSON.
    """
    if not event or event in _RESERVED:
        raise InvalidPayloadError(f"{event!r} is no name for a notification: it is empty or the gateway's own")
    try:
        payload = msgspec.Raw(wire.encode(data))  # once, whatever the recipients' codecs
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayloadError(f"data must be JSON: {error}") from None
    recipients = connections.of_user(tenant, user_id)
    for live in recipients:
        live.emit(event, payload)
    return Delivery(sent=bool(recipients), method="realtime" if recipients else None)
