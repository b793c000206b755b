"""``gateway.channels``: what code in the same process says in channels, and asks of them."""

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
    """What an application does with channels. Nobody is asked whether it may.

    Commands raise `InvalidPayloadError` where an argument is not acceptable, and `UnavailableError` where the store is
    away; whether something was said is then not known.

    Args:
        channels: where it is done.
        messages: likewise.
        presence: what is known of users.
    """

    def __init__(self, channels: Channels, messages: Messages, presence: View) -> None:
        self._channels = channels
        self._messages = messages
        self._presence = presence

    async def say(
        self, channel: str, event: str, data: object = None, *, keep: bool = True, tenant: str = DEFAULT_TENANT
    ) -> int | None:
        """Say something in a channel: all who are in it hear it, on every node, in one order.

        Returns:
            Where it stands in the channel's history; None for what that has not.

        Args:
            channel: which.
            event: any name but the gateway's own.
            data: anything that JSON can hold.
            keep: whether the channel's history has it.
            tenant: whose channel.
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

        Args:
            sender: who. What is said of them besides their id is what their token says, while they are online.
            content: 1 to 10,000 characters.
            recipient: to whom; or
            conversation: in which conversation; or
            channel: in which room, or other channel.
            client_id: sent again with it, it is the first one.
            tenant: whose users.

        Returns:
            The message, as others hear it.

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
        """Mark as read, for a user, one message, or all that another has sent; returns how many had not been."""
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
        """Tell a conversation, or a room, that a user types; it is over after 6 s if it is not said again.

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
            after: the position of the last event that is known; None for the last ones that are kept.
            limit: 1 to 1,000.
            tenant: whose channel.
        """
        check_ids(tenant)
        history = await self._channels.history(tenant, channel, after=after, limit=limit)
        return msgspec.structs.replace(history, events=await self._messages.with_marks(tenant, history.events))

    async def remove(self, channel: str, user_id: str | None = None, *, tenant: str = DEFAULT_TENANT) -> int:
        """Take a user's connections, or all, out of a channel, on every node; returns how many of this node were."""
        check_ids(tenant)
        return await self._channels.remove(tenant, channel, user_id)

    async def reauthorize(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Ask again whether a user may be in the channels they are in, on every node; where not, they are taken out."""
        check_ids(tenant, user_id)
        await self._channels.reauthorize(tenant, user_id)

    def members(self, channel: str, *, tenant: str = DEFAULT_TENANT) -> Sequence[Person]:
        """The members of a presence channel, by user id; those who are invisible are not among them."""
        check_ids(tenant)
        return self._channels.members(tenant, check_name(channel))

    def occupied(self, prefix: str = "", *, tenant: str = DEFAULT_TENANT) -> Sequence[Occupancy]:
        """The channels that anybody is in, by name."""
        return self._channels.occupied(tenant, prefix)

    def person(self, tenant: str, user_id: str) -> Person:
        """A user, as what they say names them: by what their token says, while they are online."""
        check_ids(tenant, user_id)
        known = self._presence.hidden.get((tenant, user_id)) or self._presence.status(tenant, user_id)
        return Person(user_id=user_id, profile=known.profile)


def _valid(kind: type[To], **fields: object) -> Any:
    names = {"recipient": "recipientId", "conversation": "conversationId"}
    given = {names.get(name, name): value for name, value in fields.items() if value is not None}
    return validate(given, kind, f"one of recipient, conversation and channel; at most {MAX_CONTENT} characters")
