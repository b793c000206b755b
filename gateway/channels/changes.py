"""Changes of channels and of their members, as hooks and webhooks are given them."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.channels.names import parse_scope
from gateway.channels.wire import member_info
from gateway.presence.model import PART, Event, Profile, Transition

CHANNEL_EVENTS = {Event.ONLINE: "channel-occupied", Event.OFFLINE: "channel-vacated"}
MEMBER_EVENTS = {Event.ONLINE: "member-added", Event.OFFLINE: "member-removed"}

EVENTS = (*MEMBER_EVENTS.values(), *CHANNEL_EVENTS.values())
"""The names of all of them."""


class ChannelChange(msgspec.Struct, frozen=True, kw_only=True):
    """A member came into a presence channel, or left it; or a channel became occupied, or vacant.

    Each happens once in the whole cluster.
    """

    event: str
    tenant: str
    channel: str
    user_id: str | None
    """The member; None if it is about the channel itself."""
    profile: Profile
    version: int
    """Grows by one with each change of this member, or of this channel."""
    at: int
    """When, in Unix milliseconds."""

    @property
    def info(self) -> Any:
        """What other members are told about this one besides the id: any JSON, usually an object."""
        return msgspec.json.decode(member_info(self.profile))


def change_of(transition: Transition) -> ChannelChange | None:
    """The change that a transition of the store of channels stands for; None if it stands for none."""
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
