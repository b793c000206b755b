"""Every event of the contract's section 3: what it is called, what it brings, and what it is answered with.

`tests/test_schema.py` holds this to what the doors take and say.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway import wire
from gateway.channels import messages_wire
from gateway.channels import wire as channels_wire


class Request(NamedTuple):
    """What a client may ask for."""

    payload: type[wire.Body]
    answer: str
    """The name of what it is answered with."""
    body: type[wire.Body]
    """What that says."""
    about: str
    bare: bool = False
    """Whether it may come without a payload."""


class Told(NamedTuple):
    """What the server tells a client."""

    bodies: tuple[type, ...]
    """One of these; none where it is what a backend sent."""
    about: str


REQUESTS = {
    "check-user-status": Request(
        wire.CheckUserStatus, "user-status", wire.UserStatusAt, "Asks for the presence of one user."
    ),
    "check-users-status": Request(
        wire.CheckUsersStatus, "users-status", wire.UserStatuses, "Asks for the presence of many users."
    ),
    "get-online-users": Request(
        wire.GetOnlineUsers, "online-users", wire.OnlineUsersAt, "Asks who is online, page by page.", bare=True
    ),
    "watch-users": Request(
        wire.WatchUsers,
        "watching",
        wire.UserStatuses,
        "Watches users: from then on this connection hears of those it watches only, and misses none of their changes"
        " after what it is answered.",
    ),
    "unwatch-users": Request(
        wire.UnwatchUsers, "unwatched", wire.Unwatched, "Watches users no more: these, or all.", bare=True
    ),
    "heartbeat": Request(
        wire.Heartbeat, "heartbeat-ack", wire.HeartbeatAck, "Says that the user is active.", bare=True
    ),
    "set-status": Request(
        wire.SetStatus,
        "status-set",
        wire.OwnUserStatus,
        "Sets one's own status by hand; answered as its owner sees it.",
    ),
    "refresh-token": Request(
        wire.RefreshToken, "token-refreshed", wire.TokenRefreshed, "Brings a newer token of the same user."
    ),
    "ack": Request(
        wire.Ack,
        "acknowledged",
        wire.Acknowledged,
        "Says that what had waited for the user has arrived, where the client cannot acknowledge the event itself.",
    ),
    "join-channel": Request(
        channels_wire.JoinChannel, "joined-channel", channels_wire.JoinedChannel, "Comes into a channel."
    ),
    "leave-channel": Request(
        channels_wire.LeaveChannel, "left-channel", channels_wire.LeftChannel, "Goes out of a channel."
    ),
    "join-conversation": Request(
        channels_wire.JoinConversation,
        "joined-conversation",
        channels_wire.JoinedConversation,
        "Comes into the channel of a conversation of two.",
    ),
    "leave-conversation": Request(
        channels_wire.LeaveConversation,
        "left-conversation",
        channels_wire.LeftConversation,
        "Goes out of the channel of a conversation.",
    ),
    "send-message": Request(
        messages_wire.SendMessage,
        "message-sent",
        messages_wire.MessageSent,
        "Sends a message to a user, in a conversation, or in a channel.",
    ),
    "mark-read": Request(
        messages_wire.MarkRead,
        "marked-read",
        messages_wire.MarkedRead,
        "Marks a message as read, or all that a user has sent to the caller.",
    ),
    "typing": Request(
        messages_wire.Typing, "typing-sent", messages_wire.TypingSent, "Says that the caller types, or does so no more."
    ),
}
"""By name."""

EVENTS = {
    "connected": Told((wire.Connected,), "The first event of a connection."),
    "user-online": Told((wire.UserOnline,), "A user came online."),
    "user-offline": Told((wire.UserOffline,), "A user went offline."),
    "user-status-changed": Told((wire.UserStatusAt,), "A user is online in another way, or says another text."),
    "member-added": Told((channels_wire.MemberChanged,), "A user came into a presence channel."),
    "member-removed": Told((channels_wire.MemberChanged,), "A user went out of a presence channel."),
    "channel-members": Told(
        (channels_wire.ChannelMembers,), "Who is in a presence channel, for a client that missed who came and went."
    ),
    "channel-left": Told((channels_wire.LeftChannel,), "This client was taken out of a channel."),
    "new-message": Told((messages_wire.DirectMessage, messages_wire.RoomMessage), "A message was sent."),
    "message-read": Told((messages_wire.MessageRead,), "A message was read."),
    "user-typing": Told((messages_wire.UserTyping,), "Somebody types, or does so no more."),
    "new-activity": Told((messages_wire.NewActivity,), "Something happened in a room."),
    "notification": Told(
        (),
        "What a backend had to say to the user; it may choose other names for it, too. What had waited for the user"
        " comes with an id, and waits until it is acknowledged.",
    ),
    "token-expired": Told((wire.ServerEvent,), "The token ran out: refresh-token keeps the connection."),
    "server-draining": Told((wire.ServerEvent,), "This node shuts down: connect again, to another one."),
    "exception": Told((wire.ExceptionEvent,), "A request failed whose client asked for no acknowledgement."),
}
"""By name."""
