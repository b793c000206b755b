"""The wire contract as types: what clients send, and what they are sent.

Requests are validated by these types, answers and events are encoded from them, and ``/openapi.json`` is
generated from them. Keys are camelCase on the wire; timestamps are ISO-8601 in UTC with milliseconds and ``Z``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.errors import InvalidPayloadError
from gateway.presence import model
from gateway.presence.model import Choice, Chosen, Event, Status, Transition

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_IDS = 1000
"""How many users one request may ask for."""

USER_SIZE = 256
"""Bytes of one user in a list, besides their texts."""

MAX_PAGE_BYTES = 524_288
"""About how large one page of users may be: half of what `Settings.max_send_buffer` lets wait by default, since the
quotes in a text may double it."""

MAX_META_BYTES = 2048
"""How large the ``meta`` of a heartbeat may be, as JSON."""

MAX_NESTING = 128
"""How deep JSON that is kept may be nested. Readers recurse, each from another depth of its own: what one of them can
just take another cannot, and fails for whoever asks."""

MAX_EVENT = 256
"""Characters of the name of a notification."""

MAX_STATUS_TEXT = 128
"""Characters of a status text."""

MAX_EXPIRES_IN = 31_536_000
"""Seconds that a status set by hand may be set for: a year."""

_ID_PATTERN = f"^{model.ID_PATTERN}$(?!\\n)"  # Python's $ also matches before a final newline
_LIKE_A_USER_ID = {"pattern": _ID_PATTERN, "description": "1 to 128 characters without control characters."}

LAST_TIME = 253_402_300_799_000
"""Unix milliseconds of the last second of the year 9999, past which no timestamp can be written."""

_ID = re.compile(model.ID_PATTERN)
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs."""

UserId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=_ID_PATTERN,
        description="1 to 128 characters without control characters.",
    ),
]
UserIds = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=128, extra_json_schema=_LIKE_A_USER_ID)]],
    Meta(max_length=MAX_IDS),
]
"""Checked for control characters all at once: a thousand matches would take longer than a thousand answers."""
Timestamp = Annotated[str, Meta(description="ISO-8601, UTC, with milliseconds.", examples=["2026-01-31T12:00:00.000Z"])]
ClientMeta = Annotated[dict[str, Any], Meta(description=f"Anything; at most {MAX_META_BYTES} bytes as JSON.")]


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value may be a user's or a tenant's id: 1 to 128 characters without control characters."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _check_ids(user_ids: Collection[str]) -> None:
    # Most ids are printable, which is told at a fraction of a match's cost.
    for user_id in () if "".join(user_ids).isprintable() else user_ids:
        if not is_id(user_id):
            raise ValueError("a user id has 1 to 128 characters without control characters")


def is_too_deep(text: bytes) -> bool:
    """Whether JSON is nested deeper than `MAX_NESTING`."""
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return False
    depth = 0
    for character in _TEXT.sub(b"", text):
        if character in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                return True
        elif character in b"]}":
            depth -= 1
    return False


def encode_given(data: object, what: str = "data") -> bytes:
    """Encode what an application or a client gave, as JSON.

    Args:
        data: anything that JSON can hold.
        what: its name in the messages of errors.

    Raises:
        InvalidPayloadError: JSON cannot hold it, or it is nested too deep.
    """
    try:
        text = encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayloadError(f"{what} must be JSON: {error}") from None
    if is_too_deep(text):
        raise InvalidPayloadError(f"{what} may be nested {MAX_NESTING} deep")
    return text


@lru_cache(maxsize=4096)
def timestamp(ms: int) -> str:
    """Write Unix milliseconds as the contract does."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    # Measured: a fifth of the time with the cache; a thousand statuses hold two thousand timestamps.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def optional_timestamp(ms: int | None) -> str | None:
    """Write Unix milliseconds; None for none."""
    return None if ms is None else timestamp(ms)


class Body(Struct, rename="camel"):
    """The root of everything on the wire."""


# What clients send


class NoPayload(Body):
    """A request that takes nothing."""


class CheckUserStatus(Body):
    """``check-user-status``."""

    user_id: UserId


class CheckUsersStatus(Body):
    """``check-users-status``."""

    user_ids: UserIds

    def __post_init__(self) -> None:
        _check_ids(self.user_ids)


class WatchUsers(CheckUsersStatus):
    """``watch-users``."""


class UnwatchUsers(Body):
    """``unwatch-users``."""

    user_ids: UserIds | None = None
    """None for all."""

    def __post_init__(self) -> None:
        _check_ids(self.user_ids or ())


class GetOnlineUsers(Body):
    """``get-online-users``: one page of the tenant's online users, ordered by id."""

    limit: Annotated[int, Meta(ge=1, le=MAX_IDS)] = MAX_IDS
    cursor: str | None = None
    """The ``nextCursor`` of the page before; None for the first page."""


