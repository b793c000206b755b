"""The events that the gateway itself says in channels: what each kind of client calls them, and whom they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.channels.names import channel_between, owner_of, parties_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.model import Said

NEW_MESSAGE, MESSAGE_READ, USER_TYPING, NEW_ACTIVITY = "new-message", "message-read", "user-typing", "new-activity"

USER_STATUS = "user.status"
"""For subscribers by the doors of Laravel and Pusher only: native clients hear ``user-status-changed`` as presence has
it, whatever channels they are in."""

LARAVEL_NAMES = {
    NEW_MESSAGE: "message.sent",
    MESSAGE_READ: "message.read",
    USER_TYPING: "user.typing",
}
"""What clients of Laravel Echo and of Pusher hear of what native clients hear, by its native name. Other events have
one name by every door."""

_NATIVE_NAMES = {name: native for native, name in LARAVEL_NAMES.items()}

_PERSONAL = frozenset({NEW_MESSAGE, MESSAGE_READ})
"""What one of two says in their conversation, and to the other."""


def laravel_name(event: str) -> str:
    """What an event that was said in a channel is called by the doors of Laravel Echo and of Pusher."""
    return LARAVEL_NAMES.get(event, event)


def native_name(event: str) -> str:
    """What it is called natively, also where a backend of Laravel's said it."""
    return _NATIVE_NAMES.get(event, event)


def heard_by(said: Said) -> Sequence[str]:
    """The users whose native connections all hear something, without being in its channel.

    What is said to a user, that user hears. A message, or its mark of being read, is said twice, to a user and in their
    conversation: natively it is that in the conversation which both of them hear, with all their connections.
    """
    owner, personal = owner_in(said), said.event in _PERSONAL and said.sender is not None
    if not personal or said.sender is None:
        return () if owner is None else (owner,)
    if owner is not None:
        return tuple({owner, said.sender}) if channel_between(owner, said.sender) is None else ()
    parties = parties_in(said.channel)
    return tuple(set(parties)) if parties is not None and said.sender in parties else ()


def owner_in(said: Said) -> str | None:
    """Whose own channel something was said in; None for another channel."""
    return said.owner or owner_of(said.channel)
