"""``gateway.channels``: channels for code in the same process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway import wire
from gateway.channels.messages_wire import MAX_CONTENT, ReportActivity, SendMessage, To, Typing
from gateway.channels.model import Person
from gateway.channels.names import check_name
from gateway.connections.requests import validate
from gateway.errors import InvalidPayloadError
from gateway.presence.model import DEFAULT_TENANT
from gateway.presence.reads import check_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.channels import Channels
    from gateway.channels.messages import Messages
    from gateway.channels.model import History, Occupancy
    from gateway.presence.view import View


class InProcessChannels:
    """What an application can do with channels. It may do everything: no rule is asked.

    Commands raise `InvalidPayloadError` if an argument is not valid, and `UnavailableError` if the store is away; it is
    then not known whether the command was done.

    Args:
        channels: the executor of channels.
        messages: the executor of messages.
        presence: the view of presence.
    """

    def __init__(self, channels: Channels, messages: Messages, presence: View) -> None:
        self._channels = channels
        self._messages = messages
        self._presence = presence

    async def say(
        self, channel: str, event: str, data: object = None, *, keep: bool = True, tenant: str = DEFAULT_TENANT
    ) -> int | None:
        """Say something in a channel: all who are in it hear it, on every node, in one order.

        Args:
            channel: which.
            event: any name that is not one of the gateway's own events.
            data: anything that JSON can hold.
            keep: whether it is kept in the channel's history.
            tenant: whose channel.

        Returns:
            Its position in the channel's history; None if it is not kept.
        """
        check_ids(tenant)
        if not 1 <= len(event) <= wire.MAX_EVENT or event in wire.RESERVED_EVENTS:
            raise InvalidPayloadError(
                f"{event!r} is no name for an event: 1 to {wire.MAX_EVENT} characters, and none of the gateway's own"
            )
        [said] = await self._channels.say(tenant, [channel], event, data, keep=keep)
        return said.position or None

    async def send_message(
        self,
        sender: str,
        content: str,
        *,
        recipient: str | None = None,
        conversation: str | None = None,
        channel: str | None = None,
        client_id: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> dict[str, Any]:
        """Send a message as a user; all of that user's connections hear it, too.

        Give exactly one of `recipient`, `conversation` and `channel`.

        Args:
            sender: who. Their name, avatar and role are those of their token, while they are online.
            content: 1 to 10,000 characters.
            recipient: the user whom it is for.
            conversation: the id of the conversation.
            channel: the room, or another channel.
            client_id: an id of your own: a message that is sent again under it is not a new one.
            tenant: whose users.

        Returns:
            The message as others hear it; under a `client_id` that was used before, the first message.

        Raises:
            ForbiddenError: the sender may not write to the recipient.
        """
        message = _valid(
            SendMessage,
            recipient=recipient,
            conversation=conversation,
            channel=channel,
            content=content,
            clientId=client_id,
        )
        person = self.person(tenant, sender)
        sent = await self._messages.send(tenant, person, message, message.content, client_id=message.client_id)
        decoded: dict[str, Any] = msgspec.json.decode(sent)
        return decoded

    async def mark_read(
        self,
        reader: str,
        *,
        message_id: str | None = None,
        sender: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> int:
        """Mark messages to a user as read: one of them, or all from one sender. Returns how many were unread."""
        check_ids(tenant, reader, *([] if sender is None else [sender]))
        if (message_id is None) == (sender is None):
            raise InvalidPayloadError("say what was read by one of message_id and sender")
        person = self.person(tenant, reader)
        return await self._messages.mark_read(tenant, person, message_id=message_id, sender=sender)

    async def typing(
        self,
        sender: str,
        *,
        is_typing: bool = True,
        recipient: str | None = None,
        conversation: str | None = None,
        channel: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        """Tell a conversation, or a room, that a user types, or has ended. It ends after 6 s if it is not repeated.

        Raises:
            ForbiddenError: the user may not write to the recipient.
        """
        to = _valid(Typing, recipient=recipient, conversation=conversation, channel=channel, isTyping=is_typing)
        await self._messages.type(tenant, self.person(tenant, sender), to, is_typing=to.is_typing)

    async def activity(
        self,
        room_id: str,
        action: str,
        user_name: str,
        *,
        role: str | None = None,
        description: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        """Tell ``room-{id}`` what happened in it, as ``new-activity``."""
        check_ids(tenant)
        fields = {"action": action, "userName": user_name, "role": role, "description": description}
        said: ReportActivity = validate(fields, ReportActivity, "see activity()")
        await self._messages.report(
            tenant, room_id, said.action, said.user_name, role=said.role, description=said.description
        )

    async def history(
        self, channel: str, *, after: int | None = None, limit: int = 100, tenant: str = DEFAULT_TENANT
    ) -> History:
        """Read what was said in a channel.

        Args:
            channel: which.
            after: the position of the last event that you have; None for the last ones that are kept.
            limit: 1 to 1,000.
            tenant: whose channel.
        """
        check_ids(tenant)
        history = await self._channels.history(tenant, channel, after=after, limit=limit)
        return msgspec.structs.replace(history, events=await self._messages.with_marks(tenant, history.events))

    async def remove(self, channel: str, user_id: str | None = None, *, tenant: str = DEFAULT_TENANT) -> int:
        """Take a user, or everyone if `user_id` is None, out of a channel, on every node.

        Returns:
            How many connections of this node were in it.
        """
        check_ids(tenant)
        return await self._channels.remove(tenant, channel, user_id)

    async def reauthorize(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Ask again, on every node, whether a user may be in their channels, and take them out where they may not."""
        check_ids(tenant, user_id)
        await self._channels.reauthorize(tenant, user_id)

    def members(self, channel: str, *, tenant: str = DEFAULT_TENANT) -> Sequence[Person]:
        """The members of a presence channel, by user id, without those who are invisible."""
        check_ids(tenant)
        return self._channels.members(tenant, check_name(channel))

    def occupied(self, prefix: str = "", *, tenant: str = DEFAULT_TENANT) -> Sequence[Occupancy]:
        """The channels that anybody is in and whose names begin with `prefix`, ordered by name."""
        return self._channels.occupied(tenant, prefix)

    def person(self, tenant: str, user_id: str) -> Person:
        """A user with the name, avatar and role of their token, while they are online."""
        check_ids(tenant, user_id)
        known = self._presence.hidden.get((tenant, user_id)) or self._presence.status(tenant, user_id)
        return Person(user_id=user_id, profile=known.profile)


def _valid(kind: type[To], **fields: object) -> Any:
    names = {"recipient": "recipientId", "conversation": "conversationId"}
    given = {names.get(name, name): value for name, value in fields.items() if value is not None}
    return validate(given, kind, f"one of recipient, conversation and channel; at most {MAX_CONTENT} characters")
