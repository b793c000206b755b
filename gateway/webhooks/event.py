"""The events that webhooks carry: one for each committed transition, as others see it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from gateway import wire
from gateway.channels.changes import EVENTS as CHANNEL_EVENTS
from gateway.channels.changes import ChannelChange, change_of
from gateway.channels.wire import member_info
from gateway.presence.model import PART, Event, Transition
from gateway.redis.keys import SEPARATOR, user_of

TYPES = {
    Event.ONLINE: "user.online",
    Event.OFFLINE: "user.offline",
    Event.CHANGED: "user.status_changed",
}
"""The types of webhooks about presence, by the event that clients hear."""

CHANNEL_TYPES = {name: name.replace("-", ".") for name in CHANNEL_EVENTS}
"""The types of webhooks about channels, by the event that hooks hear."""

ALL_TYPES = (*TYPES.values(), *CHANNEL_TYPES.values())

CLIENT_EVENT, CACHE_MISS, SUBSCRIPTION_COUNT = "client.event", "channel.cache_miss", "channel.subscription_count"
NOTE_TYPES = (CLIENT_EVENT, CACHE_MISS, SUBSCRIPTION_COUNT)
"""The types of notes; see `gateway.webhooks.notes`. There may be very many, so only an endpoint that names them gets
them."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as it is queued and sent."""

    id: str
    """The ``webhook-id``: unique, and the same each time the event is sent."""
    type: str
    key: str
    """Events with the same key are sent in their order, one after the other; it is made of tenant and user."""
    at: int
    """When it was committed, in Unix milliseconds."""
    body: msgspec.Raw
    """The body, as JSON: signed and sent byte for byte as it is here."""
    traceparent: str | None = None
    """What trace the event is part of, as W3C's Trace Context has it; None for none."""
    tracestate: str | None = None
    """What systems that take part in the trace have to say of it; None for nothing."""

    def within(self, traceparent: str, tracestate: str | None = None) -> Message:
        """The same as part of another span."""
        return msgspec.structs.replace(self, traceparent=traceparent, tracestate=tracestate)


def message(kind: str, key: str, at: int, data: dict[str, Any], identity: str) -> Message:
    """Make an event of any type. Its id depends on `identity` only."""
    name = f"msg_{blake2b(identity.encode(), digest_size=16).hexdigest()}"
    body = {"id": name, "type": kind, "timestamp": wire.timestamp(at), "data": data}
    return Message(name, kind, key, at, msgspec.Raw(wire.encode(body)))


def message_of(transition: Transition) -> Message | None:
    """The event that tells of a transition; None if it changes nothing for others, as when a store was given it back.

    Its id is made of the user, the version and the time. The user and version alone would come again after a store had
    lost everything, and the receiver would take the event for a duplicate.
    """
    event = transition.event
    if event is None:
        return None
    if PART in transition.tenant:
        change = change_of(transition)
        return None if change is None else _message(CHANNEL_TYPES[change.event], transition, _of_channel(change))
    _name, payload = wire.event_body(event, transition)
    data = msgspec.to_builtins(payload) | {"tenant": transition.tenant}
    return _message(TYPES[event], transition, data)


def _of_channel(change: ChannelChange) -> dict[str, Any]:
    data: dict[str, Any] = {"tenant": change.tenant, "channel": change.channel}
    if change.user_id is not None:
        data |= {"userId": change.user_id, "info": member_info(change.profile)}
    return data | {"timestamp": wire.timestamp(change.at), "version": change.version}


def _message(kind: str, transition: Transition, data: dict[str, Any]) -> Message:
    key = user_of(transition.tenant, transition.user_id)
    identity = SEPARATOR.join((kind, key, str(transition.now.version), str(transition.at)))
    made = message(kind, key, transition.at, data, identity)
    if transition.traceparent is None:
        return made
    return made.within(transition.traceparent, transition.tracestate)
