"""Which channels are occupied, and who is in them: counted over connections and nodes, as presence is.

A member is to a channel what a user is to a tenant: there while one of their connections is, kept for a moment when the
last one is lost, and gone exactly once, in the whole cluster, when their node is killed. So a second store of the kind
that presence has counts them, in which each channel is a tenant. One more tenant of that store holds the channels
themselves: they are "online" in it while they are occupied.

Each node counts its own connections, and tells the store of the first and the last: a user with ten tabs in a channel,
or a channel with ten thousand subscribers, is one connection per node to the store.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.channels.model import Person
from gateway.channels.names import Kind, kind_of, parse_scope, scope_of
from gateway.presence.model import NOBODY, Choice, Chosen, Connection, Ending, Profile, Retention, Timing
from gateway.runtime.tasks import in_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.presence.follower import Follower
    from gateway.presence.model import UserStatus
    from gateway.presence.store import Commit
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View

DOOR = "channels"
"""The name of the door in the connections that the store is told of."""

_NEVER = 1 << 42
"""Milliseconds, a hundred years: a silent member does not become away."""

FORGET = 60_000
"""Milliseconds after which the store forgets a member who has left."""


def timing_of(timing: Timing) -> Timing:
    """The durations that membership follows, derived from those of presence."""
    return Timing(
        away_after=_NEVER,
        ttl=timing.ttl,
        grace=timing.grace,
        drain_grace=timing.drain_grace,
        lease=timing.lease,
        retention=Retention(sessions=0, sessions_ttl=FORGET, last_seen_ttl=FORGET, choices=False),
    )


class _Place:
    """A channel that is occupied by connections of this node, or a member with connections to this node.

    Each is one connection in the store.
    """

    __slots__ = ("connection", "count", "entering")

    def __init__(self, connection: Connection, entering: asyncio.Future[Commit]) -> None:
        self.connection = connection
        self.count = 0
        self.entering = entering


class Membership:
    """Gives this node's commands to the store of channels, and answers reads from this node's view of it.

    Args:
        tracker: gives commands to the store.
        follower: reads the store's log into the view.
        presence: the view of presence: users who are invisible in it are invisible in channels, too.
    """

    def __init__(self, tracker: Tracker, follower: Follower, presence: View) -> None:
        self.tracker = tracker
        self.follower = follower
        self._view = follower.view
        self._presence = presence
        self._places: dict[tuple[str, str], _Place] = {}
        self._scopes: dict[tuple[str, str], dict[str, None]] = {}
        """By tenant and user id, the scopes of the presence channels that the user is in on this node."""
        self._hidden: dict[tuple[str, str], bool] = {}
        """Whether such a user was invisible when they entered the first of these, or were last followed."""
        self._opened = 0
        """How many connections this node has opened in the store, which makes their ids unique."""
        self._changed: set[str] = set()
        """The scopes of channels whose count on this node has changed since the last `take_changed`."""

    # Commands

    async def enter(self, tenant: str, channel: str, person: Person | None) -> None:
        """Count one more connection of this node in a channel. When this returns, the view shows it.

        If it raises, the connection is not counted.

        Args:
            tenant: whose channel.
            channel: which.
            person: the member that it is; None unless it is a presence channel.

        Raises:
            StoreUnavailableError: the store is away, and cannot be told that the user is invisible.
        """
        self._changed.add(scope_of(tenant, channel))
        entering = [self._enter(scope_of(tenant), channel, NOBODY)]
        try:
            if person is not None:
                scope = scope_of(tenant, channel)
                # Before the store is told, so that a change of visibility in the meantime is followed.
                self._follow(tenant, person.user_id, scope)
                await self._hide(tenant, person.user_id, scope)
                entering.append(self._enter(scope, person.user_id, person.profile))
                self._follow(tenant, person.user_id, scope)  # again, since their last other connection may have left
            await asyncio.gather(*entering)
            if person is not None:  # again: the store may just have forgotten a member who left a while ago
                await self._hide(tenant, person.user_id, scope_of(tenant, channel))
        except BaseException:
            is_in = len(entering) > 1
            if person is not None and not is_in:
                self._follow_no_more(tenant, person.user_id, scope_of(tenant, channel))
            await self.leave(tenant, channel, person if is_in else None, Ending.GOODBYE)
            raise

    async def leave(self, tenant: str, channel: str, person: Person | None, ending: Ending) -> None:
        """Count one connection less. The ending of a member's last one decides how long they stay."""
        self._changed.add(scope_of(tenant, channel))
        ended = [self._leave(scope_of(tenant), channel)]
        if person is not None:
            scope = scope_of(tenant, channel)
            ended.append(self._leave(scope, person.user_id))
            self._follow_no_more(tenant, person.user_id, scope)
        # Nothing is awaited before this, so the connection is counted out even if the caller is cancelled here.
        await asyncio.gather(*(self.tracker.disconnect(place.connection, ending) for place in ended if place))

    async def follow_visibility(self, tenant: str, user_id: str) -> int:
        """Make a user as visible in the channels that they are in on this node as they are in presence.

        Returns:
            How many channels those are.
        """
        user = tenant, user_id
        scopes = tuple(self._scopes.get(user, ()))
        if scopes:
            self._hidden[user] = user in self._presence.hidden
        await in_parts(self._hide(tenant, user_id, scope) for scope in scopes)
        return len(scopes)

    def has_turned(self, tenant: str, user_id: str) -> bool:
        """Whether a user in a presence channel on this node became invisible, or visible, since it was followed."""
        user = tenant, user_id
        return self._hidden[user] is not (user in self._presence.hidden)

    def has(self, tenant: str, user_id: str) -> bool:
        """Whether a user is in a presence channel on this node."""
        return (tenant, user_id) in self._scopes

    def _follow(self, tenant: str, user_id: str, scope: str) -> None:
        user = tenant, user_id
        self._scopes.setdefault(user, {})[scope] = None
        self._hidden.setdefault(user, user in self._presence.hidden)

    def _follow_no_more(self, tenant: str, user_id: str, scope: str) -> None:
        if (scope, user_id) in self._places:
            return
        scopes = self._scopes.get((tenant, user_id), {})
        scopes.pop(scope, None)
        if not scopes:
            self._scopes.pop((tenant, user_id), None)
            self._hidden.pop((tenant, user_id), None)

    def _enter(self, scope: str, name: str, profile: Profile) -> asyncio.Future[Commit]:
        key = (scope, name)
        place = self._places.get(key)
        if place is None:
            self._opened += 1
            connection = Connection(
                tenant=scope,
                user_id=name,
                # A new id each time: the store may hear of the end of the last connection after this one.
                id=f"{self.tracker.node}:{self._opened}",
                node=self.tracker.node,
                door=DOOR,
                connected_at=self.tracker.now(),
                profile=profile,
            )
            entering = asyncio.ensure_future(self.tracker.connect(connection))
            place = self._places[key] = _Place(connection, entering)
        place.count += 1
        return asyncio.shield(place.entering)

    def _leave(self, scope: str, name: str) -> _Place | None:
        """Count one connection less; return the place if that was its last one, otherwise None."""
        place = self._places.get((scope, name))
        if place is None:
            return None
        place.count -= 1
        if place.count:
            return None
        return self._places.pop((scope, name))

    async def _hide(self, tenant: str, user_id: str, scope: str) -> None:
        # Visibility may change again while the store is told. What it was told is kept here, since the view may lag.
        told = self._is_hidden(scope, user_id)
        while (hidden := (tenant, user_id) in self._presence.hidden) != told:
            await self.tracker.set_status(scope, user_id, Choice(Chosen.INVISIBLE if hidden else Chosen.ONLINE))
            told = hidden

    def _is_hidden(self, scope: str, user_id: str) -> bool:
        chosen = self._view.own_status(scope, user_id, self.tracker.now()).own
        return chosen is not None and chosen.choice.status is Chosen.INVISIBLE

    # Reads

    def members(self, tenant: str, channel: str) -> list[Person]:
        """A presence channel's members, by user id, without those who are invisible."""
        return [person_of(status) for status in self._view.online(scope_of(tenant, channel))]

    def is_member(self, tenant: str, channel: str, user_id: str) -> bool:
        """Whether a user is in a presence channel, and visible."""
        return self._view.status(scope_of(tenant, channel), user_id).online

    def count(self, tenant: str, channel: str) -> int:
        """How many members a presence channel has."""
        return self._view.online_count(scope_of(tenant, channel))

    def is_occupied(self, tenant: str, channel: str) -> bool:
        """Whether anybody is in a channel."""
        return self._view.status(scope_of(tenant), channel).online

    def occupied(self, tenant: str, prefix: str = "") -> Iterator[str]:
        """The channels that anybody is in and whose names begin with `prefix`, ordered by name."""
        for status in self._view.online(scope_of(tenant)):
            if status.user_id.startswith(prefix):
                yield status.user_id

    def here(self, tenant: str, channel: str) -> int:
        """How many connections of this node are in a channel."""
        place = self._places.get((scope_of(tenant), channel))
        return 0 if place is None else place.count

    def take_changed(self) -> set[str]:
        """The scopes of channels whose count on this node has changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def all_here(self) -> Iterator[tuple[str, str, int]]:
        """Each tenant and channel that connections of this node are in, and how many."""
        for (scope, name), place in self._places.items():
            tenant, channel = parse_scope(scope)
            if not channel:
                yield tenant, name, place.count


def person_of(status: UserStatus) -> Person:
    """The member whose presence in a channel this is."""
    return Person(user_id=status.user_id, profile=status.profile)


def is_presence(channel: str) -> bool:
    """Whether a channel has members."""
    return kind_of(channel) is Kind.PRESENCE
