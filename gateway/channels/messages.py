"""Messages: to a user, in a conversation, in a room; who has read them, and who is typing."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway import wire
from gateway.channels.events import MESSAGE_READ, NEW_ACTIVITY, NEW_MESSAGE
from gateway.channels.messages_wire import Author, DirectMessage, MessageRead, NewActivity, RoomMessage
from gateway.channels.names import (
    channel_between,
    check_name,
    conversation_channel,
    is_conversation,
    is_of_user,
    owner_of,
    parties_in,
    parties_of,
    user_channel,
)
from gateway.channels.receipts import Unread
from gateway.errors import (
    ForbiddenError,
    InvalidPayloadError,
    RateLimitedError,
    StoreUnavailableError,
    UnavailableError,
    store_away,
)
from gateway.presence.model import PART
from gateway.runtime.functions import takes_tenant

if TYPE_CHECKING:
    from gateway.channels.authorization import Authorizer
    from gateway.channels.channels import Channels
    from gateway.channels.messages_wire import To
    from gateway.channels.model import Asker, Person, Said, Subscriber
    from gateway.channels.receipts import Receipts
    from gateway.channels.typists import Typists
    from gateway.presence.clock import Clock
    from gateway.presence.visibility import Visibility

_log = structlog.get_logger(__name__)

ROOMS = ("room-", "presence-room-")
"""The prefixes of the channels of rooms; the rest of the name is the room's id. Any other channel is its own id."""

MessageRule = Callable[..., "bool | Awaitable[bool]"]
"""``can_message(sender, recipient)``, given two ids, returns whether the sender may write to the recipient. It may be
async. If it has a parameter ``tenant``, it is given that, too."""


class Place(msgspec.Struct, frozen=True):
    """Where a message is said, and whom it is for."""

    channels: Sequence[str]
    recipient: str | None = None
    """The user who is to read it; None in a room, and for a message that users send to themselves."""
    party: str | None = None
    """The user whom it is sent to, even if that is the sender; None in a room."""
    room: str | None = None
    """The id of the room; None in a conversation."""

    @property
    def shared(self) -> str:
        """The channel that both sides hear: the conversation, or the room."""
        return self.channels[-1]


