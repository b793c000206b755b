"""What Pusher's HTTP API is sent and answers, as types: https://pusher.com/docs/channels/library_auth_reference/rest-api."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

ATTRIBUTES = frozenset({"user_count", "subscription_count", "cache"})
"""What ``info`` may name."""

Info = Annotated[str, Meta(description=f"What to tell of channels, by commas: {', '.join(sorted(ATTRIBUTES))}.")]


# What it is sent


class TriggerEvent(msgspec.Struct):
    """An event, for one channel or several; also one event of a batch, for one."""

    name: str
    data: str
    """Any text; JSON mostly."""
    channels: list[str] | None = None
    channel: str | None = None
    socket_id: str | None = None
    """The one connection that is not told."""
    info: Info | None = None

    @property
    def targets(self) -> list[str]:
        """Its channels, each once."""
        named = [] if self.channel is None else [self.channel]
        return list(dict.fromkeys([*(self.channels or ()), *named]))


class TriggerBatch(msgspec.Struct):
    """Several events, of which none is said where one is wrong."""

    batch: list[TriggerEvent]


class TriggerUserEvent(msgspec.Struct):
    """An event for one user."""

    name: str
    data: str


class SignedQuery(msgspec.Struct, kw_only=True):
    """What every request has, besides ``auth_signature``."""

    auth_key: str
    auth_timestamp: Annotated[str, Meta(description="Seconds since 1970, at most 600 off.")]
    auth_version: Annotated[str, Meta(examples=["1.0"])]
    body_md5: Annotated[str, Meta(description="Of the body, in hexadecimal digits; left out where there is none.")] = ""


class SignedEventQuery(SignedQuery, kw_only=True):
    """An event, but for its data."""

    name: str
    socket_id: str | None = None


class SignedChannelsQuery(SignedQuery, kw_only=True):
    """Which channels, and what to tell of them."""

    filter_by_prefix: str = ""
    info: Info | None = None


class SignedChannelQuery(SignedQuery, kw_only=True):
    """What to tell of a channel."""

    info: Info | None = None


# What it answers


class Done(msgspec.Struct):
    """That it is done."""


class ChannelInfo(msgspec.Struct, omit_defaults=True):
    """What is known of a channel, of what was asked for."""

    user_count: int | UnsetType = UNSET
    """Members, each once; of a presence channel."""
    subscription_count: int | UnsetType = UNSET
    """Connections, as of a second ago."""


class ChannelInfos(msgspec.Struct):
    """Channels by name."""

    channels: dict[str, ChannelInfo]


class Triggered(msgspec.Struct, omit_defaults=True):
    """That it was said; with ``info``, what is known of its channels."""

    channels: dict[str, ChannelInfo] | UnsetType = UNSET


class BatchTriggered(msgspec.Struct, omit_defaults=True):
    """That all was said; with ``info``, what is known of the channel of each."""

    batch: list[ChannelInfo] | UnsetType = UNSET


class CachedEvent(msgspec.Struct):
    """The last event of a cache channel."""

    data: str
    ttl: int
    """Seconds that it stays."""


class ChannelState(ChannelInfo, kw_only=True):
    """What is known of one channel."""

    occupied: bool
    cache: CachedEvent | UnsetType = UNSET


class ChannelUser(msgspec.Struct):
    """A member of a presence channel."""

    id: str


class ChannelUsers(msgspec.Struct):
    """The members of a presence channel."""

    users: list[ChannelUser]
