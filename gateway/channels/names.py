"""The names of channels, and what a name says of its channel."""

from __future__ import annotations

import re
from enum import StrEnum

from gateway.errors import InvalidPayloadError
from gateway.presence.model import PART

MAX_NAME = 164
"""Characters: Pusher's limit, and the contract's."""

_NAME = re.compile(rf"[A-Za-z0-9_\-=@,.;:]{{1,{MAX_NAME}}}")

_CACHES = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")
_ENCRYPTED = "private-encrypted-"

_CONVERSATION = "private-conversation."
_USER = "private-user."


class Kind(StrEnum):
    """What a channel is, by its name's beginning."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Whoever enters it has to be authorized."""
    PRESENCE = "presence"
    """The same, and it has members, who hear of each other."""


def kind_of(channel: str) -> Kind:
    """What a channel is."""
    if channel.startswith("private-"):
        return Kind.PRIVATE
    return Kind.PRESENCE if channel.startswith("presence-") else Kind.PUBLIC


def is_cache(channel: str) -> bool:
    """Whether whoever comes into a channel by Pusher's protocol is told what was said in it last."""
    return channel.startswith(_CACHES)


def is_encrypted(channel: str) -> bool:
    """Whether only its clients, and the backend, can read what is said in a channel."""
    return channel.startswith(_ENCRYPTED)


def is_name(value: object) -> bool:
    """Whether a value may be a channel's name."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_name(value: str) -> str:
    """Return a channel's name as it is.

    Raises:
        InvalidPayloadError: it is none.
    """
    if not is_name(value):
        raise InvalidPayloadError(f"a channel's name has 1 to {MAX_NAME} of A-Z a-z 0-9 _ - = @ , . ; :")
    return value


def scope_of(tenant: str, channel: str = "") -> str:
    """The world in which a channel's members are what users are in a tenant.

    Without a channel, that of the tenant's channels themselves, which are online in it while they are occupied.
    """
    return f"{tenant}{PART}{channel}"


def parse_scope(scope: str) -> tuple[str, str]:
    """Tenant and channel of a scope; an empty channel for that of channels themselves."""
    tenant, _, channel = scope.partition(PART)
    return tenant, channel


def user_channel(user_id: str) -> str:
    """The channel of what is sent to one user.

    Raises:
        InvalidPayloadError: the id has characters that a channel's name has not.
    """
    return check_name(f"{_USER}{user_id}")


def owner_of(channel: str) -> str | None:
    """Whose channel ``private-user.{id}`` is; None for another."""
    return channel.removeprefix(_USER) or None if channel.startswith(_USER) else None


def conversation_of(one: str, other: str) -> str:
    """The id of two users' conversation: numbers by size, other ids by their order as text.

    Raises:
        InvalidPayloadError: nobody could tell from it whose it is: see `parties_of`.
    """
    first, second = sorted((one, other), key=lambda user: (0, int(user), user) if _is_number(user) else (1, 0, user))
    conversation = f"{first}-{second}"
    check_name(conversation_channel(conversation))
    if parties_of(conversation) != (first, second):
        raise InvalidPayloadError(f"{first} and {second} have not as many hyphens: name a channel of your own for them")
    return conversation


def conversation_channel(conversation: str) -> str:
    """The channel of a conversation."""
    return f"{_CONVERSATION}{conversation}"


def conversation_in(channel: str) -> str | None:
    """Which conversation a channel is of; None for one that is of none."""
    return channel.removeprefix(_CONVERSATION) or None if channel.startswith(_CONVERSATION) else None


def parties_of(conversation: str) -> tuple[str, str] | None:
    """The two users of ``{a}-{b}``; None where nobody could tell.

    Ids may have hyphens, and ``a-b-c`` might be of ``a`` and ``b-c`` as well as of ``a-b`` and ``c``, one of whom would
    read what is another's. Of ids with as many hyphens each, which those of one kind are, there is one reading.
    """
    parts = conversation.split("-")
    half, odd = divmod(len(parts), 2)
    first, second = "-".join(parts[:half]), "-".join(parts[half:])
    return None if odd or not first or not second else (first, second)


def _is_number(user_id: str) -> bool:
    return user_id.isascii() and user_id.isdigit()
