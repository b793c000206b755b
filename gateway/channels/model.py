"""The types of channels. Times are integers of Unix milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.access.auth import Identity
from gateway.channels.wire import member_info
from gateway.errors import ForbiddenError
from gateway.presence.fanout import Codec, Member
from gateway.presence.model import NOBODY, Profile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.connections.live import LiveConnection

ADDED, REMOVED = "member-added", "member-removed"
"""The events that tell of a member who came or went, as codecs are given them. Native clients hear them as they are."""

MAX_INFO = 2048
"""Bytes of a member's information besides the id, as JSON: Pusher's ``user_info``, with Pusher's limit."""


NATIVE_DOORS = frozenset({"socketio", "websocket"})
"""The doors whose clients are native: they speak the gateway's own events."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a presence channel, however many of their connections are in it."""

    user_id: str
    profile: Profile = NOBODY
    """From their token, or from the authorizer, whose Pusher ``user_info`` is ``profile.info_json``."""

    @property
    def info(self) -> msgspec.Raw:
        """What other members are told about them besides the id, as JSON."""
        return member_info(self.profile)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is about to be said in a channel."""

    tenant: str
    channel: str
    event: str
    data: msgspec.Raw
    """As JSON: encoded once for all kinds of clients."""
    sender: str | None = None
    """The id of the user who says it; None for a backend."""
    source: str | None = None
    """The id of the one connection that is not sent it; None if all are."""
    keep: bool = True
    """Whether it is kept in the channel's history. Events of the moment, such as typing, are not."""
    owner: str | None = None
    """The user whose own channel it is, if the channel's name does not tell; None otherwise."""


class Said(Draft, frozen=True, kw_only=True):
    """An event that was said in a channel. Every node sends these to its clients in the same order."""

    position: int
    """Its place in the log of channels, which grows with each event; 0 for an event that is not kept."""
    at: int


class History(msgspec.Struct, frozen=True):
    """What was said in a channel since a position."""

    events: Sequence[Said]
    """Oldest first."""
    position: int
    """Up to where it was read. Given as `after` later, it brings what was said since."""
    recovered: bool
    """Whether no event is missing between the position that was asked for and the first of `events`."""


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks to enter a channel."""

    tenant: str
    connection_id: str
    """Pusher's and Echo's ``socket_id``."""
    identity: Identity | None = None
    """The user whom a token proved them to be; None if they have shown no token."""
    headers: Mapping[str, str] = {}
    """``Authorization`` and ``Cookie`` as the client sent them, for an authorizer that is asked over HTTP."""

    def __repr__(self) -> str:
        return f"<Asker {self.connection_id}>"  # the headers are secret


def asker_of(live: LiveConnection) -> Asker:
    """The asker at a live connection, with the token that it has now."""
    headers = {} if live.token is None else {"Authorization": f"Bearer {live.token}"}
    identity = live.identity
    return Asker(tenant=identity.tenant, connection_id=live.connection.id, identity=identity, headers=headers)


class ChannelCodec(Codec, Protocol):
    """Encodes what happens in channels for one kind of client.

    Its `encode` is given the events `ADDED` and `REMOVED`, each with a `wire.MemberChanged`.
    """

    def encode_said(self, said: Said) -> Any:
        """Encode one event that was said in a channel."""


class Listener(Member, Protocol):
    """A client, as its door writes to it."""

    @property
    def codec(self) -> ChannelCodec:
        """How to encode for it."""

    def removed(self, channel: str) -> None:
        """Tell it that it was taken out of a channel, by a backend or because it may not be in it any more."""


class Subscriber:
    """One connection, as channels know it.

    Args:
        tenant: of its user.
        connection_id: unique over all nodes and doors.
        listener: writes to its client.
        user_id: whose connection it is; None while that is not known.
        live: the connection as presence knows it; None if it is not, or not yet, part of presence.
    """

    def __init__(
        self,
        tenant: str,
        connection_id: str,
        listener: Listener,
        *,
        user_id: str | None = None,
        live: LiveConnection | None = None,
    ) -> None:
        self.tenant = tenant
        self.connection_id = connection_id
        self.listener = listener
        self.user_id = user_id
        self.live = live
        self.channels: dict[str, Person | None] = {}
        """The channels that it is in, or is entering, and as which member; None unless it is a presence channel."""
        self.asker: Asker | None = None
        """As whom it last asked to enter a channel; None if it never did, and was let in by signatures."""
        self.granted: dict[str, tuple[Entry, Person | None]] = {}
        """While it recovers, the channels that it may be put back into, and as which member."""
        self.ended = False
        """Whether the connection has ended."""
        self._turns: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        """By channel, a lock and an entry for each task that holds it or waits for it; the last one deletes it."""

    @asynccontextmanager
    async def turn(self, channel: str) -> AsyncIterator[None]:
        """Hold this connection's lock for a channel, so that joining and leaving it happen one after the other."""
        lock, takers = self._turns.setdefault(channel, (asyncio.Lock(), []))
        takers.append(None)
        try:
            async with lock:
                yield
        finally:
            takers.pop()
            if not takers:
                del self._turns[channel]

    def member_id(self, channel: str) -> str | None:
        """The user id of the member that it is in a presence channel, which may differ from `user_id`; None if none."""
        person = self.channels.get(channel)
        return None if person is None else person.user_id

    @property
    def recovers(self) -> bool:
        """Whether its client can recover, and therefore is written to by `live`, which marks what it was told."""
        return self.live is not None and self.live.mark is not None

    @property
    def is_native(self) -> bool:
        """Whether its client speaks the gateway's own events."""
        return self.live is not None and is_native(self.live)

    def __repr__(self) -> str:
        return f"<Subscriber {self.connection_id} of {self.user_id or 'nobody'}>"


