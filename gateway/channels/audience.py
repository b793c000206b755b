"""Sends this node's connections what happens in the channels that they are in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.channels.events import native_name, owner_in
from gateway.channels.model import ADDED, REMOVED
from gateway.channels.names import parse_scope, scope_of
from gateway.channels.wire import MemberChanged
from gateway.presence.fanout import FanOut
from gateway.presence.model import OFFLINE, Event, Transition, net_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gateway import wire
    from gateway.channels.model import ChannelCodec, Person, Said, Subscriber
    from gateway.presence.view import View
    from gateway.presence.visibility import Visibility
    from gateway.runtime.timers import Scheduler

FLIPPED = "seen otherwise"
"""The reason of a transition that is made up for one viewer, who may see a member from now on, or may not any more."""

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")

_NAMES = {Event.ONLINE: ADDED, Event.OFFLINE: REMOVED}


def member_changes(transitions: Iterable[Transition]) -> list[wire.EventBody]:
    """Reduce transitions of one channel's members to the events that a client needs that has heard of none of them."""
    first: dict[str, Transition] = {}
    last: dict[str, Transition] = {}
    for transition in transitions:
        first.setdefault(transition.user_id, transition)
        last[transition.user_id] = transition
    return [
        (_NAMES[event], MemberChanged.of(parse_scope(final.tenant)[1], final))
        for user_id, final in last.items()
        if (event := net_event(first[user_id], final)) in _NAMES
    ]


