"""The types and rules of presence. Pure: no clock, no I/O; time comes in as an argument.

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
"""Separates a tenant from the name of a part of it. A part has users of its own: a presence channel is the part
``tenant + PART + channel``, and its members are that part's users."""

ID_PATTERN = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}"
"""What the id of a user or a tenant looks like: 1 to 128 characters, none of them a control character or a lone
surrogate, which cannot be encoded."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(ms: int) -> datetime:
    """Turn Unix milliseconds into an aware datetime in UTC, exact to the millisecond."""
    return _EPOCH + timedelta(milliseconds=ms)


class Status(StrEnum):
    """A user's status, as others see it."""

    ONLINE = "online"
    AWAY = "away"
    BUSY = "busy"
    DND = "dnd"
    OFFLINE = "offline"


# Until Python 3.12, `Status.ONLINE` takes as long as ten ordinary attributes.
ONLINE, AWAY, OFFLINE = Status.ONLINE, Status.AWAY, Status.OFFLINE


class Chosen(StrEnum):
    """A status that a user can set by hand."""

    ONLINE = "online"
    """Nothing is set: activity decides between online and away."""
    AWAY = "away"
    BUSY = "busy"
    DND = "dnd"
    INVISIBLE = "invisible"
    """Others are told that the user is offline."""


_INVISIBLE = Chosen.INVISIBLE
_SET_BY_HAND = {Chosen.AWAY: AWAY, Chosen.BUSY: Status.BUSY, Chosen.DND: Status.DND}
"""The statuses that are shown as set, however active the user is. Under the other two, activity decides."""


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
"""Endings that somebody meant: no grace follows them."""
_DRAINED = Ending.DRAINED

# Why a status changed, where it was not because a connection ended.
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
    """How many sessions are kept of each user; 0 keeps none."""
    sessions_ttl: int = 2_592_000_000
    """Milliseconds that a session is kept after its end."""
    last_seen_ttl: int | None = None
    """Milliseconds after a user's last activity at which a user who is offline is forgotten, last-seen time included.
    None for never."""
    choices: bool = True
    """Whether a status that was set by hand survives its user being forgotten."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The durations that presence follows, in milliseconds."""

    away_after: int
    """Without activity for this long, a user becomes away."""
    ttl: int
    """How long a heartbeat without a connection keeps a user online."""
    grace: int
    """How long a user stays online after the last connection was lost."""
    drain_grace: int = 30_000
    """The same after the node was drained, if it is longer than `grace`: clients need time to move to another node."""
    lease: int
    """How long a node's connections count after the node last renewed its lease."""
    retention: Retention = Retention()

    def hold_after(self, ending: Ending) -> int:
        """How many milliseconds a user stays online after their last connection ended in this way."""
        if ending in _MEANT:
            return 0
        return max(self.grace, self.drain_grace) if ending is _DRAINED else self.grace


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What others are told about a user, taken from the claims of their token; None for a claim it does not have."""

    name: str | None = None
    avatar: str | None = None
    role: str | None = None
    info_json: str | None = None
    """Of a channel's member only: the information told of them instead of the other fields, as JSON."""


NOBODY = Profile()
"""The profile of a token without any of these claims."""


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a connection's client says about itself."""

    door: str
    """By which door it connected: ``socketio`` or ``websocket``."""
    user_agent: str | None = None
    """The ``User-Agent`` of its handshake, cut to 256 characters, without control characters."""
    meta_json: bytes | None = None
    """The ``meta`` of its handshake or of its last heartbeat that had one, as JSON; None if it never sent any."""

    @property
    def meta(self) -> dict[str, Any] | None:
        """`meta_json`, decoded."""
        return None if self.meta_json is None else msgspec.json.decode(self.meta_json)

    @property
    def page(self) -> str | None:
        """Which page it shows: ``page`` of its meta; None if that is missing or no string."""
        page = (self.meta or {}).get("page")
        return page if isinstance(page, str) else None


class Connection(Device, frozen=True, kw_only=True, omit_defaults=True):
    """One live connection of a user, as the store keeps it.

    In its JSON the fields of `Device` come first and `tenant` follows them: a Lua script cuts the device out there.
    """

    tenant: str
    user_id: str
    id: str
    """Unique over all nodes and doors."""
    node: str
    connected_at: int
    profile: Profile = NOBODY
    active_at: int | None = None
    """When its client last sent a request. Only the connection's own node knows; None in the store."""

    @property
    def device(self) -> Device:
        """The part of it that a session keeps."""
        return Device(door=self.door, user_agent=self.user_agent, meta_json=self.meta_json)


