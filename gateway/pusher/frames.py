"""The Pusher protocol's frames as types: what clients send, and what they are sent.

Data is JSON in a text of its own. Clients may send it so, too, or as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from gateway import wire
from gateway.channels.events import laravel_name
from gateway.channels.names import Kind, kind_of
from gateway.errors import InvalidPayloadError
from gateway.pusher.data import to_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.channels.model import Person, Said
    from gateway.pusher.codes import Code

PING: Final = "pusher:ping"
PONG: Final = "pusher:pong"
SUBSCRIBE: Final = "pusher:subscribe"
UNSUBSCRIBE: Final = "pusher:unsubscribe"
SIGNIN: Final = "pusher:signin"
CLIENT_EVENT: Final = "client-"
"""What the events begin with that members of a channel tell each other."""

TO_USER: Final = "#server-to-user-"
"""What the channel begins with, by its name, that brings a user's own events; nobody else can be in it."""


# What clients send


class ClientFrame(msgspec.Struct):
    """What a client sends: ``{"event", "data"?, "channel"?}``."""

    event: str
    data: msgspec.Raw = msgspec.Raw(b"{}")
    channel: str | None = None


class Subscribe(msgspec.Struct):
    """``pusher:subscribe``."""

    channel: str
    auth: str | None = None
    channel_data: str | None = None
    """The very text that was signed."""


class Unsubscribe(msgspec.Struct):
    """``pusher:unsubscribe``."""

    channel: str


class Signin(msgspec.Struct):
    """``pusher:signin``."""

    auth: str
    user_data: str
    """The very text that was signed."""


class ChannelData(msgspec.Struct):
    """Who a member of a presence channel is, as their backend has signed it."""

    user_id: int | str
    user_info: Any = None


class UserData(msgspec.Struct):
    """Who signs in, as their backend has signed it."""

    id: int | str
    user_info: Any = None
    watchlist: list[int | str] = []


_frame: Final = msgspec.json.Decoder(ClientFrame)
_DataT = TypeVar("_DataT")


def read_frame(text: str | bytes) -> ClientFrame:
    """Read what a client sent.

    Raises:
        InvalidPayloadError: it is no frame.
    """
    try:
        return _frame.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f'{error}; a frame is {{"event": "…", "data": {{…}}, "channel": "…"}}') from None


def read_data(frame: ClientFrame, kind: type[_DataT]) -> _DataT:
    """Read the data of a frame, in a text of its own or not.

    Raises:
        InvalidPayloadError: it is not of its event's form.
    """
    data = bytes(frame.data)
    try:
        return msgspec.json.decode(msgspec.json.decode(data) if data.startswith(b'"') else data, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"data of {frame.event}: {error}") from None


def read_signed(text: str, kind: type[_DataT], name: str) -> _DataT:
    """Read what a backend has signed.

    Raises:
        InvalidPayloadError: it is not of its form.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"{name}: {error}") from None


# What they are sent


def frame(event: str, data: object = None, channel: str | None = None) -> bytes:
    """Write an event whose data is JSON in a text of its own.

    Args:
        event: its name.
        data: anything that JSON can hold; None leaves it out.
        channel: in which it happens; None for none.
    """
    return _write(event, None if data is None else wire.encode(data).decode(), channel)


def _write(event: str, text: str | None, channel: str | None, user_id: str | None = None) -> bytes:
    body: dict[str, str] = {"event": event}
    if channel is not None:
        body["channel"] = channel
    if text is not None:
        body["data"] = text
    if user_id is not None:
        body["user_id"] = user_id
    return wire.encode(body)


def error(code: Code | None, message: str) -> bytes:
    """``pusher:error``: what went wrong with the connection, or with what its client sent.

    Args:
        code: which; None for what has none, and is for people to read.
        message: what to do about it.
    """
    return wire.encode({"event": "pusher:error", "data": {"code": code, "message": message}})


def established(socket_id: str, activity_timeout: int) -> bytes:
    """``pusher:connection_established``, with the seconds of silence after which a client is to ping."""
    data = {"socket_id": socket_id, "activity_timeout": activity_timeout}
    return frame("pusher:connection_established", data)


def succeeded(channel: str, members: Sequence[Person] | None) -> bytes:
    """``pusher_internal:subscription_succeeded``, with who is there in a presence channel."""
    data: dict[str, object] = {}
    if members is not None:
        infos = {person.user_id: person.info for person in members}
        data["presence"] = {"count": len(infos), "ids": list(infos), "hash": infos}
    return frame("pusher_internal:subscription_succeeded", data, channel)


def subscription_error(channel: str, status: int, kind: str, message: str) -> bytes:
    """``pusher:subscription_error``, with the HTTP status that says it best."""
    return frame("pusher:subscription_error", {"type": kind, "error": message, "status": status}, channel)


def subscription_count(channel: str, count: int) -> bytes:
    """``pusher_internal:subscription_count``: how many connections are in a channel, on all nodes."""
    return frame("pusher_internal:subscription_count", {"subscription_count": count}, channel)


def member_added(channel: str, user_id: str, info: msgspec.Raw) -> bytes:
    """``pusher_internal:member_added``."""
    return frame("pusher_internal:member_added", {"user_id": user_id, "user_info": info}, channel)


def member_removed(channel: str, user_id: str) -> bytes:
    """``pusher_internal:member_removed``."""
    return frame("pusher_internal:member_removed", {"user_id": user_id}, channel)


def cache_miss(channel: str) -> bytes:
    """``pusher:cache_miss``: nothing that was said in a cache channel is kept."""
    return frame("pusher:cache_miss", None, channel)


def signed_in(user_data: str) -> bytes:
    """``pusher:signin_success``, with the text that was signed."""
    return frame("pusher:signin_success", {"user_data": user_data})


def watchlist(changes: Mapping[str, Sequence[str]]) -> bytes:
    """``pusher_internal:watchlist_events``: which users are ``online`` and ``offline`` now."""
    events = [{"name": name, "user_ids": user_ids} for name, user_ids in changes.items() if user_ids]
    return frame("pusher_internal:watchlist_events", {"events": events})


def said_in(said: Said) -> bytes:
    """What was said in a channel, with who said it where it is members of a presence channel who tell each other."""
    told = said.event.startswith(CLIENT_EVENT) and kind_of(said.channel) is Kind.PRESENCE
    return _write(laravel_name(said.event), to_text(said.data), said.channel, said.sender if told else None)


def to_user(user_id: str, event: str, data: object) -> bytes:
    """An event for one user, who has signed in."""
    return _write(event, to_text(msgspec.Raw(wire.encode(data))), TO_USER + user_id)


PING_FRAME: Final = frame(PING, {})
PONG_FRAME: Final = frame(PONG, {})
