"""The names of channels, and what a name tells about its channel."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from enum import StrEnum
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidPayloadError
from gateway.presence.model import PART

MAX_NAME = 164
"""Characters of a name at the most; Pusher's limit."""

_NAME = re.compile(rf"[A-Za-z0-9_\-=@,.;:]{{1,{MAX_NAME}}}")

_CACHES = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")
_ENCRYPTED = "private-encrypted-"

_CONVERSATION, _ESCAPED_CONVERSATION = "private-conversation.", "private-conversation=."
_USER, _ESCAPED_USER, _HASHED_USER = "private-user.", "private-user=.", "private-user==."

_UNSAFE = re.compile(r"[^A-Za-z0-9_@,.;:]+")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_@,.;:]|=[0-9A-F]{2})+")


class Kind(StrEnum):
    """The kind of a channel, which its name begins with."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Only authorized users may enter it."""
    PRESENCE = "presence"
    """Only authorized users may enter it, and it has members, who hear of each other."""


def kind_of(channel: str) -> Kind:
    """The kind of a channel."""
    if channel.startswith("private-"):
        return Kind.PRIVATE
    return Kind.PRESENCE if channel.startswith("presence-") else Kind.PUBLIC


def is_cache(channel: str) -> bool:
    """Whether clients of Pusher's protocol are sent the last event of a channel when they enter it."""
    return channel.startswith(_CACHES)


def is_encrypted(channel: str) -> bool:
    """Whether what is said in a channel is encrypted end to end, for its clients and the backend."""
    return channel.startswith(_ENCRYPTED)


def is_name(value: object) -> bool:
    """Whether a value may be a channel's name."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_name(value: str) -> str:
    """Check a channel's name, and return it.

    Raises:
        InvalidPayloadError: it is not a valid name.
    """
    if not is_name(value):
        raise InvalidPayloadError(f"a channel's name has 1 to {MAX_NAME} of A-Z a-z 0-9 _ - = @ , . ; :")
    return value


def scope_of(tenant: str, channel: str = "") -> str:
    """The tenant under which the store of channels keeps a channel's members as users.

    Without a channel: the tenant under which it keeps the channels themselves, which are online while occupied.
    """
    return f"{tenant}{PART}{channel}"


def parse_scope(scope: str) -> tuple[str, str]:
    """Split a scope into tenant and channel; the channel is empty for the scope of the channels themselves."""
    tenant, _, channel = scope.partition(PART)
    return tenant, channel


def user_channel(user_id: str) -> str:
    """A user's own channel, for what is said to that user: ``private-user.{id}``.

    If that is not a valid name, ``private-user=.`` and the `escape`d id; if that is too long, ``private-user==.`` and
    the SHA-256 of the id, in URL-safe base64 without padding.
    """
    for channel in (f"{_USER}{user_id}", f"{_ESCAPED_USER}{escape(user_id)}"):
        if is_name(channel):
            return channel
    return f"{_HASHED_USER}{urlsafe_b64encode(sha256(_encoded(user_id)).digest()).decode().rstrip('=')}"


def is_of_user(channel: str) -> bool:
    """Whether a channel is some user's own."""
    return channel.startswith((_USER, _ESCAPED_USER, _HASHED_USER))


def owner_of(channel: str) -> str | None:
    """The user whose own channel it is; None if it is no user's own, or its name does not tell whose."""
    if channel.startswith(_USER):
        return channel.removeprefix(_USER) or None
    if not channel.startswith(_ESCAPED_USER):
        return None
    user_id = unescape(channel.removeprefix(_ESCAPED_USER))
    return user_id if user_id is not None and user_channel(user_id) == channel else None


def escape(user_id: str) -> str:
    """Escape a user id: every byte other than letters, digits and ``_ @ , . ; :`` becomes ``=`` and two hex digits."""
    return _UNSAFE.sub(lambda found: "".join(f"={byte:02X}" for byte in _encoded(found[0])), user_id)


def unescape(text: str) -> str | None:
    """Undo `escape`; None if the text is not an escaped user id."""
    if _ESCAPED.fullmatch(text) is None:
        return None
    try:
        user_id = unquote_to_bytes(text.replace("=", "%")).decode()
    except UnicodeDecodeError:
        return None
    return user_id if escape(user_id) == text else None


def conversation_of(one: str, other: str) -> str:
    """The id of two users' conversation, ``{a}-{b}``: numeric ids first, by size, then others in their order as text.

    Raises:
        InvalidPayloadError: it is not a valid name, or does not tell whose conversation it is; see `parties_of`.
    """
    first, second = _in_order(one, other)
    conversation = f"{first}-{second}"
    check_name(conversation_channel(conversation))
    if parties_of(conversation) != (first, second):
        raise InvalidPayloadError(f"{first} and {second} have not as many hyphens: name a channel of your own for them")
    return conversation


def channel_between(one: str, other: str) -> str | None:
    """The channel of two users' conversation: ``private-conversation.{a}-{b}``, in the order of `conversation_of`.

    If that is not a valid name, or does not tell whose it is, ``private-conversation=.`` and both ids, `escape`d. None
    if that is too long: then the two hear each other in their own channels.
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
    """Whether a channel is the channel of some conversation."""
    return any(channel.startswith(each) and channel != each for each in (_CONVERSATION, _ESCAPED_CONVERSATION))


def parties_in(channel: str) -> tuple[str, str] | None:
    """The two users whose conversation a channel is; None if it is no conversation, or does not tell whose."""
    if channel.startswith(_CONVERSATION):
        return parties_of(channel.removeprefix(_CONVERSATION))
    if not channel.startswith(_ESCAPED_CONVERSATION):
        return None
    first, _, second = channel.removeprefix(_ESCAPED_CONVERSATION).partition("-")
    one, other = unescape(first), unescape(second)
    return None if one is None or other is None or channel_between(one, other) != channel else (one, other)


def parties_of(conversation: str) -> tuple[str, str] | None:
    """The two users of a conversation ``{a}-{b}``; None if it can be read in several ways.

    Ids may contain hyphens: ``a-b-c`` could be of ``a`` and ``b-c``, or of ``a-b`` and ``c``, and the wrong reading
    would show somebody another's messages. So both ids must have the same number of hyphens, as ids of one kind (two
    UUIDs, say) do: then there is only one reading.
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
