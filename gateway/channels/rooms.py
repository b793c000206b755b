"""The channels of clients that can recover, kept as rooms of their sessions, on whichever node they recover."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.names import is_of_user, parse_scope, scope_of, user_channel
from gateway.errors import StoreUnavailableError, store_away

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.channels.model import Subscriber

ROOM = "channel:"
"""The prefix of a room that stands for a channel."""

_OWN = "own-channel:"
"""The prefix of a room that stands for a user's own channel, for a connection of that user: what is said there is kept
for the user, so that it need not be kept for this room, too."""


def room_of(tenant: str, channel: str, user_id: str | None = None) -> str:
    """The room that stands for a channel in the session of a user's connection."""
    own = user_id is not None and is_of_user(channel) and channel == user_channel(user_id)
    return f"{_OWN if own else ROOM}{scope_of(tenant, channel)}"


def channel_in(room: str) -> str | None:
    """The channel that a room stands for; None if it stands for none."""
    prefix = next((each for each in (ROOM, _OWN) if room.startswith(each)), None)
    return None if prefix is None else parse_scope(room.removeprefix(prefix))[1]


class Rooms:
    """Tells recovery which channels clients are in."""

    def __init__(self) -> None:
        self.on_change: Callable[[str, str, bool], None] = lambda _connection_id, _room, _inside: None
        """Called with the id of a connection whose client can recover, a room, and whether it is in it from now on."""
        self.settling: Callable[[str], Awaitable[None] | None] = lambda _connection_id: None
        """Given the id of such a connection, returns what to wait for until all nodes know its rooms, or None if they
        do; see `Directory.settling`."""

    def put(self, subscriber: Subscriber, channel: str, *, inside: bool) -> None:
        """Take note that a client is in a channel, or is not any more."""
        if subscriber.recovers:
            self.on_change(subscriber.connection_id, room_of(subscriber.tenant, channel, subscriber.user_id), inside)

    async def settle(self, subscriber: Subscriber) -> None:
        """Wait until a recovery of this client, on any node, would put it into the channels that it is in now.

        Only then is the client told that it entered or left a channel: otherwise it might recover on a node that knows
        another set of channels than the client does.

        Raises:
            UnavailableError: the store is away.
        """
        waiting = self.settling(subscriber.connection_id) if subscriber.recovers else None
        try:
            if waiting is not None:
                await waiting
        except StoreUnavailableError:
            raise store_away() from None
