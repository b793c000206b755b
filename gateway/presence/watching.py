"""Watch lists: connections that hear only of the users they watch. A change costs as much as it has watchers."""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway import wire
from gateway.presence.fanout import Deliveries, Pace
from gateway.presence.model import OFFLINE, Transition, event_between, net_event
from gateway.presence.visibility import never_seen

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    from gateway.presence.fanout import Batch, Codec, Member
    from gateway.presence.visibility import Visibility
    from gateway.runtime.timers import Scheduler

Group = tuple["Codec", int, tuple["str | Flip", ...]]
"""Watchers that are told exactly the same: the codec, the index in `pending` to begin at, and whom they are told of."""


class Flip(NamedTuple):
    """A user whom a viewer may see from now on, or may not see any more."""

    user_id: str
    seen: bool


class WatchList(msgspec.Struct):
    """Whom one connection watches, in a form that outlives it."""

    users: dict[str, int] = {}
    """User ids, each with the position of the log at which it began to be watched: the watcher got a snapshot then."""
    narrowed: int = 0
    """The position of the log at which a user was last taken off the list; 0 if none was."""

    @property
    def size(self) -> int:
        """Bytes that it takes as JSON, about."""
        return sum(map(len, self.users)) + 24 * len(self.users)

    def copy(self) -> WatchList:
        """An independent copy."""
        return WatchList(dict(self.users), self.narrowed)


class _Tenant:
    """The watchers of one tenant, and the changes that they have not heard of yet.

    Args:
        pace: decides when pending changes go out.
    """

    def __init__(self, pace: Pace) -> None:
        self.position = 0
        """The position of the log up to which every watcher knew everything when the first pending change came."""
        self.pending: list[Transition] = []
        self.pending_of: dict[str, list[int]] = {}
        """The indexes in `pending` of each user's changes."""
        self.pace = pace
        self.timer: asyncio.TimerHandle | None = None
        self.watchers: dict[Watcher, None] = {}
        """All of them, in the order in which they came; so are the next two."""
        self.watchers_of: dict[str, dict[Watcher, None]] = {}
        """By the user they watch."""
        self.everyone: dict[Watcher, None] = {}
        """Those that hear of everyone whom they may see."""
        self.flips: dict[tuple[str, str], bool] = {}
        """By viewer and user: whether the viewer sees the user from now on. Only for users with pending changes."""
        self.ahead: set[Watcher] = set()
        """Those that have heard of some of the pending changes, or knew them when they began to watch."""
        self.nets: dict[tuple[str | Flip, int, int], wire.EventBody | None] = {}
        """The net event of a user's changes between two indexes of `pending`; None if they cancel each other out."""
        self.encoded: dict[tuple[Group, Any, int], Batch | None] = {}
        """Batches of this flush, by group, the codec's mark, and the length of `pending`."""


