"""What clients ask of messages natively: ``send-message``, ``mark-read`` and ``typing``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.messages_wire import (
    MAX_CONTENT,
    MarkedRead,
    MarkRead,
    MessageSent,
    SendMessage,
    Typing,
    TypingSent,
)
from gateway.channels.model import Person, asker_of
from gateway.channels.native import ChannelRequests

if TYPE_CHECKING:
    from gateway.access.quotas import Quotas
    from gateway.channels.messages import Messages
    from gateway.connections.live import LiveConnection
    from gateway.connections.requests import Requests
    from gateway.wire import Body

_TO = '"recipientId" | "conversationId" | "channel": "…"'


class MessageRequests:
    """Answers them.

    Args:
        messages: where it is done.
        quotas: what one user may send.
    """

    def __init__(self, messages: Messages, quotas: Quotas) -> None:
        self._messages = messages
        self._quotas = quotas

    def add_to(self, requests: Requests) -> None:
        """Add these requests to the others."""
        requests.add(
            "send-message",
            SendMessage,
            "message-sent",
            self._send,
            f'send-message takes {{{_TO}, "content": "…" of at most {MAX_CONTENT} characters, "clientId": "…"?}}',
            secret=True,  # what people write is kept where it is said, and no two messages are alike
        )
        requests.add(
            "mark-read", MarkRead, "marked-read", self._mark_read, 'mark-read takes {"messageId" | "userId": "…"}'
        )
        requests.add("typing", Typing, "typing-sent", self._type, f'typing takes {{{_TO}, "isTyping": true or false}}')

    async def _send(self, live: LiveConnection, request: SendMessage, now: int) -> Body:
        identity, subscriber = live.identity, ChannelRequests.subscriber_of(live)
        self._quotas.admit_message(identity, now / 1000)
        with self._quotas.keeping():
            message = await self._messages.send(
                identity.tenant,
                person_of(live),
                request,
                request.content,
                client_id=request.client_id,
                asker=asker_of(live),
                subscriber=subscriber,
            )
        return MessageSent(message)

    async def _mark_read(self, live: LiveConnection, request: MarkRead, _now: int) -> Body:
        count = await self._messages.mark_read(
            live.identity.tenant, person_of(live), message_id=request.message_id, sender=request.user_id
        )
        return MarkedRead(count)

    async def _type(self, live: LiveConnection, request: Typing, now: int) -> Body:
        identity, subscriber = live.identity, ChannelRequests.subscriber_of(live)
        self._quotas.admit_typing(identity, now / 1000)
        await self._messages.type(
            identity.tenant,
            person_of(live),
            request,
            is_typing=request.is_typing,
            asker=asker_of(live),
            subscriber=subscriber,
        )
        return TypingSent()


def person_of(live: LiveConnection) -> Person:
    """Whose connection it is, as messages name them."""
    return Person(user_id=live.identity.user_id, profile=live.identity.profile)
