"""``user.status``: what clients of Laravel Echo and Pusher hear about users in presence channels.

In ``presence-online-users`` they hear who comes online, goes offline or changes status; in ``presence-room-{id}`` who
enters or leaves the room, and whose status changes in it. Each node tells its own clients, from the logs of presence
and of channels, so that each hears it once, however many nodes there are.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import wire
from gateway.channels.audience import sees
from gateway.channels.events import USER_STATUS
from gateway.channels.messages_wire import UserStatusIn
from gateway.channels.model import Said
from gateway.channels.names import parse_scope
from gateway.presence.fanout import Pace
from gateway.presence.model import Event

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from gateway.channels.audience import ChannelAudience
    from gateway.channels.membership import Membership
    from gateway.channels.model import ChannelCodec, Subscriber
    from gateway.presence.model import Transition, UserStatus
    from gateway.presence.view import View
    from gateway.presence.visibility import Visibility
    from gateway.runtime.timers import Scheduler

ONLINE_USERS = "presence-online-users"
ROOM = "presence-room-"


class Statuses:
    """Sends ``user.status`` to this node's subscribers; of each user only the last change in an interval.

    Args:
        audience: this node's subscribers.
        membership: who is in which room.
        presence: the view of presence.
        scheduler: the event loop.
        interval: seconds that changes in one channel are gathered for, as `Pace` does it.
        visibility: who may see whom; None where everyone sees everyone.
        stopwatch: as that of `FanOut`.
    """

    def __init__(
        self,
        audience: ChannelAudience,
        membership: Membership,
        presence: View,
        scheduler: Scheduler,
        interval: float,
        visibility: Visibility | None,
        *,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._audience = audience
        self._membership = membership
        self._presence = presence
        self._scheduler = scheduler
        self._interval = interval
        self._visibility = visibility
        self._stopwatch = stopwatch
        self._rooms: dict[str, dict[str, set[str]]] = {}
        """By tenant and user, the rooms that they are in."""
        self._pending: dict[tuple[str, str], dict[str, Said]] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._paces: dict[tuple[str, str], Pace] = {}
        """Those of channels where something was told just now."""

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions of presence."""
        for transition in transitions:
            if transition.event is None:
                continue
            tenant, status = transition.tenant, transition.now
            self._put(tenant, ONLINE_USERS, status, transition.at, is_online=status.online)
            if transition.event is Event.CHANGED:
                for channel in self._rooms_of(tenant, status.user_id):
                    self._put(tenant, channel, status, transition.at, is_online=True)

    def publish_members(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions of the store of channels."""
        for transition in transitions:
            tenant, channel = parse_scope(transition.tenant)
            if transition.event not in (Event.ONLINE, Event.OFFLINE) or not channel.startswith(ROOM):
                continue
            is_member, user_id = transition.now.online, transition.user_id
            if (users := self._rooms.get(tenant)) is not None:
                _keep(users, user_id, channel, is_member=is_member)
            self._put(tenant, channel, transition.now, transition.at, is_online=is_member)

    def _rooms_of(self, tenant: str, user_id: str) -> Sequence[str]:
        """The rooms that a user is in: read once for each tenant, and followed from then on."""
        users = self._rooms.get(tenant)
        if users is None:
            if not self._membership.follower.loaded:
                return ()
            users = self._rooms[tenant] = {}
            for channel in self._membership.occupied(tenant, ROOM):
                for person in self._membership.members(tenant, channel):
                    _keep(users, person.user_id, channel, is_member=True)
        return tuple(users.get(user_id, ()))

    def _put(self, tenant: str, channel: str, status: UserStatus, at: int, *, is_online: bool) -> None:
        key = (tenant, channel)
        if not self._audience.has_others(*key):
            return
        known = self._presence.status(tenant, status.user_id)  # a member's token may say more, and presence less
        body = UserStatusIn(
            user_id=status.user_id,
            user_name=status.profile.name or known.profile.name or status.user_id,
            role=status.profile.role or known.profile.role,
            avatar=status.profile.avatar or known.profile.avatar,
            is_online=is_online,
            last_seen=wire.optional_timestamp(known.active_at),
            timestamp=wire.timestamp(at),
            room_id=channel.removeprefix(ROOM) if channel.startswith(ROOM) else msgspec.UNSET,
        )
        said = Said(
            tenant=tenant,
            channel=channel,
            event=USER_STATUS,
            data=msgspec.Raw(wire.encode(body)),
            sender=status.user_id,
            keep=False,
            position=0,
            at=at,
        )
        users = self._pending.setdefault(key, {})
        users.pop(status.user_id, None)
        users[status.user_id] = said
        if key not in self._timers:
            due = self._pace(key).due(self._scheduler.time(), status.user_id)
            self._timers[key] = self._scheduler.call_at(due, partial(self._flush, key))

    def _pace(self, key: tuple[str, str]) -> Pace:
        return self._paces.get(key) or self._paces.setdefault(key, Pace(self._interval))

    def _flush(self, key: tuple[str, str]) -> None:
        del self._timers[key]
        now, pending = self._scheduler.time(), self._pending.pop(key)
        began = self._stopwatch()
        try:
            subscribers = self._audience.others(*key)
            for said in pending.values():
                self._tell(said, subscribers)
        finally:
            self._pace(key).flushed(now, self._stopwatch() - began, pending)
            self._paces = {each: pace for each, pace in self._paces.items() if not pace.is_over(now)}

    def _tell(self, said: Said, subscribers: Sequence[Subscriber]) -> None:
        groups: dict[ChannelCodec, list[Any]] = {}
        for subscriber in subscribers:
            if said.sender is not None and sees(self._visibility, subscriber, said.sender):
                groups.setdefault(subscriber.listener.codec, []).append(subscriber.listener.sink)
        for codec, sinks in groups.items():
            codec.write_all(codec.encode_said(said), sinks)

    def close(self) -> None:
        """Tell nothing more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _keep(users: dict[str, set[str]], user_id: str, channel: str, *, is_member: bool) -> None:
    if is_member:
        users.setdefault(user_id, set()).add(channel)
        return
    channels = users.get(user_id, set())
    channels.discard(channel)
    if not channels:
        users.pop(user_id, None)
