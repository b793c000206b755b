"""The one executor of channels, behind every door."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgspec
import structlog

from gateway import wire
from gateway.channels.audience import sees
from gateway.channels.events import USER_TYPING, heard_by, native_name, owner_in
from gateway.channels.hiding import Hiding
from gateway.channels.log import TOPIC
from gateway.channels.membership import is_presence
from gateway.channels.model import Draft, Entry, Joined, Occupancy, Said, asker_of, is_native
from gateway.channels.names import Kind, check_name, is_of_user, kind_of, owner_of, scope_of
from gateway.channels.rooms import Rooms, channel_in, room_of
from gateway.errors import (
    ForbiddenError,
    InvalidPayloadError,
    RequestError,
    StoreUnavailableError,
    UnavailableError,
    store_away,
)
from gateway.presence.model import Ending
from gateway.runtime.tasks import end, in_parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from gateway.channels.audience import ChannelAudience
    from gateway.channels.authorization import Authorizer
    from gateway.channels.log import ChannelLog
    from gateway.channels.membership import Membership
    from gateway.channels.model import Asker, History, Person, Subscriber
    from gateway.channels.subscriptions import Subscriptions
    from gateway.connections.live import LiveConnection
    from gateway.nodes.bus import Bus
    from gateway.presence.clock import Clock
    from gateway.presence.model import Transition
    from gateway.presence.visibility import Visibility
    from gateway.recovery.direct import Target
    from gateway.recovery.recovery import Reading, Recovery

_log = structlog.get_logger(__name__)

HISTORY_LIMIT = 1000
"""Events of a channel's history in one answer, at the most."""

REMOVAL, REAUTHORIZATION = "channel-removal", "channel-reauthorization"
"""Topics of the bus: users have to leave a channel; whether a user may be in their channels has to be asked again."""


class _Removal(msgspec.Struct, frozen=True):
    """Take a user, or everyone if `user_id` is None, out of a channel on other nodes."""

    tenant: str
    channel: str
    user_id: str | None


class _Reauthorization(msgspec.Struct, frozen=True):
    """Ask again whether a user may be in the channels they are in."""

    tenant: str
    user_id: str


def _reading_of(removal: _Removal) -> Reading:
    """A removal in the form that recovery keeps. It has no text to send, but takes a client that was away out."""
    scope = scope_of(removal.tenant, removal.channel)
    return (("removal", scope, removal.user_id),), b"", frozenset()


def _removals(owner: tuple[str, str], room: str | int) -> Sequence[Target]:
    """The targets of removals that take a user out of a room; none for a room that is no channel."""
    channel = channel_in(room) if isinstance(room, str) else None
    if channel is None:
        return ()
    scope = scope_of(owner[0], channel)
    return ("removal", scope, owner[1]), ("removal", scope, None)


def _as_of_now(subscriber: Subscriber, asker: Asker) -> Asker:
    """The asker with the token that their connection has now, which may have been refreshed since they asked."""
    if subscriber.live is None:
        return asker
    now = asker_of(subscriber.live)
    return msgspec.structs.replace(asker, identity=now.identity, headers={**asker.headers, **now.headers})


