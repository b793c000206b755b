"""The form in which the Lua scripts write and read users, sessions and log entries, and its conversion to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.presence.model import (
    NOBODY,
    Activity,
    Choice,
    Chosen,
    Device,
    Entry,
    Forgotten,
    OnlineSession,
    Own,
    PrivateChange,
    Profile,
    Status,
    Transition,
    UserStatus,
    parted,
    published,
)
from gateway.redis.keys import SEPARATOR
from gateway.redis.stream import to_position

if TYPE_CHECKING:
    from collections.abc import Sequence

STATUS_FIELDS = (
    *("status", "version", "active_at", "online_since", "ttl_until", "profile", "meta"),
    *("status_text", "chosen", "text", "chosen_until", "revision", "shown"),
)


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """A user's presence, as the scripts write it."""

    status: Status | None = None
    status_text: str | None = None
    active_at: int | None = None
    online_since: int | None = None
    ttl_until: int | None = None
    profile: str | None = None
    meta: str | None = None

    def presence_of(self, tenant: str, user_id: str, version: int, own: Own | None) -> UserStatus:
        return UserStatus(
            tenant=tenant,
            user_id=user_id,
            status=self.status or Status.OFFLINE,
            status_text=self.status_text,
            active_at=self.active_at,
            online_since=self.online_since,
            version=version,
            profile=NOBODY if self.profile is None else _decode_profile(self.profile),
            meta_json=None if self.meta is None else self.meta.encode(),
            ttl_until=self.ttl_until,
            own=own,
        )


class _Own(msgspec.Struct, frozen=True, kw_only=True):
    """The private side of a user's presence (`model.Own`), as the scripts write it."""

    chosen: Chosen = Chosen.ONLINE
    text: str | None = None
    til: int | None = None
    revision: int
    hidden: _State | None = None


class _Body(_State, frozen=True, kw_only=True):
    """An entry of the log, as the scripts write it. Without a status it is an `Activity`."""

    user: str
    version: int
    at: int = 0
    was: Status = Status.OFFLINE
    was_text: str | None = None
    reason: str = ""
    due: int | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    own: _Own | None = None
    private: bool = False
    forgotten: int | None = None

    def entry(self, position: int) -> Entry:
        """Convert it to the model's entry, at a position of the log."""
        tenant, user_id = self.user.split(SEPARATOR)
        if self.status is None:
            return Activity(
                position=position,
                tenant=tenant,
                user_id=user_id,
                version=self.version,
                active_at=self.active_at,
                meta_json=None if self.meta is None else self.meta.encode(),
                profile=None if self.profile is None else _decode_profile(self.profile),
                ttl_until=self.ttl_until,
            )
        own: Own | None = None
        if (said := self.own) is not None:
            hidden = None if said.hidden is None else said.hidden.presence_of(tenant, user_id, self.version, None)
            choice = Choice(said.chosen, said.text, said.til)
            own = Own(choice=choice, revision=said.revision, hidden=hidden)
        status = self.presence_of(tenant, user_id, self.version, own)
        if self.private:
            return PrivateChange(position=position, now=status)
        if self.forgotten is not None:
            return Forgotten(position=position, now=status, version=self.forgotten)
        return Transition(
            position=position,
            at=self.at,
            was=self.was,
            was_text=self.was_text,
            now=status,
            reason=self.reason,
            due=self.due,
            traceparent=self.traceparent,
            tracestate=self.tracestate,
        )


_SESSION = tuple[int, int | None, int | None, str | None, Device | None]
"""A session, as the scripts write it: begin, end, connections, reason and device."""

_decode_session = msgspec.json.Decoder(_SESSION).decode
decode_body = msgspec.json.Decoder(_Body).decode
_decode_state = msgspec.json.Decoder(_State).decode
_decode_profile = msgspec.json.Decoder(Profile).decode
_encode = msgspec.json.encode


def status_of(user: str, fields: Sequence[bytes | None]) -> UserStatus:
    """Convert a user's hash to their presence, both sides in one as `model.published` makes it."""
    return published(*both_of(user, fields))


def both_of(user: str, fields: Sequence[bytes | None]) -> tuple[UserStatus, UserStatus | None]:
    """Convert a user's hash to their real presence, and what others are told instead, or None."""
    status, version, active_at, online_since, ttl_until, profile, meta, *private = fields
    status_text, chosen, text, chosen_until, revision, shown = private
    tenant, user_id = user.split(SEPARATOR)
    own = None
    if revision is not None:
        choice = Choice(
            Chosen(chosen.decode()) if chosen else Chosen.ONLINE,
            None if text is None else text.decode(),
            None if chosen_until is None else int(chosen_until),
        )
        own = Own(choice=choice, revision=int(revision))
    true = UserStatus(
        tenant=tenant,
        user_id=user_id,
        status=Status(status.decode()) if status else Status.OFFLINE,
        status_text=None if status_text is None else status_text.decode(),
        active_at=None if active_at is None else int(active_at),
        online_since=None if online_since is None else int(online_since),
        version=int(version or 0),
        profile=NOBODY if profile is None else _decode_profile(profile),
        meta_json=meta,
        ttl_until=None if ttl_until is None else int(ttl_until),
        own=own,
    )
    return true, None if shown is None else _decode_state(shown).presence_of(tenant, user_id, true.version, None)


def fields_of(status: UserStatus) -> dict[str, str]:
    """Convert a user's presence to the fields of their hash, without the version."""
    true, shown = parted(status)
    fields: dict[str, object] = {"status": true.status.value, "status_text": true.status_text, **_kept(true)}
    fields |= {"online_since": true.online_since, "ttl_until": true.ttl_until}
    if (own := true.own) is not None:
        chosen = None if own.choice.status is Chosen.ONLINE else own.choice.status.value
        fields |= {"chosen": chosen, "text": own.choice.text, "chosen_until": own.choice.until}
        fields["revision"] = own.revision
    if shown is not None:
        kept = {name: value for name, value in _kept(shown).items() if value is not None}
        fields["shown"] = _encode(kept).decode()
    return {name: str(value) for name, value in fields.items() if value is not None}


def _kept(status: UserStatus) -> dict[str, object]:
    """The fields of a presence that survive going offline."""
    return {
        "active_at": status.active_at,
        "profile": None if status.profile == NOBODY else _encode(status.profile).decode(),
        "meta": None if status.meta_json is None else status.meta_json.decode(),
    }


def transition_of(body: bytes) -> Transition:
    """A transition as the outbox has it, which is as the log has it, but for its position there.

    Raises:
        ValueError: it is none that this version can read.
    """
    entry = decode_body(body).entry(0)
    if not isinstance(entry, Transition):
        raise ValueError("it is no transition")  # noqa: TRY004 - of what it says, not of what it is
    return entry


def session_of(text: bytes, opened: bytes | None) -> OnlineSession:
    """Convert a session; `opened` is the number of connections of a session that is still running."""
    begun_at, ended_at, connections, reason, device = _decode_session(text)
    if connections is None:
        connections = int(opened or 0)
    return OnlineSession(begun_at=begun_at, ended_at=ended_at, connections=connections, reason=reason, device=device)


def transition_at(position: bytes, body: bytes) -> Transition:
    """Convert a transition, as a script returns it, with its position on the log."""
    entry = decode_body(body).entry(to_position(position))
    assert isinstance(entry, Transition)  # noqa: S101 - by the scripts: only these are answered
    return entry
