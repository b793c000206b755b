"""What a webhook tells: one event for each committed transition, as others see it."""

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
"""The types of events, by what they tell of."""

CHANNEL_TYPES = {name: name.replace("-", ".") for name in CHANNEL_EVENTS}
"""The same of what the store of channels tells of."""

ALL_TYPES = (*TYPES.values(), *CHANNEL_TYPES.values())

CLIENT_EVENT, CACHE_MISS, SUBSCRIPTION_COUNT = "client.event", "channel.cache_miss", "channel.subscription_count"
NOTE_TYPES = (CLIENT_EVENT, CACHE_MISS, SUBSCRIPTION_COUNT)
"""The types of what no store commits. There may be very many of them: an endpoint that wants one names it."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as it is queued, sent and, where that fails, kept."""

    id: str
    """The ``webhook-id``: the same however often it is sent, and no other event's."""
    type: str
    key: str
    """Whose event it is: those of one key are sent in their order."""
    at: int
    """When it was committed, in Unix milliseconds."""
    body: msgspec.Raw
    """What is sent, as JSON: signed and sent byte for byte as it stands here."""
    traceparent: str | None = None
    """What trace the event is part of, as W3C's Trace Context has it; None for none."""

    def within(self, traceparent: str | None) -> Message:
        """The same as part of another span."""
        return msgspec.structs.replace(self, traceparent=traceparent)


def message(kind: str, key: str, at: int, data: dict[str, Any], identity: str) -> Message:
    """An event of any type, with the id that `identity`, and nothing else, makes."""
    name = f"msg_{blake2b(identity.encode(), digest_size=16).hexdigest()}"
    body = {"id": name, "type": kind, "timestamp": wire.timestamp(at), "data": data}
    return Message(name, kind, key, at, msgspec.Raw(wire.encode(body)))


def message_of(transition: Transition) -> Message | None:
    """The event that tells of a transition; None for one that others cannot tell, as when a store was given it back.

    Its id is made of what was committed: whose change, which version, and when. A version alone would come again after
    a store had lost everything, and be taken for a double.
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
    return made if transition.traceparent is None else made.within(transition.traceparent)