class Channels:
    """Lets connections into channels, says things in them, and knows who is there.

    It does not decide who may enter: the door has asked an `authorization.Authorizer`, or checked a signature, before.

    Args:
        membership: knows who is in which channel, on all nodes.
        log: takes what is said to all nodes, and keeps the histories.
        audience: this node's connections in channels.
        authorizer: is asked again when rights may have changed.
        bus: tells other nodes of removals.
        clock: the time.
        subscriptions: counts the connections in channels, on all nodes.
        visibility: who may see whom; None if everyone sees everyone.
        recovery: keeps events for clients that lost their connection; None without recovery.
        namespaces: the namespaces of Socket.IO whose clients recover.
        most: how many channels one connection may be in.
    """

    def __init__(  # noqa: PLR0913 - each is another part of the gateway, or a bound
        self,
        membership: Membership,
        log: ChannelLog,
        audience: ChannelAudience,
        authorizer: Authorizer,
        bus: Bus,
        clock: Clock,
        *,
        subscriptions: Subscriptions,
        visibility: Visibility | None = None,
        recovery: Recovery | None = None,
        namespaces: Sequence[str] = (),
        most: int = 1000,
    ) -> None:
        self.membership = membership
        self.subscriptions = subscriptions
        self.log = log
        self.rooms = Rooms()
        self.most = most
        self.refused = 0
        """How often a connection was refused because it is in as many channels as it may be."""
        self.on_end: list[Callable[[Subscriber], Awaitable[None]]] = []
        """Called with a subscriber whose connection has ended."""
        self.on_said: dict[str, Callable[[Said], None]] = {}
        """By event name: called with each such event that was said in any channel, after this node's clients were
        told."""
        self.on_client_event: Callable[[Said, str | None], None] = lambda _said, _member: None
        """Called with each event that a client of this node has sent to the others in a channel, and the user id that
        it has there as a member, or None."""
        self.on_cache_miss: Callable[[str, str], None] = lambda _tenant, _channel: None
        """Called with a tenant and a cache channel when a client of this node enters it and nothing is cached."""
        self.of_user: Callable[[str, str], Sequence[LiveConnection]] = lambda _tenant, _user_id: ()
        """Returns a user's live connections to this node, by tenant and user id. Native ones among them hear what is
        said to the user, whether or not they are in a channel."""
        self._audience = audience
        self._authorizer = authorizer
        self._bus = bus
        self._clock = clock
        self._visibility = visibility
        self._recovery = recovery
        self._namespaces = tuple(namespaces)
        self._entries: WeakSet[Entry] = WeakSet()
        self._hiding = Hiding(membership)
        self._later: set[asyncio.Task[object]] = set()
        log.hear = self._hear
        if recovery is not None:
            recovery.readers[TOPIC] = lambda data: self._reading(msgspec.json.decode(data, type=Said))
            recovery.readers[REMOVAL] = lambda data: _reading_of(msgspec.json.decode(data, type=_Removal))
            recovery.removals = _removals
        bus.subscribe(REMOVAL, _Removal, self._on_removal)
        bus.subscribe(REAUTHORIZATION, _Reauthorization, self._on_reauthorization)

    # A connection's channels

    def entry(self, subscriber: Subscriber, channel: str, asker: Asker | None) -> Entry:
        """Begin to let somebody in. Call it before asking whether they may enter, and pass the result to `join`."""
        entry = Entry(subscriber, channel, asker)
        self._entries.add(entry)
        return entry

    async def join(
        self,
        subscriber: Subscriber,
        channel: str,
        person: Person | None = None,
        *,
        entry: Entry | None = None,
        since: int | None = None,
        limit: int = HISTORY_LIMIT,
        answer: Callable[[Joined], None] = lambda _joined: None,
        goes_on: bool = False,
    ) -> Joined:
        """Let a connection into a channel. It misses nothing between the answer and the events that it hears after it.

        A connection that is in the channel already is answered as if it had just come.

        Args:
            subscriber: the connection. `leave` or `end` takes it out again.
            channel: which.
            person: as whom it enters, as the authorizer or a signature says; None unless it is a presence channel.
            entry: what `entry` returned before the authorizer was asked; None if nobody was asked.
            since: the position of the last event of the channel that the client has; the answer has those after it.
                0 asks for everything that is kept, None for nothing.
            limit: how many of these events the answer may have.
            answer: called with the answer before the connection is sent what was said in the meantime.
            goes_on: whether the client recovers, and was in the channel when it lost its connection.

        Raises:
            InvalidPayloadError: this is no name of a channel.
            ForbiddenError: the connection is in as many channels as it may be; or its user was removed from the
                channel, or lost the right to it, after `entry` was called.
            UnavailableError: the store is away, and the history was asked for, or a recovery on another node would not
                know of this channel. The connection is not in the channel.
        """
        check_name(channel)
        async with subscriber.turn(channel):
            is_new = channel not in subscriber.channels
            if is_new:
                await self._enter(subscriber, channel, person, entry)
            try:
                if is_new and not goes_on:
                    await self.rooms.settle(subscriber)
                history = None if since is None else await self._history(subscriber.tenant, channel, since, limit)
            except BaseException as error:  # a cancellation, too: nothing would ever be sent to it
                if is_new:  # a client that is told to try again comes back in a moment: that ends no grace
                    is_away = isinstance(error, StoreUnavailableError | UnavailableError)
                    await self._leave(subscriber, channel, Ending.LOST if is_away else Ending.GOODBYE)
                if isinstance(error, StoreUnavailableError):
                    raise store_away() from None
                raise
            # From here on in one turn of the loop, so that nothing is published between the answer and `begin`.
            person, members = subscriber.channels[channel], None
            if person is not None:
                self._audience.catch_up(subscriber, channel)
                is_known = self.membership.is_member(subscriber.tenant, channel, person.user_id)
                members = self.members_seen_by(subscriber, channel)
                ahead = None if is_known else person.user_id
                self._audience.hear_members(subscriber, channel, told=members, ahead=ahead)
            position = 0 if history is None else history.position
            joined = Joined(channel=channel, person=person, members=members, history=history, position=position)
            answer(joined)
            mark = None if self._recovery is None else self._recovery.mark()
            self._audience.begin(subscriber, channel, position, mark)
        return joined

    async def _enter(self, subscriber: Subscriber, channel: str, person: Person | None, entry: Entry | None) -> None:
        if entry is not None:
            # Ask again if rights have changed in the meantime. Nothing is awaited between the last of these checks and
            # `audience.join`, so a removal finds the connection either by its entry or in the audience.
            while entry.take_doubt(person) and entry.asker is not None:
                person = await self._authorizer.person(_as_of_now(subscriber, entry.asker), channel)
            entry.check(person)
        if subscriber.ended:
            raise ForbiddenError("the connection has ended")
        if len(subscriber.channels) >= self.most:
            self.refused += 1
            raise ForbiddenError(f"a connection may be in {self.most} channels (MAX_CHANNELS_PER_CONNECTION)")
        subscriber.channels[channel] = person
        self._audience.join(subscriber, channel, early=[])
        self.rooms.put(subscriber, channel, inside=True)
        try:
            await self.membership.enter(subscriber.tenant, channel, person)
        except BaseException as error:
            del subscriber.channels[channel]
            self._audience.leave(subscriber, channel)
            self.rooms.put(subscriber, channel, inside=False)
            if isinstance(error, StoreUnavailableError):
                raise store_away() from None
            raise

    def go_on(self, subscriber: Subscriber, channels: Sequence[str]) -> None:
        """Let a client that recovers hear what is said in its channels from now on, before it has joined them again.

        Joining takes a while, and what is said in the meantime would be lost. `join` or `give_up` has to follow for
        each of the channels.
        """
        for channel in channels:
            self._audience.join(subscriber, channel)

    def give_up(self, subscriber: Subscriber, channel: str) -> None:
        """Undo `go_on` for a channel that the client could not join again."""
        if channel not in subscriber.channels:
            self._audience.leave(subscriber, channel)
            self.rooms.put(subscriber, channel, inside=False)

    async def leave(self, subscriber: Subscriber, channel: str) -> bool:
        """Take a connection out of a channel; return whether it was in it.

        Raises:
            UnavailableError: the store is away. The connection has left, but if its client recovers on another node, it
                may be put back into the channel.
        """
        async with subscriber.turn(channel):
            was_in = channel in subscriber.channels
            await self._leave(subscriber, channel, Ending.GOODBYE)
            await self.rooms.settle(subscriber)
        return was_in

    async def end(self, subscriber: Subscriber, ending: Ending) -> None:
        """Take a connection that has ended out of all its channels."""
        subscriber.ended = True
        subscriber.granted.clear()
        leaving = in_parts(self._end(subscriber, channel, ending) for channel in tuple(subscriber.channels))
        await asyncio.gather(leaving, *(each(subscriber) for each in self.on_end))

    async def _end(self, subscriber: Subscriber, channel: str, ending: Ending) -> None:
        async with subscriber.turn(channel):
            await self._leave(subscriber, channel, ending)

    async def _leave(self, subscriber: Subscriber, channel: str, ending: Ending) -> None:
        if channel not in subscriber.channels:
            return
        person = subscriber.channels.pop(channel)
        self._audience.leave(subscriber, channel)
        if not subscriber.ended:
            self.rooms.put(subscriber, channel, inside=False)
        await self.membership.leave(subscriber.tenant, channel, person, ending)

    async def remove(self, tenant: str, channel: str, user_id: str | None = None) -> int:
        """Take a user's connections, or all if `user_id` is None, out of a channel, on every node.

        A client that has lost its connection is taken out, too, if it recovers later, on any node.

        Returns:
            How many connections of this node were in it.
        """
        removal = _Removal(tenant, check_name(channel), user_id)
        self._bus.publish(REMOVAL, removal)
        found = self._remove(removal, own=True)
        await self._take_all_out(found, channel)
        return len(found)

    def _remove(self, removal: _Removal, *, own: bool) -> Sequence[Subscriber]:
        """Stop sending to those who have to leave, and keep them from being put back by recovery.

        It is done at once, without waiting for the store: what is said from now on is not for them.

        Returns:
            Those who have to be counted out of the channel and told.
        """
        tenant, channel, user_id = removal.tenant, removal.channel, removal.user_id
        if self._recovery is not None:
            self._recovery.record(*_reading_of(removal), own=own)
        for entry in self._entries:
            if entry.channel == channel:
                entry.removed.add((tenant, user_id))
        found = [
            each
            for each in self._audience.of(tenant, channel)
            if user_id is None or user_id in {each.user_id, each.member_id(channel)}
        ]
        for subscriber in found:
            self._audience.leave(subscriber, channel)
            self.rooms.put(subscriber, channel, inside=False)
        return [each for each in found if channel in each.channels]  # the others are being put back, and told by that

    async def _take_all_out(self, subscribers: Sequence[Subscriber], channel: str) -> None:
        await in_parts(self._take_out(subscriber, channel) for subscriber in subscribers)

    async def _take_out(self, subscriber: Subscriber, channel: str) -> None:
        await self._end(subscriber, channel, Ending.KICKED)
        with suppress(
            UnavailableError
        ):  # if it recovers elsewhere, that node knows the removal, or asks for its rights
            await self.rooms.settle(subscriber)
        subscriber.listener.removed(channel)

    async def _on_removal(self, removal: _Removal) -> None:
        # In a task: later messages of the bus must not wait until the store knows of it.
        self._later_on(self._take_all_out(self._remove(removal, own=False), removal.channel))

    async def reauthorize(self, tenant: str, user_id: str) -> None:
        """Ask again, on every node, whether a user may be in their channels, and take them out where they may not.

        A user whom a signature let in stays, since whoever signed it vouched for them. So does everyone while the
        authorizer cannot be asked.
        """
        self._bus.publish(REAUTHORIZATION, _Reauthorization(tenant, user_id))
        await self._reauthorize(tenant, user_id)

    async def _reauthorize(self, tenant: str, user_id: str) -> None:
        for entry in self._entries:
            entry.doubted.add((tenant, user_id))
        for subscriber, channel in self._audience.places_of(tenant, user_id):
            if channel not in subscriber.channels:  # it is about to enter, and `_enter` sees the doubt
                continue
            if subscriber.asker is None or kind_of(channel) is Kind.PUBLIC:
                continue
            try:
                await self._authorizer.person(_as_of_now(subscriber, subscriber.asker), channel)
            except ForbiddenError:
                await self._take_out(subscriber, channel)
            except RequestError as error:
                _log.warning("a user could not be authorized again, and stays", channel=channel, error=str(error))

    async def _on_reauthorization(self, asked: _Reauthorization) -> None:
        self._later_on(self._reauthorize(asked.tenant, asked.user_id))  # in a task: the authorizer may be slow

    # What is said

    async def say(  # noqa: PLR0913 - each is another property of the event
        self,
        tenant: str,
        channels: Sequence[str],
        event: str,
        data: object,
        *,
        sender: str | None = None,
        source: str | None = None,
        keep: bool = True,
        once: str | None = None,
        budget: str | None = None,
        owner: str | None = None,
    ) -> Sequence[Said]:
        """Say something in one or several channels: every node sends it to all who are in them, in one order.

        Args:
            tenant: whose channels.
            channels: which.
            event: the event's name.
            data: anything that JSON can hold; `msgspec.Raw` if it is JSON already.
            sender: the user who says it; None for a backend.
            source: the id of the one connection that is not sent it; None if all are.
            keep: whether it is kept in the channels' histories.
            once: a name under which it is said only once; None if it may be repeated.
            budget: the name of a budget that it counts against, as for `ChannelLog.say`; None for none.
            owner: the user to whom it is said, if one of the channels is that user's own and its name does not tell
                whose it is; None otherwise.

        Raises:
            InvalidPayloadError: a channel's name is not valid, or the data is not JSON or too large.
            RateLimitedError: the budget is used up.
            UnavailableError: the store is away. It is not known whether it was said; with `once` it can be repeated.
        """
        text = data if isinstance(data, msgspec.Raw) else msgspec.Raw(wire.encode_given(data))
        drafts = [
            Draft(
                tenant=tenant,
                channel=check_name(channel),
                event=event,
                data=text,
                sender=sender,
                source=source,
                keep=keep,
                owner=owner if is_of_user(channel) and owner_of(channel) is None else None,
            )
            for channel in channels
        ]
        try:
            return await self._append(drafts, once, budget)
        except StoreUnavailableError:
            raise store_away() from None

    def _append(self, drafts: Sequence[Draft], once: str | None, budget: str | None) -> Awaitable[Sequence[Said]]:
        return self.log.say(drafts, self._clock(), once=once, budget=budget)

    async def say_to_others(self, subscriber: Subscriber, channel: str, event: str, data: msgspec.Raw) -> None:
        """Say something for a client to the others in a channel (a client event). It is not kept in the history.

        Raises:
            UnavailableError: the store is away.
        """
        member = subscriber.member_id(channel)
        sender, source = member or subscriber.user_id, subscriber.connection_id
        said = await self.say(subscriber.tenant, [channel], event, data, sender=sender, source=source, keep=False)
        for each in said:
            self.on_client_event(each, member)

    async def history(self, tenant: str, channel: str, *, after: int | None = None, limit: int = 100) -> History:
        """Read what was said in a channel; see `ChannelLog.history`.

        Raises:
            InvalidPayloadError: the channel's name is not valid, or the limit is not from 1 to `HISTORY_LIMIT`.
            UnavailableError: the store is away.
        """
        check_name(channel)
        if not 1 <= limit <= HISTORY_LIMIT:
            raise InvalidPayloadError(f"limit is 1 to {HISTORY_LIMIT}")
        try:
            return await self.log.history(tenant, channel, self._clock(), after=after, limit=limit)
        except StoreUnavailableError:
            raise store_away() from None

    async def _history(self, tenant: str, channel: str, since: int, limit: int) -> History:
        return await self.log.history(tenant, channel, self._clock(), after=since, limit=limit)

    def _hear(self, said: Said, own: bool) -> int:  # noqa: FBT001 - the log's
        """Tell this node's clients what was said, and return how many were told."""
        mark = None
        if self._recovery is not None and (reading := self._reading(said)) is not None:
            mark = self._recovery.record(*reading, own=own)
        told = self._audience.tell(said, mark) + self._tell_users(said, mark)
        if (heed := self.on_said.get(said.event)) is not None:
            heed(said)
        return told

    def _reading(self, said: Said) -> Reading | None:
        """An event in the form that recovery keeps: its targets, its text, and the clients to skip.

        None if it is not kept for recovery. Typing is not: a client that was away would never be told that it ended.
        """
        if said.event == USER_TYPING:
            return None
        room = room_of(said.tenant, said.channel)
        targets = [("room", namespace, room) for namespace in self._namespaces]
        targets += [("user", said.tenant, user_id) for user_id in heard_by(said)]
        skipped = frozenset(() if said.source is None else (said.source,))
        return tuple(targets), wire.encode((native_name(said.event), said.data)), skipped

    def tell(self, said: Said) -> None:
        """Send an event to the clients of this node only, as if it had been said."""
        self._audience.tell(said, None)

    def _tell_users(self, said: Said, mark: Any) -> int:
        """Tell the native connections of users what is said to them, those that have not been told in the channel."""
        told = 0
        for user_id in heard_by(said):
            for live in self.of_user(said.tenant, user_id):
                if live.connection.id == said.source or not is_native(live):
                    continue
                joined = live.subscriber is not None and said.channel in live.subscriber.channels
                if not joined or owner_in(said) == user_id:
                    live.emit(native_name(said.event), said.data, mark)
                    told += 1
        return told

    # Who is there

    def members(self, tenant: str, channel: str) -> Sequence[Person]:
        """The members of a presence channel, by user id, without those who are invisible."""
        return self.membership.members(tenant, channel)

    def members_seen_by(self, subscriber: Subscriber, channel: str) -> Sequence[Person]:
        """The members of a presence channel that a subscriber may see, including its own user, by user id."""
        own = subscriber.channels.get(channel)
        found = {
            person.user_id: person
            for person in self.membership.members(subscriber.tenant, channel)
            if sees(self._visibility, subscriber, person.user_id)
        }
        if own is not None:  # a user sees themselves, even while invisible or while the store is away
            found.setdefault(own.user_id, own)
        return [found[user_id] for user_id in sorted(found)]

    def subscribers(self, tenant: str, channel: str) -> Iterator[Subscriber]:
        """A channel's subscribers at this node."""
        return self._audience.of(tenant, channel)

    def occupied(self, tenant: str, prefix: str = "") -> Sequence[Occupancy]:
        """The channels that anybody is in and whose names begin with `prefix`, ordered by name."""
        return [self.occupancy(tenant, channel) for channel in self.membership.occupied(tenant, prefix)]

    def occupancy(self, tenant: str, channel: str) -> Occupancy:
        """How many members and subscriptions a channel has."""
        return Occupancy(
            channel=channel,
            users=self.membership.count(tenant, channel) if is_presence(channel) else None,
            subscriptions=self.subscriptions.count(tenant, channel),
        )

    # What presence says

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions of presence: a user who became invisible, or visible, becomes so in channels, too."""
        self._hiding.publish(transitions)

    def _later_on(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def close(self) -> None:
        """Cancel what is still under way, and close the log."""
        await self._hiding.close()
        await end(list(self._later))
        await self.log.close()