class Heartbeat(Body):
    """``heartbeat``."""

    meta: ClientMeta | None = None


class SetStatus(Body):
    """``set-status``."""

    status: Chosen
    """``online`` is back to what activity says; ``invisible`` is offline to everyone else."""
    status_text: Annotated[str, Meta(max_length=MAX_STATUS_TEXT)] | None = None
    """What others read beside the status, without control characters; null or empty for none."""
    expires_in: Annotated[float, Meta(gt=0, le=MAX_EXPIRES_IN)] | None = None
    """Seconds after which it is as if nothing had been set; null for until it is changed."""

    def __post_init__(self) -> None:
        if self.status_text is not None and UNPRINTABLE.search(self.status_text):
            raise ValueError("statusText must have no control characters")
        if self.expires_in is not None and not 0 < self.expires_in <= MAX_EXPIRES_IN:  # NaN passes by the type
            raise ValueError("expiresIn must be a number of seconds")

    def choice(self, now: int) -> Choice:
        """What is set by it at `now`."""
        until = None if self.expires_in is None else now + max(1, round(self.expires_in * 1000))
        return Choice(self.status, self.status_text or None, until)


class RefreshToken(Body):
    """``refresh-token``."""

    token: str


NotificationId = Annotated[str, Meta(min_length=1, max_length=64)]


class Ack(Body):
    """``ack``: a client has what waited for its user, and was sent with this id, or with these."""

    id: NotificationId | None = None
    ids: Annotated[list[NotificationId], Meta(max_length=MAX_IDS)] = []

    def __post_init__(self) -> None:
        if self.id is None and not self.ids:
            raise ValueError("there is no id")


class Notify(Body):
    """What a backend has to say to a user."""

    user_id: UserId
    event: Annotated[str, Meta(min_length=1, max_length=MAX_EVENT, description="Any name but the gateway's own.")]
    data: Any = None
    """Anything: clients are sent it as it is."""


class ReportPresence(Body):
    """What a backend says at a user's login and logout."""

    user_id: UserId
    meta: ClientMeta | None = None


# What clients are sent


class UserStatus(Body):
    """A user's presence."""

    user_id: UserId
    online: bool
    status: Status
    status_text: str | None
    last_active: Timestamp | None
    """Last seen: survives going offline; null for a user never seen."""
    connected_at: Timestamp | None
    version: int
    """Grows by one with each committed change of this user."""


class OwnUserStatus(UserStatus):
    """A user's presence, as only that user is told it."""

    invisible: bool | UnsetType = UNSET
    """True while the user is offline to everyone else; otherwise not there."""


class UserStatusAt(UserStatus):
    """A user's presence, and when it was read."""

    timestamp: Timestamp


class UserStatuses(Body):
    """Many users' presence, in the order asked."""

    statuses: list[UserStatus]
    timestamp: Timestamp


class Unwatched(Body):
    """The answer to ``unwatch-users``."""

    count: int
    """How many users are no longer watched."""


class OnlineUser(UserStatus, omit_defaults=True):
    """A user who is online, with what their token says of them."""

    name: str | UnsetType = UNSET
    avatar: str | UnsetType = UNSET
    role: str | UnsetType = UNSET


class OnlineUsers(Body):
    """One page of the users who are online."""

    users: list[OnlineUser]
    count: int
    """How many users of the tenant are online in all."""
    next_cursor: str | None
    """Asks for the next page; null on the last."""


class OnlineUsersAt(OnlineUsers):
    """One page of the users who are online, and when it was read."""

    timestamp: Timestamp


class HeartbeatAck(Body):
    """The answer to a heartbeat."""

    timestamp: Timestamp
    last_active: Timestamp


class TokenRefreshed(Body):
    """The answer to ``refresh-token``."""

    expires_at: Timestamp | None
    """Null for a token that does not expire."""


class Acknowledged(Body):
    """The answer to ``ack``."""

    count: int
    """How many ids it had; what does not wait any more is among them."""


class Connected(Body):
    """``connected``: the first event of a connection."""

    user_id: str
    socket_id: str
    timestamp: Timestamp
    reconnect: bool
    """True where the user had lost the last connection and came back within the grace."""


class UserOnline(Body, omit_defaults=True):
    """``user-online``."""

    user_id: str
    online: bool
    status: Status
    timestamp: Timestamp
    version: int
    name: str | UnsetType = UNSET
    avatar: str | UnsetType = UNSET


class UserOffline(Body):
    """``user-offline``."""

    user_id: str
    online: bool
    status: Status
    last_active: Timestamp | None
    timestamp: Timestamp
    version: int


class UserOnlineStatus(UserStatus):
    """A user's presence, with what a page shows beside it."""

    seconds_ago: float | None
    """How long ago `last_active` was; null for a user never seen."""
    meta: dict[str, Any] | None
    """What the last heartbeat said of itself."""
    invisible: bool | UnsetType = UNSET
    """True for a user who asks for themselves, and is offline to everyone else; otherwise not there."""


