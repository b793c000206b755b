"""The words and rules of presence. Pure: no clock, no I/O; time comes in as an argument.

Every time is an integer of Unix milliseconds, every duration an integer of milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

DEFAULT_TENANT = "default"
"""The tenant of a token that names none, and of a call in process that passes none."""

ID_PATTERN = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}"
"""What the id of a user or a tenant is made of: no control characters, and no half of a surrogate pair, which no
encoder could send on to anyone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(ms: int) -> datetime:
    """Turn Unix milliseconds into an aware datetime in UTC, exact to the millisecond."""
    return _EPOCH + timedelta(milliseconds=ms)


class Status(StrEnum):
    """What others see of a user."""

    ONLINE = "online"
    AWAY = "away"
    BUSY = "busy"
    DND = "dnd"
    OFFLINE = "offline"


class Ending(StrEnum):
    """Why a connection ended."""

    GOODBYE = "goodbye"
    KICKED = "kicked"
    TOKEN_EXPIRED = "token expired"  # noqa: S105 - a reason, not a password
    LOST = "connection lost"
    TOO_SLOW = "too slow"
    FLOODED = "flooded"
    DRAINED = "node drained"
    NODE_DIED = "node died"


CONNECTED = "connected"
ACTIVE = "active"
INACTIVE = "inactive"
HEARTBEATS_STOPPED = "heartbeats stopped"
RELEASED = "released"
RESTORED = "restored"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The durations that presence follows, in milliseconds."""

    away_after: int
    """Without activity for this long, a user turns away."""
    ttl: int
    """How long a heartbeat without a connection keeps a user online."""
    grace: int
    """How long a user stays online after the last connection was lost."""
    drain_grace: int = 30_000
    """The same after a node was drained, where it is longer than `grace`: clients move to another node."""
    lease: int
    """How long a node's connections count after the node was last heard of."""

    def hold_after(self, ending: Ending) -> int:
        """How long a user stays online after the last connection ended so: section 3's table of endings."""
        match ending:
            case Ending.GOODBYE | Ending.KICKED | Ending.TOKEN_EXPIRED:
                return 0
            case Ending.LOST | Ending.TOO_SLOW | Ending.FLOODED | Ending.NODE_DIED:
                return self.grace
            case Ending.DRAINED:
                return max(self.grace, self.drain_grace)


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token tells others about its user; None where it says nothing."""

    name: str | None = None
    avatar: str | None = None
    role: str | None = None


NOBODY = Profile()


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One live connection of a user, as the store keeps it."""

    tenant: str
    user_id: str
    id: str
    """Unique over all nodes and doors."""
    node: str
    door: str
    """Which door it came in by: ``socketio`` or ``websocket``."""
    connected_at: int
    profile: Profile = NOBODY
    user_agent: str | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life of a user."""

    tenant: str
    user_id: str
    at: int
    holds: bool = False
    """True where the beat itself keeps the user online for the TTL (HTTP, a backend's login).
    False for a beat of a live connection, which changes nothing for a user who is offline."""
    meta_json: bytes | None = None
    """Replaces what the user's last heartbeat said of itself, as JSON; None leaves it."""
    profile: Profile | None = None
    """What the token of a heartbeat without a connection says of the user; None leaves it."""

    def followed_by(self, later: Beat) -> Beat:
        """Both as one."""
        return msgspec.structs.replace(
            later,
            holds=self.holds or later.holds,
            meta_json=self.meta_json if later.meta_json is None else later.meta_json,
            profile=self.profile if later.profile is None else later.profile,
        )


class UserStatus(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A user's presence, as one version of it was committed.

    It has a ``__dict__`` so that what is derived from it can be kept with it, as its encoding is.
    """

    tenant: str
    user_id: str
    status: Status = Status.OFFLINE
    status_text: str | None = None
    active_at: int | None = None
    """When the user was last active, which survives going offline; None for a user never seen."""
    online_since: int | None = None
    """When the user last came online; None when offline."""
    version: int = 0
    """Grows by one with each committed change of this user; 0 for a user never seen."""
    profile: Profile = NOBODY
    meta_json: bytes | None = None
    """What the last heartbeat said of itself, as JSON; None where none did. Kept encoded: the objects would take
    twenty times the memory, in each user and each entry of the log."""
    ttl_until: int | None = None
    """The last heartbeat without a connection keeps the user online until then; None where none does."""

    @property
    def online(self) -> bool:
        """True for every status but offline."""
        return self.status is not Status.OFFLINE

    @property
    def meta(self) -> dict[str, Any] | None:
        """`meta_json`, decoded."""
        return None if self.meta_json is None else msgspec.json.decode(self.meta_json)

    @property
    def last_active(self) -> datetime | None:
        """`active_at` as an aware datetime."""
        return None if self.active_at is None else to_datetime(self.active_at)

    @property
    def connected_at(self) -> datetime | None:
        """`online_since` as an aware datetime."""
        return None if self.online_since is None else to_datetime(self.online_since)


class Event(StrEnum):
    """The events that tell others of a change."""

    ONLINE = "user-online"
    OFFLINE = "user-offline"
    CHANGED = "user-status-changed"


def event_between(was: Status, now: Status) -> Event | None:
    """The one event that tells of a change from one status to another; None where nothing changed."""
    if was == now:
        return None
    if was is Status.OFFLINE:
        return Event.ONLINE
    if now is Status.OFFLINE:
        return Event.OFFLINE
    return Event.CHANGED


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One committed change of one user; an entry of the log."""

    position: int
    """Where it stands on the log; grows along the log."""
    at: int
    was: Status
    """The status before."""
    now: UserStatus
    """The user's whole presence after."""
    reason: str
    """What made the change, for people to read: an `Ending`, or one of the words below."""

    @property
    def tenant(self) -> str:
        """The tenant of the user who changed."""
        return self.now.tenant

    @property
    def user_id(self) -> str:
        """The user who changed."""
        return self.now.user_id

    @property
    def event(self) -> Event | None:
        """The event that tells of it."""
        return event_between(self.was, self.now.status)


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """News of a user that is no change of status, and makes no version; an entry of the log."""

    position: int
    tenant: str
    user_id: str
    version: int
    """The user's version when it was news: it says nothing of a later one."""
    active_at: int | None = None
    """None leaves it as it was, as for the other three."""
    meta_json: bytes | None = None
    profile: Profile | None = None
    ttl_until: int | None = None
    """0 ends it."""

    def applied_to(self, status: UserStatus) -> UserStatus:
        """Return `status` with this news in it; applying twice changes nothing more."""
        return msgspec.structs.replace(
            status,
            active_at=latest(status.active_at, self.active_at),
            meta_json=status.meta_json if self.meta_json is None else self.meta_json,
            profile=status.profile if self.profile is None else self.profile,
            ttl_until=status.ttl_until if self.ttl_until is None else self.ttl_until or None,
        )


Entry = Transition | Activity
"""What the log is made of."""


class Outage(msgspec.Struct, frozen=True):
    """Time stood still for everyone: nobody could renew, connect or come back."""

    begin: int = 0
    end: int = 0

    def delay(self, until: int) -> int:
        """When what would run out at `until` does run out: had it not before the outage, then not before its end."""
        return max(until, self.end) if until >= self.begin else until


NO_OUTAGE = Outage()


class Held(msgspec.Struct):
    """What besides heartbeats keeps one user online; the store holds one per user, and the rules below read it."""

    connections: dict[str, Connection] = {}
    grace_until: int | None = None
    """A grace runs until then. Set when the last connection ends, cleared when a connection comes back."""
    ending: Ending | None = None
    """How the last connection ended that began the grace."""


def held_until(held: Held, status: UserStatus, outage: Outage) -> int | None:
    """When a user without connections goes offline; None where nothing holds them."""
    until = latest(held.grace_until, status.ttl_until)
    return None if until is None else outage.delay(until)


def status_at(held: Held, status: UserStatus, now: int, timing: Timing, outage: Outage = NO_OUTAGE) -> Status:
    """The status a user has at `now`: the rules of presence in one place."""
    until = held_until(held, status, outage)
    if not held.connections and (until is None or now >= until):
        return Status.OFFLINE
    if status.active_at is not None and now - status.active_at >= timing.away_after:
        return Status.AWAY
    return Status.ONLINE


def next_change(held: Held, status: UserStatus, timing: Timing, outage: Outage = NO_OUTAGE) -> int | None:
    """When `status_at` will next differ from the user's status if nothing happens; None if never."""
    if not status.online:
        return None
    gone = None if held.connections else held_until(held, status, outage)
    away = None
    if status.active_at is not None and status.status is not Status.AWAY:
        away = status.active_at + timing.away_after
    return earliest(gone, away)


def latest(*times: int | None) -> int | None:
    """The greatest of the times that are not None; None if all are."""
    return max((time for time in times if time is not None), default=None)


def earliest(*times: int | None) -> int | None:
    """The least of the times that are not None; None if all are."""
    return min((time for time in times if time is not None), default=None)
