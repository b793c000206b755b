"""The channels of a client that can recover, as rooms: what it is in wherever it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.names import is_of_user, parse_scope, scope_of, user_channel
from gateway.errors import StoreUnavailableError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.channels.model import Subscriber

ROOM = "channel:"
"""What the rooms begin with that recovery keeps for a client: its channels."""

_OWN = "own-channel:"
"""The same of a user's own, in which the user's connections are told nothing that they have not been told as such."""


def room_of(tenant: str, channel: str, user_id: str | None = None) -> str:
    """A channel as recovery names it, for a connection of a user."""
    own = user_id is not None and is_of_user(channel) and channel == user_channel(user_id)
    return f"{_OWN if own else ROOM}{scope_of(tenant, channel)}"


def channel_in(room: str) -> str | None:
    """Which channel a room is of; None for one that is of none."""
    prefix = next((each for each in (ROOM, _OWN) if room.startswith(each)), None)
    return None if prefix is None else parse_scope(room.removeprefix(prefix))[1]


class Rooms:
    """Lets recovery know which channels clients are in."""

    def __init__(self) -> None:
        self.on_change: Callable[[str, str, bool], None] = lambda _connection_id, _room, _inside: None
        """Called with the id of a connection whose client can recover, a room, and whether it is in it from now on."""
        self.settling: Callable[[str], Awaitable[None] | None] = lambda _connection_id: None
        """Called with the same id: waits until that is so for every node, or is None where it is; see `Directory`."""

    def put(self, subscriber: Subscriber, channel: str, *, inside: bool) -> None:
        """Take note whether a client is in a channel."""
        if subscriber.recovers:
            self.on_change(subscriber.connection_id, room_of(subscriber.tenant, channel, subscriber.user_id), inside)

    async def settle(self, subscriber: Subscriber) -> None:
        """Wait until a client would be in the channels that it is in now wherever it went on, or begin anew.

        Before that it is not told that it came or went: it would be another client elsewhere than it takes itself for.

        Raises:
            UnavailableError: the store is away.
        """
        waiting = self.settling(subscriber.connection_id) if subscriber.recovers else None
        try:
            if waiting is not None:
                await waiting
        except StoreUnavailableError:
            raise UnavailableError("the store is away; try again in a moment") from None
