"""The names of channels, and what a name says of its channel."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from enum import StrEnum
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidPayloadError
from gateway.presence.model import PART

MAX_NAME = 164
"""Characters: Pusher's limit, and the contract's."""

_NAME = re.compile(rf"[A-Za-z0-9_\-=@,.;:]{{1,{MAX_NAME}}}")

_CACHES = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")
_ENCRYPTED = "private-encrypted-"

_CONVERSATION, _ESCAPED_CONVERSATION = "private-conversation.", "private-conversation=."
_USER, _ESCAPED_USER, _HASHED_USER = "private-user.", "private-user=.", "private-user==."

_UNSAFE = re.compile(r"[^A-Za-z0-9_@,.;:]+")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_@,.;:]|=[0-9A-F]{2})+")


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
    """The channel of what is said to one user: ``private-user.{id}``.

    Where that would be no name, ``private-user=.`` and the id, `escape`d; and where that is too long,
    ``private-user==.`` and the SHA-256 of the id, in base64 for URLs without padding.
    """
    for channel in (f"{_USER}{user_id}", f"{_ESCAPED_USER}{escape(user_id)}"):
        if is_name(channel):
            return channel
    return f"{_HASHED_USER}{urlsafe_b64encode(sha256(_encoded(user_id)).digest()).decode().rstrip('=')}"


def is_of_user(channel: str) -> bool:
    """Whether a channel is of what is said to one user, whoever that is."""
    return channel.startswith((_USER, _ESCAPED_USER, _HASHED_USER))


def owner_of(channel: str) -> str | None:
    """Whose channel it is; None for one that is no user's, or whose name does not say whose."""
    if channel.startswith(_USER):
        return channel.removeprefix(_USER) or None
    if not channel.startswith(_ESCAPED_USER):
        return None
    user_id = unescape(channel.removeprefix(_ESCAPED_USER))
    return user_id if user_id is not None and user_channel(user_id) == channel else None


def escape(user_id: str) -> str:
    """A user id in letters, digits and ``_ @ , . ; :`` alone: each other byte is ``=`` and two hexadecimal digits."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in _encoded(found[0])), user_id)


def unescape(text: str) -> str | None:
    """The user id that is `escape`d so; None where none is."""
    if _ESCAPED.fullmatch(text) is None:
        return None
    try:
        user_id = unquote_to_bytes(text.replace("=", "%")).decode()
    except UnicodeDecodeError:
        return None
    return user_id if escape(user_id) == text else None


def conversation_of(one: str, other: str) -> str:
    """The id of two users' conversation: numbers by size, other ids by their order as text.

    Raises:
        InvalidPayloadError: it is no name, or nobody could tell from it whose it is: see `parties_of`.
    """
    first, second = _in_order(one, other)
    conversation = f"{first}-{second}"
    check_name(conversation_channel(conversation))
    if parties_of(conversation) != (first, second):
        raise InvalidPayloadError(f"{first} and {second} have not as many hyphens: name a channel of your own for them")
    return conversation


def channel_between(one: str, other: str) -> str | None:
    """The channel of two users' conversation: ``private-conversation.{a}-{b}``, in the order of `conversation_of`.

    Where that would be no name, or nobody could tell from it whose it is, ``private-conversation=.`` and both ids,
    `escape`d. None where that is too long: then they hear each other in their own channels.
    """
    try:
        return conversation_channel(conversation_of(one, other))
    except InvalidPayloadError:
        first, second = _in_order(one, other)
        channel = f"{_ESCAPED_CONVERSATION}{escape(first)}-{escape(second)}"
        return channel if is_name(channel) else None


def conversation_channel(conversation: str) -> str:
    """The channel of a conversation."""
    return f"{_CONVERSATION}{conversation}"


def is_conversation(channel: str) -> bool:
    """Whether a channel is of a conversation, whoever's that is."""
    return any(channel.startswith(each) and channel != each for each in (_CONVERSATION, _ESCAPED_CONVERSATION))


def parties_in(channel: str) -> tuple[str, str] | None:
    """The two users whose conversation a channel is; None for another channel, or where nobody could tell."""
    if channel.startswith(_CONVERSATION):
        return parties_of(channel.removeprefix(_CONVERSATION))
    if not channel.startswith(_ESCAPED_CONVERSATION):
        return None
    first, _, second = channel.removeprefix(_ESCAPED_CONVERSATION).partition("-")
    one, other = unescape(first), unescape(second)
    return None if one is None or other is None or channel_between(one, other) != channel else (one, other)


def parties_of(conversation: str) -> tuple[str, str] | None:
    """The two users of ``{a}-{b}``; None where nobody could tell.

    Ids may have hyphens, and ``a-b-c`` might be of ``a`` and ``b-c`` as well as of ``a-b`` and ``c``, one of whom would
    read what is another's. Of ids with as many hyphens each, which those of one kind are, there is one reading.
    """
    parts = conversation.split("-")
    half, odd = divmod(len(parts), 2)
    first, second = "-".join(parts[:half]), "-".join(parts[half:])
    return None if odd or not first or not second else (first, second)


def _in_order(one: str, other: str) -> tuple[str, str]:
    first, second = sorted((one, other), key=lambda user: (0, int(user), user) if _is_number(user) else (1, 0, user))
    return first, second


def _encoded(user_id: str) -> bytes:
    return user_id.encode(errors="surrogatepass")


def _is_number(user_id: str) -> bool:
    return user_id.isascii() and user_id.isdigit()