class Messages:
    """Sends messages, and knows who has read them, by the same rules for every door.

    Args:
        channels: says them.
        authorizer: decides who may be in a room.
        receipts: keeps what was read.
        typists: keeps who is typing.
        clock: the time.
        visibility: who may see whom; None if everyone sees everyone. Users who may not see each other, both ways, may
            not write to each other.
        rule: the application's rule of who may write to whom; None if it has none.
    """

    def __init__(
        self,
        channels: Channels,
        authorizer: Authorizer,
        receipts: Receipts,
        typists: Typists,
        clock: Clock,
        *,
        visibility: Visibility | None = None,
        rule: MessageRule | None = None,
    ) -> None:
        self._channels = channels
        self._authorizer = authorizer
        self._receipts = receipts
        self._typists = typists
        self._clock = clock
        self._visibility = visibility
        self._rule = rule
        self._takes_tenant = rule is not None and takes_tenant(rule)

    async def send(
        self,
        tenant: str,
        person: Person,
        to: To,
        content: str,
        *,
        client_id: str | None = None,
        asker: Asker | None = None,
        subscriber: Subscriber | None = None,
    ) -> msgspec.Raw:
        """Send a message.

        Args:
            tenant: of sender and recipient.
            person: the sender.
            to: the recipient, conversation or channel.
            content: the text.
            client_id: the sender's own id for it: a message that is sent again under it is not a new one. None if a
                repeated message is a new one.
            asker: the sender as they ask to enter a room, and whose budget it counts against; None for a backend, which
                may write anywhere.
            subscriber: the connection that sends it, which is not sent the event; None if it comes another way.

        Returns:
            The message as others hear it; under a `client_id` that was used before, the first message.

        Raises:
            InvalidPayloadError: the channel's name is not valid, or it is a user's own and does not tell whose.
            ForbiddenError: the sender may not write there.
            RateLimitedError: the sender's budget is used up.
            UnavailableError: the store is away. It is not known whether it was sent; with a `client_id`, repeat it.
        """
        place = await self._place(tenant, person, to, asker, subscriber)
        once = None if client_id is None else PART.join(("message", tenant, person.user_id, client_id))
        message_id = secrets.token_urlsafe(16) if once is None else _id_of(once)
        message = _message(message_id, place, person, content, wire.timestamp(self._clock()))
        source = None if subscriber is None else subscriber.connection_id
        budget = None if asker is None else PART.join((tenant, person.user_id))
        is_new = False
        try:
            if place.recipient is not None:
                # Before the message is said, since it might be read at once.
                unread = Unread(message_id, person.user_id)
                is_new = await self._receipts.add(tenant, place.recipient, unread, self._clock())
            said = await self._channels.say(
                tenant,
                place.channels,
                NEW_MESSAGE,
                message,
                sender=person.user_id,
                source=source,
                once=once,
                budget=budget,
                owner=place.party,
            )
            if place.recipient is not None and said[0].channel != place.channels[0]:
                await self._receipts.forget(tenant, place.recipient, message_id)  # the first one was to another user
        except RateLimitedError:
            if place.recipient is not None and is_new:
                with suppress(StoreUnavailableError):
                    await self._receipts.forget(tenant, place.recipient, message_id)
            raise
        except StoreUnavailableError:
            raise store_away() from None
        with suppress(UnavailableError):  # typing ends by itself after a few seconds
            await self._typists.stop(tenant, place.shared, person.user_id, source)
        return said[0].data

    async def mark_read(
        self, tenant: str, person: Person, *, message_id: str | None = None, sender: str | None = None
    ) -> int:
        """Mark messages to a user as read: one of them, or all from one sender.

        The sender is told, unless the user may not write to them.

        Returns:
            How many messages had not been read. An unknown message, or one to somebody else, does not count.

        Raises:
            UnavailableError: the store is away; ask again.
        """
        now = self._clock()
        try:
            found = await self._receipts.unread(tenant, person.user_id, now, message_id=message_id, sender=sender)
            # First told, under a name so that it is told once, and then marked: the request can be repeated.
            told = {each.sender for each in found}
            told = {each for each in told if await self._may_write(tenant, person.user_id, each)}
            await asyncio.gather(
                *(self._tell_read(tenant, person.user_id, each, now) for each in found if each.sender in told)
            )
            return len(await self._receipts.mark(tenant, person.user_id, [each.id for each in found], now))
        except StoreUnavailableError:
            raise store_away() from None

    async def _tell_read(self, tenant: str, reader: str, message: Unread, now: int) -> None:
        channels = [user_channel(message.sender)]
        if (conversation := channel_between(reader, message.sender)) is not None:
            channels.append(conversation)
        await self._channels.say(
            tenant,
            channels,
            MESSAGE_READ,
            MessageRead(message.id, reader, wire.timestamp(now)),
            sender=reader,
            keep=False,  # the history's messages say whether they are read
            once=PART.join(("read", tenant, message.id)),
            owner=message.sender,
        )

    async def type(
        self,
        tenant: str,
        person: Person,
        to: To,
        *,
        is_typing: bool,
        asker: Asker | None = None,
        subscriber: Subscriber | None = None,
    ) -> None:
        """Tell a conversation, or a room, that somebody types, or does so no more; see `send`, and `Typists`."""
        place = await self._place(tenant, person, to, asker, subscriber)
        if is_of_user(place.shared):  # two who can have no conversation
            return
        source = None if subscriber is None else subscriber.connection_id
        await self._typists.type(tenant, place.shared, person, is_typing=is_typing, source=source)

    async def report(
        self,
        tenant: str,
        room_id: str,
        action: str,
        user_name: str,
        *,
        role: str | None = None,
        description: str | None = None,
    ) -> msgspec.Raw:
        """Tell a room what happened in it.

        Returns:
            What its members hear.

        Raises:
            InvalidPayloadError: there can be no such room.
            UnavailableError: the store is away.
        """
        body = NewActivity(room_id, action, user_name, role, description, wire.timestamp(self._clock()))
        said = await self._channels.say(tenant, [f"{ROOMS[0]}{room_id}"], NEW_ACTIVITY, body)
        return said[0].data

    async def with_marks(self, tenant: str, events: Sequence[Said]) -> Sequence[Said]:
        """A channel's history, with its messages as they are by now: read, or not.

        Raises:
            UnavailableError: the store is away.
        """
        messages: dict[str, DirectMessage] = {}
        by_recipient: dict[str, list[str]] = {}
        for said in events:
            if said.event == NEW_MESSAGE and (is_of_user(said.channel) or is_conversation(said.channel)):
                message = _read_message(said)
                if message is not None and message.recipient_id is not None:
                    messages[message.id] = message
                    by_recipient.setdefault(message.recipient_id, []).append(message.id)
        was_read: set[str] = set()
        try:
            for recipient, ids in by_recipient.items():
                was_read.update(await self._receipts.read(tenant, recipient, ids, self._clock()))
        except StoreUnavailableError:
            raise store_away() from None
        if not was_read:
            return events
        read = {_raw(messages[each]): msgspec.structs.replace(messages[each], is_read=True) for each in was_read}
        return [
            msgspec.structs.replace(said, data=msgspec.Raw(wire.encode(read[bytes(said.data)])))
            if bytes(said.data) in read
            else said
            for said in events
        ]

    # One step each

    async def _place(
        self, tenant: str, person: Person, to: To, asker: Asker | None, subscriber: Subscriber | None
    ) -> Place:
        """Where something is said, if it may be."""
        channel, sender = to.channel, person.user_id
        recipient = to.recipient_id if channel is None else owner_of(channel)
        if recipient is not None:
            return await self._to_user(tenant, sender, recipient)
        parties = parties_of(str(to.conversation_id)) if channel is None else parties_in(channel)
        if parties is not None and sender in parties:
            return await self._to_user(tenant, sender, parties[0] if parties[1] == sender else parties[1])
        if channel is None:
            channel = conversation_channel(str(to.conversation_id))
        check_name(channel)
        if is_of_user(channel):
            raise InvalidPayloadError("nobody can tell whose channel it is; name the user by recipientId")
        is_in = subscriber is not None and channel in subscriber.channels
        if not is_in and asker is not None:
            await self._authorizer.person(asker, channel)
        if is_conversation(channel):
            return Place([channel])
        prefix = next((each for each in ROOMS if channel.startswith(each)), "")
        return Place([channel], room=channel.removeprefix(prefix) or channel)

    async def _to_user(self, tenant: str, sender: str, recipient: str) -> Place:
        if not await self._may_write(tenant, sender, recipient):
            raise ForbiddenError("this user cannot be written to")
        channels = [user_channel(recipient)]
        if (conversation := channel_between(sender, recipient)) is not None:
            channels.append(conversation)
        return Place(channels, None if recipient == sender else recipient, recipient)

    async def _may_write(self, tenant: str, sender: str, recipient: str) -> bool:
        """Whether one user may write to another.

        All rules are asked, even if one has refused, so that the time it takes does not show which one did.
        """
        allowed = True
        if self._visibility is not None:
            sees = self._visibility.sees(tenant, sender, recipient)
            is_seen = self._visibility.sees(tenant, recipient, sender)
            allowed = sees and is_seen
        if self._rule is not None and sender != recipient:
            allowed = await self._ask(self._rule, tenant, sender, recipient) and allowed
        return allowed

    async def _ask(self, rule: MessageRule, tenant: str, sender: str, recipient: str) -> bool:
        try:
            answer = rule(sender, recipient, tenant=tenant) if self._takes_tenant else rule(sender, recipient)
            if inspect.isawaitable(answer):
                answer = await answer
            if not isinstance(answer, bool):
                raise TypeError(f"can_message returns True or False, not {type(answer).__name__}")
        except Exception:
            _log.exception("can_message failed; the message is refused")
            return False
        return answer

    async def close(self) -> None:
        """Let go of everything."""
        self._typists.close()
        await self._receipts.close()


def _message(
    message_id: str, place: Place, person: Person, content: str, created_at: str
) -> DirectMessage | RoomMessage:
    profile, sender = person.profile, person.user_id
    if place.room is not None:
        name = profile.name or sender
        return RoomMessage(message_id, place.room, profile.role, name, content, "text", created_at)
    author = Author(sender, profile.name, profile.avatar, profile.role)
    return DirectMessage(message_id, content, sender, place.party, False, created_at, author)


def _id_of(once: str) -> str:
    """The id of a message with a `client_id`: the same each time it is sent, so that receipts know it only once."""
    digest = hashlib.sha256(once.encode()).digest()
    return urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def _read_message(said: Said) -> DirectMessage | None:
    """Read a message that the gateway has made; None for an event of that name that a backend has said."""
    try:
        message = msgspec.json.decode(said.data, type=DirectMessage)
    except msgspec.DecodeError:
        return None
    return message if _raw(message) == bytes(said.data) else None


def _raw(message: DirectMessage) -> bytes:
    return wire.encode(message)
