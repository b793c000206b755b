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

PART = "\x1e"
"""Between a tenant and the name of a part of it, which has users of its own, as a channel has its members."""

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


# Until Python 3.12, to ask an enumeration for its member takes as long as ten other attributes.
ONLINE, AWAY, OFFLINE = Status.ONLINE, Status.AWAY, Status.OFFLINE


class Chosen(StrEnum):
    """What a user may set by hand."""

    ONLINE = "online"
    """Back to what activity says."""
    AWAY = "away"
    BUSY = "busy"
    DND = "dnd"
    INVISIBLE = "invisible"
    """Offline to everyone else."""


_INVISIBLE = Chosen.INVISIBLE
_SET_BY_HAND = {Chosen.AWAY: AWAY, Chosen.BUSY: Status.BUSY, Chosen.DND: Status.DND}
"""What beats inactivity; of the other two, activity decides."""


class Ending(StrEnum):
    """Why a connection ended."""

    GOODBYE = "goodbye"
    KICKED = "kicked"
    TOKEN_EXPIRED = "token expired"  # noqa: S105 - a reason, not a password
    REVOKED = "token revoked"
    LOST = "connection lost"
    TOO_SLOW = "too slow"
    FLOODED = "flooded"
    DRAINED = "node drained"
    NODE_DIED = "node died"


_MEANT = frozenset({Ending.GOODBYE, Ending.KICKED, Ending.TOKEN_EXPIRED, Ending.REVOKED})
_DRAINED = Ending.DRAINED

CONNECTED = "connected"
CHOSEN = "set by hand"
RAN_OUT = "set by hand until now"
ACTIVE = "active"
INACTIVE = "inactive"
HEARTBEATS_STOPPED = "heartbeats stopped"
RELEASED = "released"
RESTORED = "restored"


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the past is kept."""

    sessions: int = 20
    """How many of each user's sessions; 0 keeps none."""
    sessions_ttl: int = 2_592_000_000
    """Milliseconds that a session is kept after its end."""
    last_seen_ttl: int | None = None
    """Milliseconds after which it is forgotten when a user who is offline was last active, and the user with it; None
    for never."""
    choices: bool = True
    """Whether what such a user has set by hand is kept all the same."""


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
    retention: Retention = Retention()

    def hold_after(self, ending: Ending) -> int:
        """How long a user stays online after the last connection ended so: section 3's table of endings."""
        if ending in _MEANT:
            return 0
        return max(self.grace, self.drain_grace) if ending is _DRAINED else self.grace


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token tells others about its user; None where it says nothing."""

    name: str | None = None
    avatar: str | None = None
    role: str | None = None
    info_json: str | None = None
    """What is said of a channel's member in place of the rest, as JSON; None elsewhere."""


NOBODY = Profile()


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a connection's client is, by its own account."""

    door: str
    """Which door it came in by: ``socketio`` or ``websocket``."""
    user_agent: str | None = None
    """The ``User-Agent`` of its handshake, cut to 256 characters, without control characters."""
    meta_json: bytes | None = None
    """What it said of itself in its handshake, or with its last heartbeat that said anything, as JSON."""

    @property
    def meta(self) -> dict[str, Any] | None:
        """`meta_json`, decoded."""
        return None if self.meta_json is None else msgspec.json.decode(self.meta_json)

    @property
    def page(self) -> str | None:
        """Which page it shows: ``page`` of its meta; None where it does not say."""
        page = (self.meta or {}).get("page")
        return page if isinstance(page, str) else None


class Connection(Device, frozen=True, kw_only=True, omit_defaults=True):
    """One live connection of a user, as the store keeps it.

    What is the device's comes first in its JSON, and `tenant` next: a script parts them there.
    """

    tenant: str
    user_id: str
    id: str
    """Unique over all nodes and doors."""
    node: str
    connected_at: int
    profile: Profile = NOBODY
    active_at: int | None = None
    """When its client last asked for something, as the node knows that holds it; None in the store."""

    @property
    def device(self) -> Device:
        """What of it a session keeps."""
        return Device(door=self.door, user_agent=self.user_agent, meta_json=self.meta_json)


