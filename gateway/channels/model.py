"""The words of channels. Times are integers of Unix milliseconds."""

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
"""What tells the members of a presence channel of another, as codecs are given it; natively, events of these names."""

MAX_INFO = 2048
"""Bytes of what is said of a member besides the id, as JSON: Pusher's ``user_info``, within its two kilobytes."""


NATIVE_DOORS = frozenset({"socketio", "websocket"})
"""Those whose clients speak the gateway's own events."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a presence channel, however many of their connections are in it."""

    user_id: str
    profile: Profile = NOBODY
    """What a token, or an authorizer, says of them: ``profile.info_json`` is Pusher's ``user_info``."""

    @property
    def info(self) -> msgspec.Raw:
        """What others are told of them besides the id, as JSON."""
        return member_info(self.profile)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is about to be said in a channel."""

    tenant: str
    channel: str
    event: str
    data: msgspec.Raw
    """As JSON: encoded once, whatever hears it."""
    sender: str | None = None
    """The id of the user who said it; None for a backend."""
    source: str | None = None
    """The id of the one connection that is not told of it; None where all are."""
    keep: bool = True
    """Whether it is kept for the channel's history; what is only of the moment, as typing is, is not."""
    owner: str | None = None
    """Whose own channel it is, where its name does not say that."""


class Said(Draft, frozen=True, kw_only=True):
    """An event that was said in a channel: every node tells its clients of it in the same order."""

    position: int
    """Where it stands; grows along everything that is said in the tenant's channels. 0 for what is not kept."""
    at: int


class History(msgspec.Struct, frozen=True):
    """What was said in a channel since a position."""

    events: Sequence[Said]
    """Oldest first."""
    position: int
    """Up to where it was read: whoever names it later hears what came after."""
    recovered: bool
    """Whether nothing is missing between the position that was asked for and the first of `events`."""


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks to enter a channel."""

    tenant: str
    connection_id: str
    """Pusher's and Echo's ``socket_id``."""
    identity: Identity | None = None
    """Whom a token proved it to be; None for one who has shown none."""
    headers: Mapping[str, str] = {}
    """``Authorization`` and ``Cookie`` as the client sent them, for an authorizer that is asked over HTTP."""

    def __repr__(self) -> str:
        return f"<Asker {self.connection_id}>"  # of what it holds, some is secret


def asker_of(live: LiveConnection) -> Asker:
    """Who asks by a live connection, as they are now: a token that was renewed is another."""
    headers = {} if live.token is None else {"Authorization": f"Bearer {live.token}"}
    identity = live.identity
    return Asker(tenant=identity.tenant, connection_id=live.connection.id, identity=identity, headers=headers)


class ChannelCodec(Codec, Protocol):
    """How one kind of client is told what happens in channels.

    `encode` is given `ADDED` and `REMOVED`, each with a `wire.MemberChanged`.
    """

    def encode_said(self, said: Said) -> Any:
        """Encode one event that was said in a channel."""


class Listener(Member, Protocol):
    """The client at the other end, as its door reaches it."""

    @property
    def codec(self) -> ChannelCodec:
        """How to encode for it."""

    def removed(self, channel: str) -> None:
        """Tell it that it was taken out of a channel: by a backend, or since it may not be in it any more."""


class Subscriber:
    """One connection, as channels know it.

    Args:
        tenant: whose.
        connection_id: unique over all nodes and doors.
        listener: what reaches its client.
        user_id: whose connection it is; None while nobody knows.
        live: its place in presence; None for one that has none (yet).
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
        """The channels that it is in, or is about to be, and as whom; None but for a presence channel."""
        self.asker: Asker | None = None
        """As whom it asked last to enter a channel; None for one that a signature lets in."""
        self.granted: dict[str, tuple[Entry, Person | None]] = {}
        """Of one that goes on where it lost its connection, the channels that it is about to be put back into, and as
        whom."""
        self.ended = False
        self._turns: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        """By channel, for those that something is done about now: by whom, and who waits."""

    @asynccontextmanager
    async def turn(self, channel: str) -> AsyncIterator[None]:
        """Do one thing after the other about a channel: to leave it, one has to be in it."""
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
        """As whom it is in a presence channel, whoever's connection it is; None where it is not in one."""
        person = self.channels.get(channel)
        return None if person is None else person.user_id

    @property
    def recovers(self) -> bool:
        """Whether its client may go on where it lost its connection: what is said reaches it by `live`."""
        return self.live is not None and self.live.mark is not None

    @property
    def is_native(self) -> bool:
        """Whether its client speaks the gateway's own events."""
        return self.live is not None and is_native(self.live)

    def __repr__(self) -> str:
        return f"<Subscriber {self.connection_id} of {self.user_id or 'nobody'}>"


class Entry:
    """One way into a channel, from when it is asked whether somebody may be there until they are, or are not.

    What happens meanwhile holds for them as for those who are in it. It counts as long as somebody refers to it.

    Args:
        subscriber: who comes in.
        channel: where.
        asker: as whom they ask; None where nobody is asked, since a signature lets them in.
    """

    def __init__(self, subscriber: Subscriber, channel: str, asker: Asker | None) -> None:
        self.subscriber = subscriber
        self.channel = channel
        self.asker = asker
        self.removed: set[tuple[str, str | None]] = set()
        """By tenant, the users who were taken out meanwhile; None for everyone."""
        self.doubted: set[tuple[str, str]] = set()
        """By tenant, the users of whom it has to be asked again."""

    def check(self, person: Person | None) -> None:
        """Let somebody in.

        Raises:
            ForbiddenError: they were taken out meanwhile.
        """
        tenant, users = self.subscriber.tenant, self._users(person)
        if any((tenant, user_id) in self.removed for user_id in (*users, None)):
            raise ForbiddenError(f"this user was just taken out of {self.channel}; join it again to ask anew")

    def take_doubt(self, person: Person | None) -> bool:
        """Whether it has to be asked again; it is not from now on."""
        doubted, self.doubted = self.doubted, set()
        return any((self.subscriber.tenant, user_id) in doubted for user_id in self._users(person))

    def _users(self, person: Person | None) -> list[str]:
        found = [self.subscriber.user_id, None if person is None else person.user_id]
        return [user_id for user_id in found if user_id is not None]


def is_native(live: LiveConnection) -> bool:
    """Whether a connection's client speaks the gateway's own events."""
    return live.connection.door in NATIVE_DOORS


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """How a channel is found by who enters it."""

    channel: str
    person: Person | None
    """As whom; None but for a presence channel."""
    members: Sequence[Person] | None
    """All whom it may see, itself included, by user id; None but for a presence channel."""
    history: History | None
    """What was said since the position that was asked for; None where none was."""
    position: int
    """Up to where that was read; 0 where nobody asked."""


class Occupancy(msgspec.Struct, frozen=True, kw_only=True):
    """An occupied channel."""

    channel: str
    users: int | None
    """How many members it has; None but for a presence channel."""
    subscriptions: int
    """How many connections are in it, on all nodes, as of a second ago."""
