"""The wire contract of messages as types: sections 3, 4 and 6. What is said in channels has the names of the latter."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.channels.wire import ChannelName, ConversationId
from gateway.wire import UNPRINTABLE, Body, Timestamp, UserId

MAX_CONTENT = 10_000
"""Characters of a message."""

MAX_CLIENT_ID = 128
"""Characters of a ``clientId``."""

MAX_TEXT = 1000
"""Characters of what an activity says of itself."""

Content = Annotated[str, Meta(min_length=1, max_length=MAX_CONTENT)]
ClientId = Annotated[
    str,
    Meta(min_length=1, max_length=MAX_CLIENT_ID, description="Sent again with it, a message is the first one."),
]
MessageId = Annotated[str, Meta(min_length=1, max_length=64)]


# What clients send


class To(Body, kw_only=True):
    """To whom something is said: one of the three."""

    recipient_id: UserId | None = None
    conversation_id: ConversationId | None = None
    channel: ChannelName | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.recipient_id, self.conversation_id, self.channel)) != 1:
            raise ValueError("say to whom by one of recipientId, conversationId and channel")


class SendMessage(To, kw_only=True):
    """``send-message``."""

    content: Content
    client_id: ClientId | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.client_id is not None and UNPRINTABLE.search(self.client_id):
            raise ValueError("clientId must have no control characters")


class SendMessageAs(SendMessage, kw_only=True):
    """The same over HTTP, where a backend sends in the name of a user."""

    sender_id: Annotated[UserId, Meta(description="In whose name: with a service key, which has to say so.")] | None = (
        None
    )


class MarkRead(Body):
    """``mark-read``: one message, or all that a user has sent to the caller."""

    message_id: MessageId | None = None
    user_id: UserId | None = None

    def __post_init__(self) -> None:
        if (self.message_id is None) == (self.user_id is None):
            raise ValueError("say what was read by one of messageId and userId")


class Typing(To, kw_only=True):
    """``typing``."""

    is_typing: bool


class TypingTo(Body):
    """``typing``, over HTTP: to the user of the path."""

    is_typing: bool = True


class ReportActivity(Body):
    """What happened in a room, as a backend tells it."""

    action: Annotated[str, Meta(min_length=1, max_length=128)]
    user_name: Annotated[str, Meta(max_length=MAX_TEXT)]
    role: Annotated[str, Meta(max_length=MAX_TEXT)] | None = None
    description: Annotated[str, Meta(max_length=MAX_TEXT)] | None = None


# What they are answered


class MessageSent(Body):
    """The answer to ``send-message``: the message as others hear it, the first one where it was sent before."""

    message: Annotated[
        msgspec.Raw,
        Meta(
            description="As others hear it: {id, content, sender_id, recipient_id, is_read, created_at, sender}, or in "
            "rooms {id, room_id, sender_role, sender_name, message, type, created_at}.",
            extra_json_schema={"type": "object"},
        ),
    ]


class MarkedRead(Body):
    """The answer to ``mark-read``."""

    count: int
    """How many messages are read by it that had not been."""


class TypingSent(Body):
    """The answer to ``typing``."""


class ActivityReported(Body):
    """The answer to a backend that told of an activity."""

    activity: Annotated[
        msgspec.Raw,
        Meta(
            description="As members hear it: {room_id, action, user_name, role, description, timestamp}.",
            extra_json_schema={"type": "object"},
        ),
    ]


# What is said in channels


class Author(msgspec.Struct):
    """Who sent a message, as the token says."""

    id: str
    name: str | None
    avatar: str | None
    role: str | None


class DirectMessage(msgspec.Struct):
    """A message to a user, or in a conversation."""

    id: str
    content: str
    sender_id: str
    recipient_id: str | None
    """Null in a conversation that is not of two."""
    is_read: bool
    created_at: Timestamp
    sender: Author


class RoomMessage(msgspec.Struct):
    """A message in a room, or any other channel."""

    id: str
    room_id: str
    sender_role: str | None
    sender_name: str
    message: str
    type: str
    created_at: Timestamp


class MessageRead(msgspec.Struct):
    """A message was read."""

    message_id: str
    read_by: str
    read_at: Timestamp


class UserTyping(msgspec.Struct):
    """Somebody types, or does so no more."""

    user_id: str
    user_name: str
    is_typing: bool
    timestamp: Timestamp


class NewActivity(msgspec.Struct):
    """Something happened in a room."""

    room_id: str
    action: str
    user_name: str
    role: str | None
    description: str | None
    timestamp: Timestamp


class UserStatusIn(msgspec.Struct):
    """A user came, went, or is otherwise there, as subscribers of a presence channel hear of it."""

    user_id: str
    user_name: str
    role: str | None
    avatar: str | None
    is_online: bool
    """With a room: whether they are in it."""
    last_seen: Timestamp | None
    timestamp: Timestamp
    room_id: str | UnsetType = UNSET