class OnlineSession(msgspec.Struct, frozen=True, kw_only=True):
    """One period in which a user was online. It tells the truth even if the user was invisible."""

    begun_at: int
    ended_at: int | None = None
    """None while the session lasts."""
    connections: int = 0
    """How many connections were opened in it. Those that a node registers again, after it was cut off, count again."""
    reason: str | None = None
    """What took the user offline, for people to read: an `Ending`, or `HEARTBEATS_STOPPED`, `RELEASED` or `RESTORED`.
    None while the session lasts."""
    device: Device | None = None
    """The client whose connection began it. None if it began without one: by an HTTP heartbeat, by a backend's call,
    or by a node that gave the user back to a store that had lost them."""

    def is_kept_at(self, now: int, retention: Retention) -> bool:
        """Whether it still lasts, or ended less than `Retention.sessions_ttl` ago."""
        return self.ended_at is None or now < self.ended_at + retention.sessions_ttl


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life of a user."""

    tenant: str
    user_id: str
    at: int
    holds: bool = False
    """True if the beat itself keeps the user online for the TTL (HTTP, a backend's login).
    False for the beat of a live connection, which does nothing for a user who is offline."""
    meta_json: bytes | None = None
    """Replaces the user's meta, as JSON; None leaves it."""
    profile: Profile | None = None
    """Replaces the user's profile, from the token of a heartbeat without a connection; None leaves it."""

    def followed_by(self, later: Beat) -> Beat:
        """One beat that has the effect of this one and then `later`."""
        return msgspec.structs.replace(
            later,
            holds=self.holds or later.holds,
            meta_json=self.meta_json if later.meta_json is None else later.meta_json,
            profile=self.profile if later.profile is None else later.profile,
        )


class Choice(msgspec.Struct, frozen=True):
    """What a user set by hand. It belongs to the user, not to a connection: going offline does not end it."""

    status: Chosen = Chosen.ONLINE
    text: str | None = None
    """The status text, which others read unless the user is offline to them."""
    until: int | None = None
    """When it ends; None if it holds until it is changed."""

    def holds_at(self, now: int) -> bool:
        """Whether it has not run out."""
        return self.until is None or now < self.until


NO_CHOICE = Choice()


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """The private side of a user's presence, told to nobody else. A view keeps it apart from what others read."""

    choice: Choice = NO_CHOICE
    revision: int = 1
    """Counts the committed changes of a user who has ever set a status, those included that others do not see."""
    hidden: UserStatus | None = None
    """While the user is invisible, their real presence, which only they are told; None otherwise."""


NOTHING_SET = Own(revision=0)
"""For a user who has never set a status."""


class UserStatus(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A user's presence at one version.

    It has a ``__dict__`` so that what is derived from it, such as its encoding, can be cached on it.
    """

    tenant: str
    user_id: str
    status: Status = OFFLINE
    status_text: str | None = None
    active_at: int | None = None
    """When the user was last active (last seen); it survives going offline. None for a user never seen."""
    online_since: int | None = None
    """When the user last came online; None when offline."""
    version: int = 0
    """Grows by one with each committed change of this user; 0 for a user never seen."""
    profile: Profile = NOBODY
    meta_json: bytes | None = None
    """The ``meta`` of the last heartbeat that had one, as JSON; None if none had. Kept encoded, because as objects it
    would take twenty times the memory, in each user and each entry of the log."""
    ttl_until: int | None = None
    """Until when an HTTP heartbeat keeps the user online without a connection; None if none does."""
    own: Own | None = None
    """The private side. None in everything that others are told, and for a user who has never set a status."""

    @property
    def invisible(self) -> bool:
        """Whether the user is invisible: then this is their real presence, and others are told offline."""
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
    """Combine both sides of a user's presence into one value, as the log and snapshots carry it; `parted` undoes it.

    Args:
        true: the real presence, which the user is told.
        shown: what others are told instead, at the same version; None if they are told the same.

    Returns:
        What others are told, with the real presence in ``own.hidden``.
    """
    if shown is None or true.own is None:
        return true
    own = msgspec.structs.replace(true.own, hidden=msgspec.structs.replace(true, own=None))
    return msgspec.structs.replace(shown, own=own)


def parted(status: UserStatus) -> tuple[UserStatus, UserStatus | None]:
    """Take apart what `published` combined: the real presence, and what others are told instead, or None."""
    own = status.own
    if own is None or own.hidden is None:
        return status, None
    bare = msgspec.structs.replace(own, hidden=None)
    true = msgspec.structs.replace(own.hidden, own=bare, version=status.version)
    return true, msgspec.structs.replace(status, own=None)


def event_between(was: Status, now: Status, was_text: str | None = None, now_text: str | None = None) -> Event | None:
    """The event that tells of a change from one status and text to another; None if nothing changed."""
    if was == now:
        return None if was_text == now_text else Event.CHANGED
    if was is OFFLINE:
        return Event.ONLINE
    if now is OFFLINE:
        return Event.OFFLINE
    return Event.CHANGED


class _WholeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the log with a user's whole presence in it."""

    position: int
    """Where it stands on the log; grows along the log."""
    now: UserStatus
    """The user's whole presence after the change."""

    @property
    def tenant(self) -> str:
        """The user's tenant."""
        return self.now.tenant

    @property
    def user_id(self) -> str:
        """The user's id."""
        return self.now.user_id


class Transition(_WholeEntry, frozen=True, kw_only=True):
    """One committed change of one user; an entry of the log."""

    at: int
    """When it was committed."""
    was: Status
    """The status before."""
    reason: str
    """What made the change, for people to read: an `Ending`, or `CONNECTED` or another of the constants below it."""
    was_text: str | None = None
    """The status text before."""
    due: int | None = None
    """When the grace or TTL ran out, if that is why the user went offline; None for any other change."""
    traceparent: str | None = None
    """The trace that the change is part of, as a W3C Trace Context header; None for none."""
    tracestate: str | None = None
    """What the systems that take part in the trace add to it, as the header of that name; None for nothing."""

    @property
    def event(self) -> Event | None:
        """The event that tells of it; None if others need not be told."""
        return net_event(self, self)


def net_event(first: Transition, last: Transition) -> Event | None:
    """The event that sums up a user's changes from the first to the last; None if they cancel each other out."""
    return event_between(first.was, last.now.status, first.was_text, last.now.status_text)


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """News of a user that changes no status and makes no version; an entry of the log.

    Each of the four last fields is None if it has not changed.
    """

    position: int
    tenant: str
    user_id: str
    version: int
    """The user's version at that time. The entry does not apply to another version."""
    active_at: int | None = None
    meta_json: bytes | None = None
    profile: Profile | None = None
    ttl_until: int | None = None
    """0 if the TTL has ended."""

    def applied_to(self, status: UserStatus) -> UserStatus:
        """Return `status` brought up to date with this news; applying it twice has the effect of once."""
        return msgspec.structs.replace(
            status,
            active_at=latest(status.active_at, self.active_at),
            meta_json=status.meta_json if self.meta_json is None else self.meta_json,
            profile=status.profile if self.profile is None else self.profile,
            ttl_until=status.ttl_until if self.ttl_until is None else self.ttl_until or None,
        )


class PrivateChange(_WholeEntry, frozen=True, kw_only=True):
    """A change that only its user is told of, which makes no version; an entry of the log.

    What `now` tells others is as it was; what has changed is ``now.own``.
    """


class Forgotten(_WholeEntry, frozen=True, kw_only=True):
    """A user is to be as if never seen, which makes no version and no event; an entry of the log.

    `now` is what is left of the user: version 0, and perhaps ``now.own``.
    """

    version: int
    """The version that is forgotten. The entry does not apply to a user at another version."""


Entry = Transition | Activity | PrivateChange | Forgotten
"""An entry of the log."""


class Outage(msgspec.Struct, frozen=True):
    """A time in which no node could reach the store: nobody could renew, connect or come back.

    For presence, time stood still: nothing runs out between `begin` and `end`.
    """

    begin: int = 0
    end: int = 0
    loss_end: int = 0
    """Until when the store may not know of live connections: it lost them, or nodes could not register them yet."""

    def delay(self, until: int) -> int:
        """When something that is set to end at `until` really ends: not within the outage, but at its end."""
        return max(until, self.end) if until >= self.begin else until

    def delay_grace(self, until: int, ending: Ending | None) -> int:
        """When a grace that is set to end at `until` really ends.

        After an ending that somebody meant, a grace runs only because of an outage: another connection of the user may
        not be known yet. It lasts as long as that may be so.
        """
        if ending in _MEANT:
            return max(until, self.loss_end) if until >= self.begin else until
        return self.delay(until)


NO_OUTAGE = Outage()


class Held(msgspec.Struct):
    """What keeps one user online besides heartbeats. The store holds one per user, and the rules below read it."""

    connections: dict[str, Connection] = {}
    """The live ones, by id."""
    grace_until: int | None = None
    """When the running grace ends; None if none runs. Set as the last connection ends, cleared as one comes back."""
    ending: Ending | None = None
    """How the connection ended that began the grace; None if none runs."""
    lost_at: int | None = None
    """When a connection was last lost while others seemed to live; None if that has not happened since a connection
    last came. If it turns out later that the others had ended before, the grace counts from this time."""


def held_until(held: Held, status: UserStatus, outage: Outage) -> int | None:
    """When a user without connections goes offline, the later of grace and TTL; None if neither runs."""
    grace_until, ttl_until = held.grace_until, status.ttl_until
    if grace_until is not None:
        grace_until = outage.delay_grace(grace_until, held.ending)
    return latest(grace_until, None if ttl_until is None else outage.delay(ttl_until))


def over_at(held: Held, status: UserStatus, reason: str, outage: Outage) -> int | None:
    """When the user's time ran out, if `reason` says that it did; None for a user who goes for another reason."""
    return held_until(held, status, outage) if reason in {held.ending, HEARTBEATS_STOPPED} else None


def status_at(held: Held, status: UserStatus, now: int, timing: Timing, outage: Outage = NO_OUTAGE) -> Status:
    """The status a user has at `now`: the rules of presence in one place. The first row that fits decides.

    ========================================  =======================================================
    no connection, no grace, no TTL           offline
    set by hand: busy, dnd or away            that
    no device active for `Timing.away_after`  away
    otherwise                                 online
    ========================================  =======================================================

    This is what the user is told. A user who has set `Chosen.INVISIBLE` is offline to others, whatever it says.
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
    """When a user who is offline is to be forgotten (`Retention.last_seen_ttl`); None for never.

    Of an invisible user, the last-seen time that others are told counts: if it were never forgotten, they would know
    that somebody is there.
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