class Watcher:
    """One member that hears only of the users it watches; or of everyone whom its user may see."""

    __slots__ = ("_left", "_name", "_tenant", "_watching", "everyone", "heard", "member", "viewer", "watched")

    def __init__(
        self,
        watching: Watching,
        name: str,
        tenant: _Tenant,
        member: Member,
        watched: WatchList | None,
        viewer: str | None,
    ) -> None:
        self.everyone = watched is None
        """Whether it hears of everyone whom it may see, as long as it watches nobody."""
        self.watched = WatchList() if watched is None else watched
        self.member = member
        self.viewer = viewer
        """The user it belongs to, who may see some users only; None if it may see everyone."""
        self.heard = 0
        """How many of the pending changes it has heard of, or knew when it began to watch."""
        self._watching = watching
        self._name = name
        self._tenant = tenant
        self._left = False

    def watch(self, user_ids: Iterable[str]) -> None:
        """Watch more users from now on. First it is told what is pending. Those it watches already are left alone."""
        if self._left:
            return
        self.catch_up()
        position = self._watching.position()
        for user_id in user_ids:
            if user_id not in self.watched.users:
                self.watched.users[user_id] = position
                self._tenant.watchers_of.setdefault(user_id, {})[self] = None

    def unwatch(self, user_ids: Iterable[str] | None = None) -> int:
        """Stop watching some users, or all of them if `user_ids` is None. First it is told what is pending.

        Returns:
            How many of them it had watched.
        """
        if self._left:
            return 0
        self.catch_up()
        leaving = self.watched.users if user_ids is None else dict.fromkeys(user_ids)
        removed = [user_id for user_id in leaving if user_id in self.watched.users]
        for user_id in removed:
            self._forget(user_id)
            del self.watched.users[user_id]
        if removed:
            self.watched.narrowed = self._watching.position()
        return len(removed)

    def catch_up(self) -> None:
        """Tell it now what it has not heard of; see `FanOut.catch_up`."""
        tenant, start = self._tenant, self.heard
        if self._left or start >= len(tenant.pending):
            return
        self.heard = len(tenant.pending)
        tenant.ahead.add(self)
        changed = tenant.pending_of
        watched = changed if self.everyone else self.watched.users
        few, many = (changed, watched) if len(changed) < len(watched) else (watched, changed)
        # In the order of the first change that is news to it, as `Recovery` does if it has to make the batch again.
        news = sorted(
            (places[bisect_left(places, start)], user_id)
            for user_id in few
            if user_id in many and (places := changed[user_id])[-1] >= start
        )
        if news:
            told = self._watching.visible(self._name, tenant, self, [user_id for _place, user_id in news])
            batch = self._watching.batch(self._name, tenant, (self.member.codec, start, told)) if told else None
            if batch is not None:
                self._watching.deliveries.delivered += 1
                self.member.write(batch)

    def pass_over(self) -> None:
        """Skip everything that is pending."""
        if not self._left and self._tenant.pending:
            self.heard = len(self._tenant.pending)
            self._tenant.ahead.add(self)

    def flip(self, user_id: str, *, seen: bool) -> bool:
        """Take note that its user may see another user from now on, or may not any more.

        Returns:
            Whether the next flush will tell it, because a change of that user is pending. Otherwise the caller does.
        """
        places = self._tenant.pending_of.get(user_id)
        if self.viewer is None or places is None or places[-1] < self.heard:
            return False
        self._tenant.flips[self.viewer, user_id] = seen
        return True

    def hears_of(self, user_id: str) -> bool:
        """Whether it is told of a user's changes, provided that it may see them."""
        return self.everyone or user_id in self.watched.users

    def told(self) -> int:
        """The position of the log up to which it knows everything, by events or by what it read as it began."""
        tenant = self._tenant
        if not tenant.pending:
            return self._watching.position()
        return tenant.pending[self.heard - 1].position if self.heard else tenant.position

    def leave(self) -> None:
        """Stop hearing anything. `watched` stays as it is; a second call changes nothing."""
        if self._left:
            return
        self._left = True
        for user_id in self.watched.users:
            self._forget(user_id)
        self.heard = 0
        self._tenant.ahead.discard(self)
        self._tenant.everyone.pop(self, None)
        del self._tenant.watchers[self]
        if not self._tenant.watchers:
            self._watching.drop(self._name)

    @property
    def has_left(self) -> bool:
        """Whether `leave` was called."""
        return self._left

    def _forget(self, user_id: str) -> None:
        watchers = self._tenant.watchers_of[user_id]
        del watchers[self]
        if not watchers:
            del self._tenant.watchers_of[user_id]


