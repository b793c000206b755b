"""Messages over HTTP: what users ask with their token, and backends with a service key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.messages_wire import (
    ActivityReported,
    MarkedRead,
    MessageSent,
    ReportActivity,
    SendMessageAs,
    To,
    TypingSent,
    TypingTo,
)
from gateway.channels.model import Asker, Person
from gateway.doors.http import Call, Caller, Operation
from gateway.errors import ForbiddenError, InvalidPayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.access.auth import Identity
    from gateway.access.quotas import Quotas
    from gateway.channels.messages import Messages
    from gateway.presence.tracker import Tracker


def message_operations(
    messages: Messages, quotas: Quotas, tracker: Tracker, person_of: Callable[[str, str], Person]
) -> Sequence[Operation]:
    """The rows of the HTTP door's table.

    Args:
        messages: where it is done.
        quotas: what one user may send.
        tracker: the time.
        person_of: a user, by tenant and id, in whose name a backend sends.
    """

    async def send(call: Call) -> MessageSent:
        if call.identity is None:
            return await send_as(call)
        person, asker, identity = _caller(call)
        if call.body.sender_id not in {None, identity.user_id}:
            raise ForbiddenError(
                "senderId names another user: a token sends in its own user's name, a service key in any"
            )
        quotas.admit_message(identity, tracker.now() / 1000)
        body: SendMessageAs = call.body
        with quotas.keeping():
            message = await messages.send(
                call.tenant, person, body, body.content, client_id=body.client_id, asker=asker
            )
        return MessageSent(message)

    async def send_as(call: Call) -> MessageSent:
        body: SendMessageAs = call.body
        if body.sender_id is None:
            raise InvalidPayloadError("a service key sends in the name of a user: say whose by senderId")
        person = person_of(call.tenant, body.sender_id)
        return MessageSent(await messages.send(call.tenant, person, body, body.content, client_id=body.client_id))

    async def mark_read(call: Call) -> MarkedRead:
        person, _asker, _identity = _caller(call)
        return MarkedRead(await messages.mark_read(call.tenant, person, sender=call.path["id"]))

    async def typing(call: Call) -> TypingSent:
        person, asker, identity = _caller(call)
        quotas.admit_typing(identity, tracker.now() / 1000)
        to = To(recipient_id=call.path["id"])
        await messages.type(call.tenant, person, to, is_typing=call.body.is_typing, asker=asker)
        return TypingSent()

    async def report(call: Call) -> ActivityReported:
        body: ReportActivity = call.body
        activity = await messages.report(
            call.tenant,
            call.path["id"],
            body.action,
            body.user_name,
            role=body.role,
            description=body.description,
        )
        return ActivityReported(activity)

    return (
        Operation(
            method="POST",
            path="/api/messages",
            summary="Send a message to a user, in a conversation, or in a room",
            caller=Caller.USER_OR_SERVICE,
            body=SendMessageAs,
            answers=MessageSent,
            handler=send,
        ),
        Operation(
            method="POST",
            path="/api/messages/mark-read/{id}",
            summary="Mark all that a user has sent to the caller as read",
            caller=Caller.USER,
            answers=MarkedRead,
            handler=mark_read,
        ),
        Operation(
            method="POST",
            path="/api/messages/typing/{id}",
            summary="Tell a user that the caller types, or does so no more",
            caller=Caller.USER,
            body=TypingTo,
            answers=TypingSent,
            handler=typing,
        ),
        Operation(
            method="POST",
            path="/api/rooms/{id}/activity",
            summary="Tell a room what happened in it",
            caller=Caller.SERVICE,
            body=ReportActivity,
            answers=ActivityReported,
            handler=report,
        ),
    )


def _caller(call: Call) -> tuple[Person, Asker, Identity]:
    identity = call.identity
    assert identity is not None  # noqa: S101 - Caller.USER says so
    person = Person(user_id=identity.user_id, profile=identity.profile)
    return person, Asker(tenant=call.tenant, connection_id="", identity=identity, headers=call.headers), identity