class IdOnline(Body):
    """One entry of ``/online-status``."""

    id: int | str
    """A number where it was asked for as one."""
    online: bool


class HeartbeatRecorded(Body):
    """The answer to a heartbeat over HTTP."""

    status: Status
    timestamp: Timestamp


class Notified(Body):
    """What became of a notification."""

    sent: bool
    method: Literal["realtime", "queued"]
    """``realtime`` where the user is connected, ``queued`` where it waits for them to come online."""


class Closed(Body):
    """How many connections were closed."""

    closed: int


class Health(Body):
    """``ok``, and what an operator should look at."""

    status: str
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET


class DevToken(Body):
    """A token for development."""

    token: str
    user_id: str
    expires_at: Timestamp


class Problem(Body, omit_defaults=True):
    """An error, as RFC 9457 has it."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    retry_after: float | UnsetType = UNSET
    """Seconds after which the request may be sent again."""


class ServerEvent(Body, omit_defaults=True):
    """``token-expired`` and ``server-draining``."""

    timestamp: Timestamp
    retry_after: float | UnsetType = UNSET
    """Seconds to wait before connecting again."""


class ErrorBody(Body, omit_defaults=True):
    """Why a request failed."""

    code: str
    message: str
    retry_after: float | UnsetType = UNSET
    """Seconds after which the request may be sent again."""


class Answer(Body):
    """A request's acknowledgement."""

    event: str
    data: Any


class Failure(Body, kw_only=True):
    """The acknowledgement of a request that failed."""

    event: str = "error"
    error: ErrorBody


class ExceptionEvent(Body, omit_defaults=True):
    """``exception``: a failure for a client that asked for no acknowledgement."""

    event: str
    code: str
    message: str
    retry_after: float | UnsetType = UNSET


OWN_EVENTS = frozenset({"connected", "exception", "error", "token-expired", "server-draining"})
"""What the gateway itself says to one connection; no notification may pass for it."""

SOCKET_IO_EVENTS = frozenset({"connect", "connect_error", "disconnect", "disconnecting"})
"""Names that Socket.IO keeps for itself: Node's parser refuses them from a client, and python-socketio would call the
handlers of that name."""

RESERVED_EVENTS = frozenset({*Event, *OWN_EVENTS, *SOCKET_IO_EVENTS})
"""Names that an application may not give to an event of its own."""

EventBody = tuple[str, Body]
"""An event's name and its payload."""


# From the model to the wire


def _fields(status: model.UserStatus) -> dict[str, Any]:
    return {
        "user_id": status.user_id,
        "online": status.online,
        "status": status.status,
        "status_text": status.status_text,
        "last_active": optional_timestamp(status.active_at),
        "connected_at": optional_timestamp(status.online_since),
        "version": status.version,
    }


def user_status(status: model.UserStatus) -> UserStatus:
    """A user's presence as others see it."""
    return UserStatus(**_fields(status))


def own_user_status(status: model.UserStatus) -> OwnUserStatus:
    """A user's presence as only that user is told it."""
    return OwnUserStatus(**_fields(status), invisible=status.invisible or UNSET)


def user_status_at(status: model.UserStatus, now: int) -> UserStatusAt:
    """The same with the time it was read."""
    return UserStatusAt(**_fields(status), timestamp=timestamp(now))


def online_user(status: model.UserStatus) -> OnlineUser:
    """One entry of the list of online users."""
    profile = status.profile
    return OnlineUser(
        **_fields(status),
        name=_unset_if_none(profile.name),
        avatar=_unset_if_none(profile.avatar),
        role=_unset_if_none(profile.role),
    )


def user_online_status(status: model.UserStatus, now: int) -> UserOnlineStatus:
    """A user's presence with how long ago it was."""
    ago = None if status.active_at is None else max(0, now - status.active_at) / 1000
    return UserOnlineStatus(**_fields(status), seconds_ago=ago, meta=status.meta, invisible=status.invisible or UNSET)


def event_body(event: Event, transition: Transition) -> EventBody:
    """The event that tells of a transition."""
    status, at = transition.now, timestamp(transition.at)
    match event:
        case Event.ONLINE:
            return event, UserOnline(
                user_id=status.user_id,
                online=True,
                status=status.status,
                timestamp=at,
                version=status.version,
                name=_unset_if_none(status.profile.name),
                avatar=_unset_if_none(status.profile.avatar),
            )
        case Event.OFFLINE:
            return event, UserOffline(
                user_id=status.user_id,
                online=False,
                status=status.status,
                last_active=optional_timestamp(status.active_at),
                timestamp=at,
                version=status.version,
            )
        case Event.CHANGED:
            return event, user_status_at(status, transition.at)


def _unset_if_none(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value


encode = msgspec.json.encode
"""Encode any of these as UTF-8 JSON."""