class Watching:
    """The watchers of this node. A listener of the follower.

    Args:
        scheduler: the event loop.
        interval: seconds that changes are gathered for, as for `FanOut`.
        position: returns up to where this node has followed the log; everything up to there has been published.
        pass_over: called with a tenant, a user id and two positions if the user's changes between them cancelled out,
            and the watchers were not told of them.
        visibility: who may see whom; None if everyone may see everyone.
        stopwatch: returns seconds of a clock that goes on within one turn of the loop.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        interval: float,
        position: Callable[[], int],
        pass_over: Callable[[str, str, int, int], None] = lambda _tenant, _user_id, _after, _to: None,
        *,
        visibility: Visibility | None = None,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.position = position
        self._scheduler = scheduler
        self._interval = interval
        self._pass_over = pass_over
        self._visibility = visibility
        self._stopwatch = stopwatch
        self._tenants: dict[str, _Tenant] = {}
        self.deliveries = Deliveries()
        """What was sent, since the start."""
        self.on_flush: Callable[[Sequence[Transition], float, int], None] | None = None
        """As `FanOut.on_flush`."""
        self._published = 0
        """Up to where the log had been published after the last call of `publish` or `join`."""

    def join(self, tenant: str, member: Member, watched: WatchList | None, viewer: str | None = None) -> Watcher:
        """Make a watcher for a member, which hears of changes that are published from now on.

        Args:
            tenant: whose users.
            member: who hears.
            watched: whom it watches; the watcher changes this list from then on. None for everyone it may see.
            viewer: the user it belongs to, if not everyone may be seen; None if it may see everyone.
        """
        self._published = self.position()
        watchers = self._tenants.get(tenant)
        if watchers is None:
            watchers = self._tenants[tenant] = _Tenant(Pace(self._interval))
        watcher = Watcher(self, tenant, watchers, member, watched, viewer)
        watchers.watchers[watcher] = None
        if watcher.everyone:
            watchers.everyone[watcher] = None
        for user_id in watcher.watched.users:
            watchers.watchers_of.setdefault(user_id, {})[watcher] = None
        if watchers.pending:
            watcher.heard = len(watchers.pending)
            watchers.ahead.add(watcher)
        return watcher

    def sizes(self) -> tuple[int, int, int]:
        """How many users are watched, by how many members, and how many entries their lists have together."""
        users = sum(len(tenant.watchers_of) for tenant in self._tenants.values())
        lists = [len(each.watched.users) for tenant in self._tenants.values() for each in tenant.watchers]
        return users, sum(1 for length in lists if length), sum(lists)

    def drop(self, tenant: str) -> None:
        """Forget a tenant whose last watcher has left."""
        timer = self._tenants.pop(tenant).timer
        if timer is not None:
            timer.cancel()

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions, to go out to the watchers of their users within the interval."""
        if not self._tenants:
            return
        for transition in transitions:
            tenant = self._tenants.get(transition.tenant)
            if tenant is None or not (tenant.everyone or transition.user_id in tenant.watchers_of):
                continue
            if not tenant.pending:
                tenant.position = self._published
            tenant.pending_of.setdefault(transition.user_id, []).append(len(tenant.pending))
            tenant.pending.append(transition)
            if tenant.timer is None:
                due = tenant.pace.due(self._scheduler.time(), transition.user_id)
                tenant.timer = self._scheduler.call_at(due, partial(self._flush, transition.tenant, tenant))
        self._published = self.position()

    def batch(self, name: str, tenant: _Tenant, group: Group) -> Batch | None:
        """Encode what is pending for a group, once; None if there is nothing to tell."""
        codec, start, users = group
        mark = getattr(codec, "mark", None)
        key = (group, mark, len(tenant.pending))
        if key not in tenant.encoded:
            events = [event for each in users if (event := self._net(name, tenant, each, start)) is not None]
            tenant.encoded[key] = _encode(tenant, codec, start, events, told=mark is not None) if events else None
        return tenant.encoded[key]

    def visible(self, name: str, tenant: _Tenant, watcher: Watcher, user_ids: Sequence[str]) -> tuple[str | Flip, ...]:
        """Whom a watcher is told of, out of the users who have changed: those it may see, and flips."""
        visibility, viewer = self._visibility, watcher.viewer
        if visibility is None or viewer is None:
            return tuple(user_ids)
        told: list[str | Flip] = []
        for each in visibility.compare(name, viewer, user_ids, told=False):
            user_id, before, now = each
            if before is not now:
                tenant.flips[viewer, user_id] = now
            if tenant.flips and (viewer, user_id) in tenant.flips:
                told.append(Flip(user_id, now))  # also to the viewer's other connections, which ask after this one
            elif now:
                told.append(user_id)
        return tuple(told)

    def _net(self, name: str, tenant: _Tenant, told: str | Flip, start: int) -> wire.EventBody | None:
        """The one event that tells of a user's changes from an index of `pending` on; None if they cancel out."""
        key = (told, start, len(tenant.pending))
        if key not in tenant.nets and isinstance(told, Flip):
            places = [place for place in tenant.pending_of[told.user_id] if place >= start]
            first, last = tenant.pending[places[0]], tenant.pending[places[-1]]
            tenant.nets[key] = _flipped(told, first, last)
        elif key not in tenant.nets:
            tenant.nets[key], user_id = None, str(told)
            places = [place for place in tenant.pending_of[user_id] if place >= start]
            if places:
                first, last = tenant.pending[places[0]], tenant.pending[places[-1]]
                event = net_event(first, last)
                if event is None:
                    self._pass_over(name, user_id, first.position - 1, last.position)
                else:
                    tenant.nets[key] = wire.event_body(event, last)
        return tenant.nets[key]

    def _flush(self, name: str, tenant: _Tenant) -> None:
        tenant.timer = None
        now, users = self._scheduler.time(), list(tenant.pending_of)
        self.deliveries.changes.observe(len(tenant.pending))
        told = None if self.on_flush is None else (tenant.pending.copy(), self.deliveries.delivered)
        began = self._stopwatch()
        try:
            self._write(name, tenant)
        finally:
            tenant.pending.clear()
            tenant.pending_of.clear()
            tenant.nets.clear()
            tenant.encoded.clear()
            tenant.flips.clear()
            for watcher in tenant.ahead:
                watcher.heard = 0
            tenant.ahead.clear()
            took = self._stopwatch() - began
            tenant.pace.flushed(now, took, users)
        self.deliveries.seconds.observe(took)
        if told is not None and self.on_flush is not None:
            self.on_flush(told[0], took, self.deliveries.delivered - told[1])

    def _write(self, name: str, tenant: _Tenant) -> None:
        """Write what is pending to each watcher that it concerns, encoded once for those who are told the same."""
        concerns: dict[Watcher, list[str]] = {}
        for user_id in tenant.pending_of:
            for watcher in tenant.watchers_of.get(user_id, ()):
                concerns.setdefault(watcher, []).append(user_id)
        for watcher in tenant.everyone:
            concerns[watcher] = list(tenant.pending_of)
        groups: dict[Group, list[Watcher]] = {}
        for watcher, users in concerns.items():
            if watcher.heard:
                watcher.catch_up()  # it begins at an index of its own
            elif told := self.visible(name, tenant, watcher, users):
                groups.setdefault((watcher.member.codec, 0, told), []).append(watcher)
        for group, watchers in groups.items():
            batch = self.batch(name, tenant, group)
            for watcher in watchers:
                # Writing to one watcher may have made another leave, or catch up.
                if batch is not None and not watcher.has_left and not watcher.heard:
                    self.deliveries.delivered += 1
                    watcher.member.write(batch)


def _flipped(flip: Flip, first: Transition, last: Transition) -> wire.EventBody | None:
    """The event for a user whom a viewer sees from now on, or from now on must take for never seen; None for none."""
    if not flip.seen:
        return None if first.was is OFFLINE else never_seen(flip.user_id, last.at)
    event = event_between(OFFLINE, last.now.status)
    return None if event is None else wire.event_body(event, last)


def _encode(tenant: _Tenant, codec: Any, start: int, events: Sequence[wire.EventBody], *, told: bool) -> Batch:
    if not told:
        return codec.encode(events)
    after = tenant.pending[start - 1].position if start else tenant.position
    return codec.encode_told(events, after, tenant.pending[-1].position)
