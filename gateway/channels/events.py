"""The events that the gateway itself says in channels: their names for each kind of client, and whom they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.names import channel_between, owner_of, parties_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.model import Said

NEW_MESSAGE, MESSAGE_READ, USER_TYPING, NEW_ACTIVITY = "new-message", "message-read", "user-typing", "new-activity"

USER_STATUS = "user.status"
"""Only for clients of Laravel Echo and of Pusher. Native clients hear ``user-status-changed`` instead, whatever
channels they are in."""

LARAVEL_NAMES = {
    NEW_MESSAGE: "message.sent",
    MESSAGE_READ: "message.read",
    USER_TYPING: "user.typing",
}
"""The names that clients of Laravel Echo and of Pusher know events by, by their native names. All other events have one
name."""

_NATIVE_NAMES = {name: native for native, name in LARAVEL_NAMES.items()}

_PERSONAL = frozenset({NEW_MESSAGE, MESSAGE_READ})
"""Events that are said in the channel of two users' conversation, and in the own channel of one of them, too."""


def laravel_name(event: str) -> str:
    """The name of an event for clients of Laravel Echo and of Pusher."""
    return LARAVEL_NAMES.get(event, event)


def native_name(event: str) -> str:
    """The name of an event for native clients, even if a Laravel backend said it under its own name."""
    return _NATIVE_NAMES.get(event, event)


def heard_by(said: Said) -> Sequence[str]:
    """The users whose native connections all hear an event, whether or not they are in its channel.

    An event in a user's own channel is heard by that user. A message, or the news that it was read, is said twice: in
    the recipient's own channel and in the conversation. Native connections of both users hear the one in the
    conversation, and not the other; if the ids are too long for a conversation, they hear the other.
    """
    owner, personal = owner_in(said), said.event in _PERSONAL and said.sender is not None
    if not personal or said.sender is None:
        return () if owner is None else (owner,)
    if owner is not None:
        return tuple({owner, said.sender}) if channel_between(owner, said.sender) is None else ()
    parties = parties_in(said.channel)
    return tuple(set(parties)) if parties is not None and said.sender in parties else ()


def owner_in(said: Said) -> str | None:
    """The user in whose own channel an event was said; None if it is no user's own channel."""
    return said.owner or owner_of(said.channel)