class Entry:
    """An attempt to enter a channel, from before the authorizer is asked until the connection is in, or is refused.

    It notes removals and changed rights that come in between, which hold for it as for those who are in the channel.
    `Channels` keeps weak references only: an entry that nobody refers to any more is over.

    Args:
        subscriber: who wants to enter.
        channel: which.
        asker: as whom they ask; None if nobody is asked, because a signature lets them in.
    """

    def __init__(self, subscriber: Subscriber, channel: str, asker: Asker | None) -> None:
        self.subscriber = subscriber
        self.channel = channel
        self.asker = asker
        self.removed: set[tuple[str, str | None]] = set()
        """Tenant and user id of those who were removed from the channel meanwhile; None as user id is everyone."""
        self.doubted: set[tuple[str, str]] = set()
        """Tenant and user id of those whose rights have to be asked for again."""

    def check(self, person: Person | None) -> None:
        """Check that the user, or the member that they are in the channel, may still enter.

        Raises:
            ForbiddenError: they were removed from the channel meanwhile.
        """
        tenant, users = self.subscriber.tenant, self._users(person)
        if any((tenant, user_id) in self.removed for user_id in (*users, None)):
            raise ForbiddenError(f"this user was just taken out of {self.channel}; join it again to ask anew")

    def take_doubt(self, person: Person | None) -> bool:
        """Return whether the authorizer has to be asked again, and forget that it has."""
        doubted, self.doubted = self.doubted, set()
        return any((self.subscriber.tenant, user_id) in doubted for user_id in self._users(person))

    def _users(self, person: Person | None) -> list[str]:
        found = [self.subscriber.user_id, None if person is None else person.user_id]
        return [user_id for user_id in found if user_id is not None]


def is_native(live: LiveConnection) -> bool:
    """Whether a connection's client speaks the gateway's own events."""
    return live.connection.door in NATIVE_DOORS


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a connection that enters a channel."""

    channel: str
    person: Person | None
    """The member that it is; None unless it is a presence channel."""
    members: Sequence[Person] | None
    """All members that it may see, itself included, by user id; None unless it is a presence channel."""
    history: History | None
    """What was said since the position that it asked for; None if it asked for none."""
    position: int
    """Up to where the history was read; 0 if it asked for none."""


class Occupancy(msgspec.Struct, frozen=True, kw_only=True):
    """An occupied channel."""

    channel: str
    users: int | None
    """How many members it has; None unless it is a presence channel."""
    subscriptions: int
    """How many connections are in it, on all nodes, as of a second ago."""