class OnlineSession(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a user was online, from coming to going. It is the truth, also of one who was invisible."""

    begun_at: int
    ended_at: int | None = None
    """None while it lasts, as for `reason`."""
    connections: int = 0
    """How many connections were opened in it. Those of a node that was cut off, and registered them again, count
    again."""
    reason: str | None = None
    """What took the user offline, for people to read: an `Ending`, or one of the words beside it."""
    device: Device | None = None
    """Of the connection that opened it; None where none did: by heartbeats without one, by a backend, or as a node
    knew it of whom the store had lost."""

    def is_kept_at(self, now: int, retention: Retention) -> bool:
        """Whether it has not ended for too long."""
        return self.ended_at is None or now < self.ended_at + retention.sessions_ttl


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


class Choice(msgspec.Struct, frozen=True):
    """What a user set by hand. It is the user's and no connection's: it outlasts going offline and coming back."""

    status: Chosen = Chosen.ONLINE
    text: str | None = None
    """What others read beside the status while the user is not offline to them."""
    until: int | None = None
    """It holds until then; None until it is changed."""

    def holds_at(self, now: int) -> bool:
        """Whether it has not run out."""
        return self.until is None or now < self.until


NO_CHOICE = Choice()


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody but a user is told of their presence. A view keeps it apart from what others read."""

    choice: Choice = NO_CHOICE
    revision: int = 1
    """Grows with each committed change of a user who has ever set a status, also with those that others do not see."""
    hidden: UserStatus | None = None
    """While the user is invisible, what would be so if they were not, as the user is told it."""


NOTHING_SET = Own(revision=0)


class UserStatus(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A user's presence, as one version of it was committed.

    It has a ``__dict__`` so that what is derived from it can be kept with it, as its encoding is.
    """

    tenant: str
    user_id: str
    status: Status = OFFLINE
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
    own: Own | None = None
    """None in all that others are told, and for a user who has never set a status."""

    @property
    def invisible(self) -> bool:
        """Whether this is what only its user is told, while others are told that the user is offline."""
        return self.own is not None and self.own.choice.status is _INVISIBLE

    @property
    def online(self) -> bool:
        """True for every status but offline."""
        return self.status is not OFFLINE

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


def published(true: UserStatus, shown: UserStatus | None) -> UserStatus:
    """A user's presence as the log and snapshots have it: what others are told, and beside it what they are not.

    Args:
        true: what the user is told.
        shown: what others are told instead, of the same version; None where that is the same.
    """
    if shown is None or true.own is None:
        return true
    own = msgspec.structs.replace(true.own, hidden=msgspec.structs.replace(true, own=None))
    return msgspec.structs.replace(shown, own=own)


def parted(status: UserStatus) -> tuple[UserStatus, UserStatus | None]:
    """The two that `published` made one of."""
    own = status.own
    if own is None or own.hidden is None:
        return status, None
    bare = msgspec.structs.replace(own, hidden=None)
    true = msgspec.structs.replace(own.hidden, own=bare, version=status.version)
    return true, msgspec.structs.replace(status, own=None)


def event_between(was: Status, now: Status, was_text: str | None = None, now_text: str | None = None) -> Event | None:
    """The one event that tells of a change from one status and its text to another; None where nothing changed."""
    if was == now:
        return None if was_text == now_text else Event.CHANGED
    if was is OFFLINE:
        return Event.ONLINE
    if now is OFFLINE:
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
    """What made the change, for people to read: an `Ending`, or one of the words beside it."""
    was_text: str | None = None
    """The status text before."""
    due: int | None = None
    """When the user's time was over, of one who went because it was; None of any other, and where nobody said so."""
    traceparent: str | None = None
    """What trace the change is part of, as W3C's Trace Context has it; None for none."""

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
        return net_event(self, self)


def net_event(first: Transition, last: Transition) -> Event | None:
    """The one event that tells of all changes of a user from the first to the last; None where they come to nothing."""
    return event_between(first.was, last.now.status, first.was_text, last.now.status_text)


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


class PrivateChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of what only its user is told, which makes no version; an entry of the log."""

    position: int
    now: UserStatus
    """The user's whole presence after; what others are told of it is as it was."""

    @property
    def tenant(self) -> str:
        """The tenant of the user who changed."""
        return self.now.tenant

    @property
    def user_id(self) -> str:
        """The user who changed."""
        return self.now.user_id


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """A user is to be as one never seen, which makes no version and no event; an entry of the log."""

    position: int
    now: UserStatus
    """What is left of the user, of version 0: nothing, or what is `UserStatus.own`."""
    version: int
    """The version that is forgotten: it says nothing of another."""

    @property
    def tenant(self) -> str:
        """The tenant of the user."""
        return self.now.tenant

    @property
    def user_id(self) -> str:
        """The user."""
        return self.now.user_id


Entry = Transition | Activity | PrivateChange | Forgotten
"""What the log is made of."""


class Outage(msgspec.Struct, frozen=True):
    """Time stood still for everyone: nobody could renew, connect or come back."""

    begin: int = 0
    end: int = 0
    loss_end: int = 0
    """Until when connections may be missing in the store, which it lost, or which nodes could not tell it of."""

    def delay(self, until: int) -> int:
        """When what would run out at `until` does run out: had it not before the outage, then not before its end."""
        return max(until, self.end) if until >= self.begin else until

    def delay_grace(self, until: int, ending: Ending | None) -> int:
        """When a grace runs out. Where nobody is to come back, it is for what may be missing, and as long as that."""
        if ending in _MEANT:
            return max(until, self.loss_end) if until >= self.begin else until
        return self.delay(until)


NO_OUTAGE = Outage()


class Held(msgspec.Struct):
    """What besides heartbeats keeps one user online; the store holds one per user, and the rules below read it."""

    connections: dict[str, Connection] = {}
    grace_until: int | None = None
    """A grace runs until then. Set when the last connection ends, cleared when a connection comes back."""
    ending: Ending | None = None
    """How the last connection ended that began the grace."""
    lost_at: int | None = None
    """When a connection was lost last while others seemed to live; that these had ended before may be heard of later.
    None where none was since a connection came."""


def held_until(held: Held, status: UserStatus, outage: Outage) -> int | None:
    """When a user without connections goes offline; None where nothing holds them."""
    grace_until, ttl_until = held.grace_until, status.ttl_until
    if grace_until is not None:
        grace_until = outage.delay_grace(grace_until, held.ending)
    return latest(grace_until, None if ttl_until is None else outage.delay(ttl_until))


def over_at(held: Held, status: UserStatus, reason: str, outage: Outage) -> int | None:
    """When the time was over of a user who goes for a reason; None where it is another than that it was over."""
    return held_until(held, status, outage) if reason in {held.ending, HEARTBEATS_STOPPED} else None


def status_at(held: Held, status: UserStatus, now: int, timing: Timing, outage: Outage = NO_OUTAGE) -> Status:
    """The status a user has at `now`: the rules of presence in one place. The first that fits decides.

    ========================================  =======================================================
    no connection, no grace, no TTL           offline
    set by hand: busy, dnd or away            that
    no device active for `Timing.away_after`  away
    otherwise                                 online
    ========================================  =======================================================

    It is what the user is told; to others, whoever has set `Chosen.INVISIBLE` is offline whatever it says.
    """
    until = held_until(held, status, outage)
    if not held.connections and (until is None or now >= until):
        return OFFLINE
    own = status.own
    if own is not None and own.choice.holds_at(now) and own.choice.status in _SET_BY_HAND:
        return _SET_BY_HAND[own.choice.status]
    if status.active_at is not None and now - status.active_at >= timing.away_after:
        return AWAY
    return ONLINE


def next_change(held: Held, status: UserStatus, timing: Timing, outage: Outage = NO_OUTAGE) -> int | None:
    """When the user's status or text will next change if nothing happens; None if never."""
    if not status.online:
        return None
    choice = NO_CHOICE if status.own is None else status.own.choice
    gone = None if held.connections else held_until(held, status, outage)
    away = None
    if status.active_at is not None and status.status is not AWAY and choice.status not in _SET_BY_HAND:
        away = status.active_at + timing.away_after
    return earliest(earliest(gone, away), choice.until)


def forgotten_at(status: UserStatus, shown: UserStatus | None, retention: Retention) -> int | None:
    """When it is forgotten that a user was last seen; None for never, or where there is nothing to forget.

    While others are told that the user is offline, it is what they are told that counts: they are not to find out by
    it that somebody is there.
    """
    if retention.last_seen_ttl is None:
        return None
    active_at = None if shown is None else shown.active_at
    if active_at is None and not status.online:
        active_at = status.active_at
    return None if active_at is None else active_at + retention.last_seen_ttl


def latest(one: int | None, other: int | None) -> int | None:
    """The later of two times; None where there is neither."""
    if one is None or other is None:
        return one if other is None else other
    return one if one > other else other  # noqa: FURB136 - max() looks for keywords, which takes as long as all the rest


def earliest(one: int | None, other: int | None) -> int | None:
    """The earlier of two times; None where there is neither."""
    if one is None or other is None:
        return one if other is None else other
    return one if one < other else other  # noqa: FURB136 - as above
