"""The wire contract of channels as types, as `gateway.wire` has the rest: section 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.wire import Body, Timestamp, encode, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.presence.model import Profile, Transition

ChannelName = Annotated[
    str, Meta(min_length=1, max_length=164, pattern=r"^[A-Za-z0-9_\-=@,.;:]+$(?!\n)", examples=["presence-room-5"])
]
ConversationId = Annotated[str, Meta(min_length=3, max_length=257, examples=["5-12"])]
Position = Annotated[str, Meta(pattern=r"^[0-9]{1,19}$(?!\n)")]
"""Of an event of a channel: digits, which no number of JavaScript's would hold."""


# What clients send


class JoinChannel(Body):
    """``join-channel``."""

    channel: ChannelName
    since: Position | None = None
    """The position of the last event of the channel that the client has; 0 for all that is kept, null for nothing."""


class LeaveChannel(Body):
    """``leave-channel``."""

    channel: ChannelName


class JoinConversation(Body):
    """``join-conversation``."""

    conversation_id: ConversationId
    since: Position | None = None


class LeaveConversation(Body):
    """``leave-conversation``."""

    conversation_id: ConversationId


# What they are sent


class ChannelMember(Body):
    """One member of a presence channel."""

    user_id: str
    info: msgspec.Raw
    """What is said of them besides the id; an empty object where that is nothing."""


class MemberChanged(ChannelMember):
    """``member-added`` and ``member-removed``: who came into a presence channel, or went."""

    channel: str
    timestamp: Timestamp

    @classmethod
    def of(cls, channel: str, transition: Transition) -> MemberChanged:
        """The last of a member's transitions, as it is told."""
        status = transition.now
        return cls(status.user_id, member_info(status.profile), channel, timestamp(transition.at))


class ChannelMembers(Body):
    """``channel-members``: who is in a presence channel, for a client that missed who came and went."""

    channel: str
    members: Sequence[ChannelMember]


class ChannelEvent(Body):
    """One event of a channel's history."""

    event: str
    data: msgspec.Raw
    position: Position
    timestamp: Timestamp


class JoinedChannel(Body, omit_defaults=True):
    """The answer to ``join-channel``."""

    channel: str
    members: Sequence[ChannelMember] | UnsetType = UNSET
    """Of a presence channel, who is in it, by user id."""
    history: Sequence[ChannelEvent] | UnsetType = UNSET
    """Where ``since`` was given: what was said after it, oldest first."""
    recovered: bool | UnsetType = UNSET
    """Whether nothing is missing between ``since`` and the history's first event."""
    position: Position | UnsetType = UNSET
    """Up to where the history goes: the next ``since``."""


class LeftChannel(Body):
    """The answer to ``leave-channel``, and ``channel-left`` of whom a backend took out of it."""

    channel: str


class JoinedConversation(JoinedChannel, omit_defaults=True, kw_only=True):
    """The answer to ``join-conversation``."""

    conversation_id: str


class LeftConversation(Body):
    """The answer to ``leave-conversation``."""

    conversation_id: str


# Over HTTP


class ChannelsQuery(Body):
    """Which channels."""

    prefix: str = ""
    """What their names begin with; all where it is left out."""


class OccupiedChannel(Body):
    """A channel that somebody is in."""

    channel: str
    subscriptions: int
    """How many connections are in it, on all nodes, as of a second ago."""
    members: int | UnsetType = UNSET
    """How many users; of a presence channel."""


class OccupiedChannels(Body):
    """The answer to ``GET /api/channels``."""

    channels: Sequence[OccupiedChannel]


class HistoryQuery(Body):
    """How much of a channel's history."""

    since: Position | None = None
    """The position of the last event that is known; the last ones where it is left out."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ChannelHistory(Body):
    """The answer to ``GET /api/channels/{name}/history``."""

    channel: str
    history: Sequence[ChannelEvent]
    recovered: bool
    position: Position


class SayInChannel(Body):
    """What a backend says in a channel."""

    event: Annotated[str, Meta(min_length=1, max_length=256)]
    data: Any = None
    keep: bool = True
    """Whether the channel's history has it."""


class SaidInChannel(Body):
    """The answer to it."""

    position: Position | None
    """Where it stands in the history; null for what that has not."""


class TakenOut(Body):
    """The answer where users are taken out of a channel."""

    channel: str


class Reauthorized(Body):
    """The answer to ``POST /api/users/{id}/reauthorize``."""

    user_id: str


def member_info(profile: Profile) -> msgspec.Raw:
    """What is told of a member besides the id, as JSON: what an authorizer said, or else what their token says."""
    if profile.info_json is not None:
        return msgspec.Raw(profile.info_json.encode())
    return msgspec.Raw(encode(profile))  # which leaves out what is not known


def members_of(persons: Iterable[tuple[str, Profile]]) -> list[ChannelMember]:
    """Members, by id and profile, as they are told."""
    return [ChannelMember(user_id, member_info(profile)) for user_id, profile in persons]
