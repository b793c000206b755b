"""What happens to channels, as hooks and webhooks are told it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.channels.names import parse_scope
from gateway.channels.wire import member_info
from gateway.presence.model import PART, Event, Profile, Transition

CHANNEL_EVENTS = {Event.ONLINE: "channel-occupied", Event.OFFLINE: "channel-vacated"}
MEMBER_EVENTS = {Event.ONLINE: "member-added", Event.OFFLINE: "member-removed"}

EVENTS = (*MEMBER_EVENTS.values(), *CHANNEL_EVENTS.values())
"""Their names."""


class ChannelChange(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody came into a presence channel, or went; or a channel is occupied, or vacated; once each."""

    event: str
    tenant: str
    channel: str
    user_id: str | None
    """The member; None where the channel itself is occupied or vacated."""
    profile: Profile
    version: int
    """Grows with each change of the member, or of the channel."""
    at: int
    """When, in Unix milliseconds."""

    @property
    def info(self) -> Any:
        """What is told of a member besides the id: what is JSON, an object mostly."""
        return msgspec.json.decode(member_info(self.profile))


def change_of(transition: Transition) -> ChannelChange | None:
    """The change that a transition is in the store of channels; None for one that tells of none."""
    event = transition.event
    if event is None or PART not in transition.tenant:
        return None
    tenant, channel = parse_scope(transition.tenant)
    name = (MEMBER_EVENTS if channel else CHANNEL_EVENTS).get(event)
    if name is None:
        return None
    now = transition.now
    return ChannelChange(
        event=name,
        tenant=tenant,
        channel=channel or transition.user_id,
        user_id=transition.user_id if channel else None,
        profile=now.profile,
        version=now.version,
        at=transition.at,
    )
