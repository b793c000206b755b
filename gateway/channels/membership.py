"""Which channels are occupied, and who is in them: counted over connections and nodes, as presence is.

A member of a channel is to it what a user is to a tenant: there while one of their connections is, held for a moment
when the last one is lost, gone once, in the whole cluster, when their node is killed. So it is presence's own store
that counts them, a second one beside the first, in which each channel is a tenant; and in one more of its tenants the
channels themselves are online, while they are occupied.

This node's connections are counted here, and the store is told of the first and of the last: a user with ten tabs in a
channel, or a channel with ten thousand subscribers, is one connection there for each node.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.channels.model import Person
from gateway.channels.names import Kind, kind_of, parse_scope, scope_of
from gateway.presence.model import NOBODY, Choice, Chosen, Connection, Ending, Profile, Retention, Timing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.presence.follower import Follower
    from gateway.presence.model import UserStatus
    from gateway.presence.store import Commit
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View

DOOR = "channels"
"""The door that the store is told of."""

_NEVER = 1 << 42
"""Milliseconds, a hundred years: nobody turns away from a channel by being silent."""

FORGET = 60_000
"""Milliseconds after which it is forgotten that somebody was in a channel."""


def timing_of(timing: Timing) -> Timing:
    """The durations that membership follows, from those of presence."""
    return Timing(
        away_after=_NEVER,
        ttl=timing.ttl,
        grace=timing.grace,
        drain_grace=timing.drain_grace,
        lease=timing.lease,
        retention=Retention(sessions=0, sessions_ttl=FORGET, last_seen_ttl=FORGET, choices=False),
    )


class _Place:
    """What this node counts for in the store: a channel that is occupied here, or a user who is in one here."""

    __slots__ = ("connection", "count", "entering")

    def __init__(self, connection: Connection, entering: asyncio.Future[Commit]) -> None:
        self.connection = connection
        self.count = 0
        self.entering = entering


class Membership:
    """This node's hand on the store of channels, and its picture of all of them.

    Args:
        tracker: where commands go.
        follower: what keeps the view at the end of the store's log.
        presence: who is invisible, and is so in channels, too.
    """

    def __init__(self, tracker: Tracker, follower: Follower, presence: View) -> None:
        self.tracker = tracker
        self.follower = follower
        self._view = follower.view
        self._presence = presence
        self._places: dict[tuple[str, str], _Place] = {}
        self._scopes: dict[tuple[str, str], dict[str, None]] = {}
        """The scopes in which a user is by this node, by tenant and user id."""
        self._opened = 0
        self._changed: set[str] = set()
        """The scopes of channels whose count here has changed since it was asked for."""

    # Commands

    async def enter(self, tenant: str, channel: str, person: Person | None) -> None:
        """Count one more connection of this node in a channel; the view shows it when this returns.

        Where it raises, nothing is counted.

        Args:
            tenant: whose channel.
            channel: which.
            person: whose connection; None but for a presence channel.

        Raises:
            StoreUnavailableError: the user is invisible, and the store, which has to know, is away.
        """
        self._changed.add(scope_of(tenant, channel))
        entering = [self._enter(scope_of(tenant), channel, NOBODY)]
        try:
            if person is not None:
                scope = scope_of(tenant, channel)
                self._follow(
                    tenant, person.user_id, scope
                )  # before the store is told: it may become otherwise meanwhile
                await self._hide(tenant, person.user_id, scope)
                entering.append(self._enter(scope, person.user_id, person.profile))
                self._follow(tenant, person.user_id, scope)  # again: their last connection but this one may have left
            await asyncio.gather(*entering)
            if person is not None:  # of one who was there a while ago the store may just have forgotten that
                await self._hide(tenant, person.user_id, scope_of(tenant, channel))
        except BaseException:
            is_in = len(entering) > 1
            if person is not None and not is_in:
                self._follow_no_more(tenant, person.user_id, scope_of(tenant, channel))
            await self.leave(tenant, channel, person if is_in else None, Ending.GOODBYE)
            raise

    async def leave(self, tenant: str, channel: str, person: Person | None, ending: Ending) -> None:
        """Count one connection less. The last one's ending decides how long its user stays."""
        self._changed.add(scope_of(tenant, channel))
        ended = [self._leave(scope_of(tenant), channel)]
        if person is not None:
            scope = scope_of(tenant, channel)
            ended.append(self._leave(scope, person.user_id))
            self._follow_no_more(tenant, person.user_id, scope)
        # Nothing is awaited before this: whoever is cancelled here is counted no more all the same.
        await asyncio.gather(*(self.tracker.disconnect(place.connection, ending) for place in ended if place))

    async def follow_visibility(self, tenant: str, user_id: str) -> None:
        """Let a user be seen, or not be seen, in the channels they are in here, as they are in presence now."""
        await asyncio.gather(
            *(self._hide(tenant, user_id, scope) for scope in tuple(self._scopes.get((tenant, user_id), ())))
        )

    def has(self, tenant: str, user_id: str) -> bool:
        """Whether a user is in a presence channel by this node."""
        return (tenant, user_id) in self._scopes

    def _follow(self, tenant: str, user_id: str, scope: str) -> None:
        self._scopes.setdefault((tenant, user_id), {})[scope] = None

    def _follow_no_more(self, tenant: str, user_id: str, scope: str) -> None:
        if (scope, user_id) in self._places:
            return
        scopes = self._scopes.get((tenant, user_id), {})
        scopes.pop(scope, None)
        if not scopes:
            self._scopes.pop((tenant, user_id), None)

    def _enter(self, scope: str, name: str, profile: Profile) -> asyncio.Future[Commit]:
        key = (scope, name)
        place = self._places.get(key)
        if place is None:
            self._opened += 1
            connection = Connection(
                tenant=scope,
                user_id=name,
                # Another one each time: the store may hear of the last end after this beginning.
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
        """Count one less; return the place that this node has no more by it."""
        place = self._places.get((scope, name))
        if place is None:
            return None
        place.count -= 1
        if place.count:
            return None
        return self._places.pop((scope, name))

    async def _hide(self, tenant: str, user_id: str, scope: str) -> None:
        # While the store is told, it may become otherwise; and the view may show later what it was told.
        told = self._is_hidden(scope, user_id)
        while (hidden := (tenant, user_id) in self._presence.hidden) != told:
            await self.tracker.set_status(scope, user_id, Choice(Chosen.INVISIBLE if hidden else Chosen.ONLINE))
            told = hidden

    def _is_hidden(self, scope: str, user_id: str) -> bool:
        chosen = self._view.own_status(scope, user_id, self.tracker.now()).own
        return chosen is not None and chosen.choice.status is Chosen.INVISIBLE

    # Reads

    def members(self, tenant: str, channel: str) -> list[Person]:
        """A presence channel's members whom everyone may see, by user id."""
        return [person_of(status) for status in self._view.online(scope_of(tenant, channel))]

    def is_member(self, tenant: str, channel: str, user_id: str) -> bool:
        """Whether a user is in a presence channel, as others are told it."""
        return self._view.status(scope_of(tenant, channel), user_id).online

    def count(self, tenant: str, channel: str) -> int:
        """How many members a presence channel has."""
        return self._view.online_count(scope_of(tenant, channel))

    def is_occupied(self, tenant: str, channel: str) -> bool:
        """Whether anybody is in a channel."""
        return self._view.status(scope_of(tenant), channel).online

    def occupied(self, tenant: str, prefix: str = "") -> Iterator[str]:
        """The channels that anybody is in, by name."""
        for status in self._view.online(scope_of(tenant)):
            if status.user_id.startswith(prefix):
                yield status.user_id

    def here(self, tenant: str, channel: str) -> int:
        """How many connections of this node are in a channel."""
        place = self._places.get((scope_of(tenant), channel))
        return 0 if place is None else place.count

    def take_changed(self) -> set[str]:
        """The scopes of channels whose count here has changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def all_here(self) -> Iterator[tuple[str, str, int]]:
        """Each tenant and channel that connections of this node are in, and how many."""
        for (scope, name), place in self._places.items():
            tenant, channel = parse_scope(scope)
            if not channel:
                yield tenant, name, place.count


def person_of(status: UserStatus) -> Person:
    """The member that the store has as somebody's presence in a channel."""
    return Person(user_id=status.user_id, profile=status.profile)


def is_presence(channel: str) -> bool:
    """Whether a channel has members."""
    return kind_of(channel) is Kind.PRESENCE