class ChannelAudience:
    """This node's subscribers, by channel.

    Args:
        scheduler: the event loop.
        interval: seconds that joins and leaves of one channel are gathered for.
        visibility: who may see whom; None if everyone sees everyone.
        view: the view of the store of channels.
        clock: the time, in Unix milliseconds.
        on_flush: as `FanOut.on_flush`, of members who come and go.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        interval: float,
        visibility: Visibility | None,
        view: View,
        clock: Callable[[], int],
        on_flush: Callable[[Sequence[Transition], float, int], None] | None = None,
    ) -> None:
        self._fanout = FanOut(scheduler, interval, reduce=member_changes)
        self._fanout.on_flush = self._on_flush = on_flush
        self.deliveries = self._fanout.deliveries
        """Counts what was sent about members who came and went."""
        self.said = 0
        """How many times an event that was said was sent to a connection."""
        self._visibility = visibility
        self._view = view
        self._clock = clock
        if visibility is not None:
            visibility.heeds.append(self._on_flip)
        self._subscribers: dict[tuple[str, str], dict[Subscriber, list[Said] | int | None]] = {}
        """By tenant and channel. The value is a list while the subscriber is joining: what was said in the meantime,
        which it is sent when it has its answer. Then it is the position up to which it has read the history, until this
        node hears of something later. From then on it is None."""
        self._others: dict[tuple[str, str], dict[Subscriber, None]] = {}
        """By tenant and channel, the subscribers that are not native."""
        self._singly: dict[str, dict[Subscriber, set[str]]] = {}
        """By scope, only with a visibility rule: the subscribers that hear of its members, each with the ids of the
        members that it has not been told of."""
        self._viewers: dict[tuple[str, str], dict[tuple[str, Subscriber], None]] = {}
        """The keys of `_singly`, scope and subscriber, by the subscriber's tenant and user id."""
        self._ahead: dict[tuple[str, str], set[Subscriber]] = {}
        """By scope and user id: subscribers that were told that this user, their own, is a member before this node's
        view knew it. They must not be told again when it does."""
        self._ahead_as: dict[tuple[str, Subscriber], str] = {}
        """The user id in `_ahead`, by scope and subscriber."""

    def join(self, subscriber: Subscriber, channel: str, *, early: list[Said] | None = None) -> None:
        """Let a subscriber hear what is said from now on. A subscriber that does already is left as it is.

        Args:
            subscriber: who.
            channel: which.
            early: a list that gathers what is said until `begin` is called; None to send it at once.
        """
        self._subscribers.setdefault((subscriber.tenant, channel), {}).setdefault(subscriber, early)
        if not subscriber.is_native:
            self._others.setdefault((subscriber.tenant, channel), {})[subscriber] = None

    def begin(self, subscriber: Subscriber, channel: str, position: int, mark: Any) -> None:
        """Send a subscriber what was said while it joined, except what it has read in the history.

        Args:
            subscriber: who.
            channel: which.
            position: up to where it has read the history; 0 if it has not.
            mark: how far clients that can recover have been told by now; None without recovery.
        """
        subscribers = self._subscribers.get((subscriber.tenant, channel), {})
        if subscriber not in subscribers:
            return
        early = subscribers[subscriber]
        subscribers[subscriber] = position or None
        if isinstance(early, list):
            news = [said for said in early if self._is_news(subscribers, subscriber, said)]
            for said in news:  # only with the last one has it been told everything up to the mark
                self._tell_one(subscriber, said, mark if said is news[-1] else None)

    @staticmethod
    def _is_news(subscribers: dict[Subscriber, list[Said] | int | None], subscriber: Subscriber, said: Said) -> bool:
        """Whether a subscriber has not read this in the history, which may have been ahead of this node."""
        position = subscribers.get(subscriber)
        if not isinstance(position, int) or not said.position:
            return True
        if said.position > position:
            subscribers[subscriber] = None
            return True
        return False

    def hear_members(
        self, subscriber: Subscriber, channel: str, *, told: Sequence[Person] = (), ahead: str | None = None
    ) -> None:
        """Let a subscriber hear of the members who come and go from now on.

        Args:
            subscriber: who.
            channel: which.
            told: the members that its answer names.
            ahead: its own user id as a member, if the answer names it though this node's view does not have it yet,
                because the store is away or the user is invisible. It is not told again when the view has it.
        """
        scope = scope_of(subscriber.tenant, channel)
        if ahead is not None:
            self._ahead.setdefault((scope, ahead), set()).add(subscriber)
            self._ahead_as[scope, subscriber] = ahead
        if self._visibility is None:
            self._fanout.join(scope, subscriber.listener)
        else:
            members = {status.user_id for status in self._view.online(scope)}
            self._singly.setdefault(scope, {})[subscriber] = members.difference(person.user_id for person in told)
            if subscriber.user_id is not None:
                viewer = (subscriber.tenant, subscriber.user_id)
                self._viewers.setdefault(viewer, {})[scope, subscriber] = None

    def leave(self, subscriber: Subscriber, channel: str) -> None:
        """Take a subscriber out of a channel; one that never joined is ignored."""
        key, scope = (subscriber.tenant, channel), scope_of(subscriber.tenant, channel)
        _drop(self._subscribers, key, subscriber)
        _drop(self._others, key, subscriber)
        user_id = self._ahead_as.pop((scope, subscriber), None)
        if user_id is not None:
            self._ahead[scope, user_id].discard(subscriber)
            if not self._ahead[scope, user_id]:
                del self._ahead[scope, user_id]
        self._fanout.leave(scope, subscriber.listener)
        _drop(self._singly, scope, subscriber)
        _drop(self._viewers, (subscriber.tenant, subscriber.user_id or ""), (scope, subscriber))

    def of(self, tenant: str, channel: str) -> Iterator[Subscriber]:
        """A channel's subscribers at this node."""
        yield from tuple(self._subscribers.get((tenant, channel), ()))

    def others(self, tenant: str, channel: str) -> Sequence[Subscriber]:
        """Those of a channel's subscribers at this node that are not native."""
        return tuple(self._others.get((tenant, channel), ()))

    def has_others(self, tenant: str, channel: str) -> bool:
        """Whether there are any of these."""
        return (tenant, channel) in self._others

    def places_of(self, tenant: str, user_id: str) -> Sequence[tuple[Subscriber, str]]:
        """A user's subscribers at this node, each with one channel it is in. It searches all channels."""
        return [
            (subscriber, channel)
            for (whose, channel), subscribers in self._subscribers.items()
            if whose == tenant
            for subscriber in subscribers
            if subscriber.user_id == user_id
        ]

    def catch_up(self, subscriber: Subscriber, channel: str) -> None:
        """Tell a subscriber now of the members it has not heard of; see `FanOut.catch_up`."""
        self._fanout.catch_up(scope_of(subscriber.tenant, channel), subscriber.listener)

    def tell(self, said: Said, mark: Any) -> int:
        """Tell everyone in a channel what was said in it, but for the one connection that is its source.

        Args:
            said: what.
            mark: up to where clients that can recover have been told with it; None where none can.

        Returns:
            How many were told.
        """
        before = self.said
        groups: dict[ChannelCodec, list[Any]] = {}
        owner = owner_in(said)
        subscribers = self._subscribers.get((said.tenant, said.channel), {})
        for subscriber, early in tuple(subscribers.items()):
            if subscriber.connection_id == said.source:
                continue
            if owner is not None and subscriber.user_id == owner and subscriber.is_native:
                continue  # `Channels` sends it to all native connections of that user, in the channel or not
            if isinstance(early, list):
                early.append(said)
            elif early is not None and not self._is_news(subscribers, subscriber, said):
                continue
            elif subscriber.recovers:
                self._tell_one(subscriber, said, mark)
            else:
                groups.setdefault(subscriber.listener.codec, []).append(subscriber.listener.sink)
        for codec, sinks in groups.items():
            self.said += len(sinks)
            codec.write_all(codec.encode_said(said), sinks)
        return self.said - before

    def _tell_one(self, subscriber: Subscriber, said: Said, mark: Any) -> None:
        self.said += 1
        if subscriber.live is not None and subscriber.recovers:
            subscriber.live.emit(native_name(said.event), said.data, mark)
        else:
            subscriber.listener.write(subscriber.listener.codec.encode_said(said))

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions of members, to go out within the interval."""
        if self._visibility is None and not self._ahead:
            self._fanout.publish(transitions)
            return
        for transition in transitions:
            knowing = self._pop_ahead(transition)
            if self._visibility is None:
                self._publish_but_to(knowing, transition)
            elif changes := member_changes([transition]):
                self._publish_singly(knowing, transition, changes)

    def _publish_singly(
        self, knowing: Iterable[Subscriber], transition: Transition, changes: Sequence[wire.EventBody]
    ) -> None:
        """Tell those who may see a member that they came, or those who were told of a member that they went."""
        user_id, singly = transition.user_id, self._singly.get(transition.tenant, {})
        began, recipients = time.perf_counter(), 0
        if transition.now.online:
            for subscriber, untold in singly.items():
                if subscriber not in knowing:
                    untold.add(user_id)
        for subscriber, untold in tuple(singly.items()):
            if not transition.now.online:
                is_told = user_id not in untold
                untold.discard(user_id)
            else:
                # `sees` may find that the answer has changed, and `_on_flip` tell them: so `untold` is read after it.
                is_told = sees(self._visibility, subscriber, user_id) and user_id in untold
                if is_told:
                    untold.discard(user_id)
            if is_told:
                recipients += 1
                subscriber.listener.write(subscriber.listener.codec.encode(changes))
        if self._on_flush is not None:
            self._on_flush([transition], time.perf_counter() - began, recipients)

    def _on_flip(self, tenant: str, viewer: str, user_id: str, seen: bool) -> None:  # noqa: FBT001 - a callback
        """Tell a viewer's connections of a member whom the viewer may see from now on, or may not see any more."""
        at = self._clock()  # one for all of them
        for scope, subscriber in tuple(self._viewers.get((tenant, viewer), ())):
            untold, status = self._singly[scope][subscriber], self._view.status(scope, user_id)
            if not status.online or seen is not (user_id in untold):
                continue
            if seen:
                untold.discard(user_id)
            else:
                untold.add(user_id)
            flip = Transition(position=0, at=at, was=OFFLINE, now=status, reason=FLIPPED)
            body = MemberChanged.of(parse_scope(scope)[1], flip)
            subscriber.listener.write(subscriber.listener.codec.encode([(ADDED if seen else REMOVED, body)]))

    def _pop_ahead(self, transition: Transition) -> Iterable[Subscriber]:
        """The subscribers that a transition tells only that they themselves have come, which they know already."""
        if not transition.now.online:
            return ()
        knowing = self._ahead.pop((transition.tenant, transition.user_id), set())
        for subscriber in knowing:
            del self._ahead_as[transition.tenant, subscriber]
        return knowing

    def _publish_but_to(self, knowing: Iterable[Subscriber], transition: Transition) -> None:
        for subscriber in knowing:
            self._fanout.catch_up(transition.tenant, subscriber.listener)
        self._fanout.publish([transition])
        for subscriber in knowing:  # again, so that what was just published counts as heard
            self._fanout.join(transition.tenant, subscriber.listener)


def _drop(groups: dict[_Key, dict[_Item, Any]], key: _Key, item: _Item) -> None:
    """Remove an item from a group, and the group if it is empty then."""
    if (group := groups.get(key)) is not None:
        group.pop(item, None)
        if not group:
            del groups[key]


def sees(visibility: Visibility | None, subscriber: Subscriber, user_id: str) -> bool:
    """Whether a subscriber may see a member. If there is a rule, one without a user sees nobody."""
    if visibility is None or subscriber.user_id == user_id:
        return True
    return subscriber.user_id is not None and visibility.sees(subscriber.tenant, subscriber.user_id, user_id)
