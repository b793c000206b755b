"""Channels for native clients, which speak the gateway's own events over Socket.IO or a plain WebSocket."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gateway.channels.events import native_name
from gateway.channels.model import Subscriber, asker_of
from gateway.channels.names import channel_between, conversation_channel, parties_of
from gateway.channels.rooms import channel_in
from gateway.channels.wire import (
    ChannelEvent,
    ChannelMembers,
    JoinChannel,
    JoinConversation,
    JoinedChannel,
    JoinedConversation,
    LeaveChannel,
    LeaveConversation,
    LeftChannel,
    LeftConversation,
    members_of,
)
from gateway.errors import ForbiddenError, InvalidPayloadError, RequestError
from gateway.runtime.tasks import in_parts
from gateway.wire import timestamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from gateway.channels.authorization import Authorizer
    from gateway.channels.channels import Channels
    from gateway.channels.model import Entry, History, Joined, Person, Said
    from gateway.connections.live import LiveConnection
    from gateway.connections.requests import Requests
    from gateway.presence.fanout import Batch, Codec
    from gateway.presence.model import Ending
    from gateway.wire import Body


class NativeCodec:
    """Encodes what happens in channels as the gateway's own events.

    Args:
        codec: encodes the connection's other events.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.write_all = codec.write_all

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode who came and went."""
        return self._codec.encode(events)

    def encode_said(self, said: Said) -> Batch:
        """Encode what was said: the event and its data, which tell the client the channel where it matters."""
        return self._codec.encode([(native_name(said.event), said.data)])


@lru_cache(maxsize=8)
def native(codec: Codec) -> NativeCodec:
    """The codec of channels for a codec; always the same one, so that connections share what it has encoded."""
    return NativeCodec(codec)


class NativeListener:
    """A live connection, as channels write to it."""

    def __init__(self, live: LiveConnection) -> None:
        peer: Any = live.peer
        # Plain: events about members carry no offset, since they do not come from the log of presence.
        self.codec = native(getattr(peer.codec, "plain", peer.codec))
        self.sink = peer.sink
        self.write = peer.write
        self._live = live

    def removed(self, channel: str) -> None:
        """Tell it that it was taken out of a channel."""
        self._live.emit("channel-left", LeftChannel(channel))


class ChannelRequests:
    """Answers the requests about channels of native clients, and takes them out when they disconnect.

    Args:
        channels: the executor.
        authorizer: decides who may be in which channel.
    """

    def __init__(self, channels: Channels, authorizer: Authorizer) -> None:
        self._channels = channels
        self._authorizer = authorizer
        self.refresh: Callable[[str, Sequence[Said]], Awaitable[Sequence[Said]]] | None = None
        """Given a tenant and the events of a channel's history, returns them brought up to date: messages that have
        been read since are marked so. None leaves them as they were said."""

    def add_to(self, requests: Requests) -> None:
        """Add these requests to the others."""
        name = 'takes {"channel": "…"} of 1 to 164 characters A-Z a-z 0-9 _ - = @ , . ; :'
        usage = f'join-channel {name}, and "since": a position, as text, where it was in it before'
        requests.add("join-channel", JoinChannel, "joined-channel", self._join, usage)
        requests.add("leave-channel", LeaveChannel, "left-channel", self._leave, f"leave-channel {name}")
        requests.add(
            "join-conversation",
            JoinConversation,
            "joined-conversation",
            self._join_conversation,
            'join-conversation takes {"conversationId": "…"}, the ids of the two users, as alice-bob',
        )
        requests.add(
            "leave-conversation",
            LeaveConversation,
            "left-conversation",
            self._leave_conversation,
            'leave-conversation takes {"conversationId": "…"}, the ids of the two users, as alice-bob',
        )

    @staticmethod
    def subscriber_of(live: LiveConnection) -> Subscriber:
        """The subscriber of a live connection, which is made when it is first needed."""
        if live.subscriber is None:
            identity, listener = live.identity, NativeListener(live)
            live.subscriber = Subscriber(
                identity.tenant, live.connection.id, listener, user_id=identity.user_id, live=live
            )
        subscriber: Subscriber = live.subscriber
        return subscriber

    async def refused(self, live: LiveConnection, rooms: Sequence[str]) -> Collection[str]:
        """Ask in which of its rooms a client may still be, before it recovers and is told what it missed.

        Returns:
            The rooms in which it may not be any more; it is told so.
        """
        subscriber = self.subscriber_of(live)
        subscriber.asker = asker = asker_of(live)
        subscriber.granted = {}
        lost = []
        entries = {
            room: self._channels.entry(subscriber, channel, asker) for room in rooms if (channel := channel_in(room))
        }
        for room, entry in entries.items():
            try:
                person = await self._authorizer.person(asker, entry.channel)
                while entry.take_doubt(person):  # before it hears what was said after that
                    person = await self._authorizer.person(asker, entry.channel)
                subscriber.granted[entry.channel] = entry, person
            except RequestError:
                lost.append(room)
                live.emit("channel-left", LeftChannel(entry.channel))
        return lost

    async def rejoin(self, live: LiveConnection, rooms: Sequence[str], removed: Sequence[str] = ()) -> None:
        """Put a client that has recovered back into its channels, and tell it who is there.

        Args:
            live: its connection.
            rooms: the rooms that it was in.
            removed: further rooms, which it was taken out of while it was away: it is told so.
        """
        subscriber = self.subscriber_of(live)
        for room in removed:
            if channel := channel_in(room):
                subscriber.granted.pop(channel, None)
                live.emit("channel-left", LeftChannel(channel))
        granted, subscriber.granted = subscriber.granted, {}
        channels = [channel for room in rooms if (channel := channel_in(room)) and channel in granted]
        self._channels.go_on(subscriber, channels)  # what is said from here on is not among what it missed
        await in_parts(self._rejoin(live, subscriber, channel, *granted[channel]) for channel in channels)

    async def _rejoin(
        self, live: LiveConnection, subscriber: Subscriber, channel: str, entry: Entry, person: Person | None
    ) -> None:
        try:
            joined = await self._channels.join(subscriber, channel, person, entry=entry, goes_on=True)
        except RequestError:
            self._channels.give_up(subscriber, channel)
            with suppress(RequestError):
                await self._channels.rooms.settle(subscriber)
            live.emit("channel-left", LeftChannel(channel))
            return
        if joined.members is not None:
            live.emit("channel-members", ChannelMembers(channel, _members(joined)))

    async def end(self, live: LiveConnection, ending: Ending) -> None:
        """Take a connection that has ended out of all its channels."""
        if live.subscriber is not None:
            await self._channels.end(live.subscriber, ending)

    async def _enter(self, live: LiveConnection, channel: str, since: str | None) -> Joined:
        subscriber = self.subscriber_of(live)
        asker = asker_of(live)
        entry = self._channels.entry(subscriber, channel, asker)
        person = await self._authorizer.person(asker, channel)
        if live.ending is not None:
            raise ForbiddenError("the connection has ended")
        subscriber.asker = asker
        return await self._channels.join(
            subscriber, channel, person, entry=entry, since=None if since is None else int(since)
        )

    async def _join(self, live: LiveConnection, request: JoinChannel, _now: int) -> Body:
        return JoinedChannel(**await self._joined(live, request.channel, request.since))

    async def _joined(self, live: LiveConnection, channel: str, since: str | None) -> dict[str, Any]:
        """Let a connection into a channel, and return the fields of the answer."""
        is_new = channel not in self.subscriber_of(live).channels
        joined = await self._enter(live, channel, since)
        fields: dict[str, Any] = {"channel": joined.channel}
        if joined.members is not None:
            fields["members"] = _members(joined)
        history = joined.history
        if history is None:
            return fields
        events = history.events
        if self.refresh is not None and joined.members is None:  # members are answered with in the turn they are read
            try:
                events = await self.refresh(live.identity.tenant, events)
            except RequestError:
                if is_new:  # a client whose request failed must not be in the channel
                    await self._channels.leave(self.subscriber_of(live), joined.channel)
                raise
        return fields | _history(history, events)

    async def _leave(self, live: LiveConnection, request: LeaveChannel, _now: int) -> Body:
        await self._channels.leave(self.subscriber_of(live), request.channel)
        return LeftChannel(request.channel)

    async def _join_conversation(self, live: LiveConnection, request: JoinConversation, _now: int) -> Body:
        fields = await self._joined(live, _channel_of(request.conversation_id), request.since)
        return JoinedConversation(**fields, conversation_id=request.conversation_id)

    async def _leave_conversation(self, live: LiveConnection, request: LeaveConversation, _now: int) -> Body:
        await self._channels.leave(self.subscriber_of(live), _channel_of(request.conversation_id))
        return LeftConversation(request.conversation_id)


def _channel_of(conversation: str) -> str:
    """The channel of a conversation, whichever of the two is named first."""
    parties = parties_of(conversation)
    channel = conversation_channel(conversation) if parties is None else channel_between(*parties)
    if channel is None:
        raise InvalidPayloadError("these two ids are too long for a conversation; name a channel of your own for them")
    return channel


def _members(joined: Joined) -> Sequence[Any]:
    return members_of((person.user_id, person.profile) for person in joined.members or ())


def _history(history: History, events: Sequence[Said]) -> dict[str, Any]:
    return {
        "history": [
            ChannelEvent(native_name(said.event), said.data, str(said.position), timestamp(said.at)) for said in events
        ],
        "recovered": history.recovered,
        "position": str(history.position),
    }
