"""One live connection of a user to this node, and the client at its other end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gateway.presence.fanout import Batch, Member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway import wire
    from gateway.access.auth import Identity
    from gateway.access.buckets import TokenBucket
    from gateway.access.quotas import Share
    from gateway.delivery.queue import Queued
    from gateway.errors import (
        CloseCode,
    )
    from gateway.presence.fanout import Audience
    from gateway.presence.model import Connection, Ending
    from gateway.presence.watching import Watcher, WatchList
    from gateway.runtime.timers import Timer


class Peer(Member, Protocol):
    """The client at the other end, as its door can reach it."""

    def close(self, code: CloseCode) -> None:
        """Close the connection after what was written, without waiting; a second call changes nothing."""

    def hand(self, queued: Queued) -> None:
        """Send what waited for the client, which is to acknowledge it."""


class Resumption(Protocol):
    """What a client hears first that goes on with its session."""

    missed: Batch | None
    """What it missed, in order; None where that is nothing."""
    watched: WatchList | None
    """Whom it watches; None for one that never watched anybody."""

    def opening(self, event: str, data: object) -> Batch:
        """Encode its first event."""


class LiveConnection:
    """One connection of one user to this node."""

    def __init__(self, identity: Identity, connection: Connection, peer: Peer, limiter: TokenBucket) -> None:
        self.identity = identity
        self.tenant: str = identity.tenant
        self.user_id: str = identity.user_id
        """Whose it is; a newer token is the same user's."""
        self.connection = connection
        self.peer = peer
        self.ending: Ending | None = None
        """Why it ended; None while it lives."""
        self.resumed = False
        self.limiter = limiter
        self.patience: TokenBucket | None = None
        """Counts its requests that were refused; None where none was."""
        self.flooded = False
        """Whether it is about to be closed for its requests."""
        self.shares: tuple[Share, ...] | None = None
        """What its requests take from besides its own bucket; None for nothing."""
        self.address: str | None = None
        """From where it comes; None where no limit asks for that."""
        self.token: str | None = None
        """What shows an application who it is, where ``CHANNEL_AUTH_URL`` asks one; None where nobody does."""
        self.expiry: Timer | None = None
        self.audience: Audience | None = None
        """Whose changes it hears of, from its greeting on; None for one that does not hear of all of them."""
        self.watcher: Watcher | None = None
        """What it hears of those it watches, or of those whom it may see; None for one that hears of everyone."""
        self.subscriber: Any = None
        """Its place in channels, a `channels.model.Subscriber`; None for one that never asked for any."""
        self._early: list[tuple[str, object, Any]] | None = []
        self._waiting: list[Queued] | None = None
        """What waited for its user, to be sent with its greeting."""
        self._handed: set[str] | None = None
        """Of what waits for its user, the ids of what it has been sent."""
        self._begun_at = self.mark

    @property
    def told(self) -> int:
        """Up to where on the presence log its client has been told; 0 before its greeting."""
        if self.watcher is not None:
            return self.watcher.told()
        return 0 if self.audience is None else self.audience.told(self.peer)

    def pass_over(self) -> None:
        """Take the changes that are pending as told: its client is told of them otherwise."""
        if self.watcher is not None:
            self.watcher.pass_over()
        elif self.audience is not None:
            self.audience.pass_over(self.peer)

    def hears_of(self, user_id: str) -> bool:
        """Whether its client is told of a user's changes, where it may be."""
        return self.audience is not None if self.watcher is None else self.watcher.hears_of(user_id)

    @property
    def mark(self) -> Any:
        """Up to where its client has been told besides presence; None for one that cannot recover."""
        return getattr(self.peer.codec, "mark", None)

    def emit(self, event: str, data: object, mark: Any = None) -> None:
        """Send one event to this connection, after the greeting.

        Args:
            event: its name.
            data: anything that JSON can hold.
            mark: up to where clients have been told with this event, which whoever misses it hears again; None for an
                event of this connection alone.
        """
        if self._early is None:
            self.peer.write(self._encode(event, data, mark))
        else:
            self._early.append((event, data, mark))

    def hand(self, queued: Sequence[Queued]) -> Sequence[Queued]:
        """Send what waits for its user, but for what this connection has been sent already.

        Args:
            queued: all that waits, in order.

        Returns:
            What it is sent now, or with its greeting.
        """
        handed = self._handed or set()
        fresh = [each for each in queued if each.id not in handed]
        known = {each.id for each in queued}
        if self._early is not None:  # while it is opened, what is handed to all may have been read later than this
            known |= handed
        self._handed = known or None
        if self._early is None:
            for each in fresh:
                self.peer.hand(each)
        else:
            self._waiting = [*(self._waiting or ()), *fresh]
        return fresh

    def was_handed(self, item_id: str) -> bool:
        """Whether it has been sent something of this id that may still wait."""
        return self._handed is not None and item_id in self._handed

    def begin(self, connected: wire.Connected, resumption: Resumption | None = None) -> None:
        """Tell the client that it is connected, first of all, and what it missed, where it goes on with a session."""
        early, self._early = self._early or [], None
        if resumption is None:
            self.peer.write(self._encode("connected", connected, self._begun_at))
        else:
            self.peer.write(resumption.opening("connected", connected))
            if resumption.missed is not None:
                self.peer.write(resumption.missed)
            early = [each for each in early if each[2] is None]  # the others are among what it missed
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:  # before what was sent since its user came
            self.peer.hand(each)
        for event, data, mark in early:
            self.peer.write(self._encode(event, data, mark))

    def _encode(self, event: str, data: object, mark: Any) -> Batch:
        codec: Any = self.peer.codec
        if mark is None or self._begun_at is None:
            return codec.encode([(event, data)])
        return codec.encode_at(event, data, self.told, mark)
