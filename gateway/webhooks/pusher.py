"""Webhooks as Pusher has them: https://pusher.com/docs/channels/server_api/webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway import wire
from gateway.presence.model import DEFAULT_TENANT
from gateway.pusher.data import to_text
from gateway.webhooks.event import CACHE_MISS, CLIENT_EVENT, SUBSCRIPTION_COUNT

if TYPE_CHECKING:
    from gateway.webhooks.event import Message

NAMES = {
    "channel.occupied": "channel_occupied",
    "channel.vacated": "channel_vacated",
    "member.added": "member_added",
    "member.removed": "member_removed",
    CLIENT_EVENT: "client_event",
    CACHE_MISS: "cache_miss",
    SUBSCRIPTION_COUNT: "subscription_count",
}
"""Pusher's names of events, by their types."""


class _Data(wire.Body):
    tenant: str
    channel: str
    user_id: str | None = None
    event: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    """Of a client event; empty for what has none, which null is not."""
    socket_id: str | None = None
    subscription_count: int | None = None


class _Body(wire.Body):
    data: _Data


_decoder = msgspec.json.Decoder(_Body)


def body_of(message: Message, now: int) -> bytes | None:
    """An event as Pusher's receivers know it.

    Args:
        message: the event, of one of these types.
        now: when it is sent, in Unix milliseconds: their libraries refuse what was sent more than five minutes ago.

    Returns:
        What to send, as JSON; None for what is of another tenant than the Pusher application.
    """
    data = _decoder.decode(message.body).data
    if data.tenant != DEFAULT_TENANT:
        return None
    event: dict[str, Any] = {"name": NAMES[message.type], "channel": data.channel}
    given = {
        "event": data.event,
        "data": to_text(data.data) if bytes(data.data) else None,
        "socket_id": data.socket_id,
        "user_id": data.user_id,
        "subscription_count": data.subscription_count,
    }
    event |= {name: value for name, value in given.items() if value is not None}
    return wire.encode({"time_ms": now, "events": [event]})
