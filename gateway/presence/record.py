"""What the store in memory has of one user."""

from __future__ import annotations

import msgspec

from gateway.presence.model import OFFLINE, Choice, Chosen, Held, OnlineSession, Transition, UserStatus, published


class Record:
    """One user: who they are now, what keeps them so, and when that will next change by itself."""

    __slots__ = ("due", "held", "opened", "recent", "sessions", "shown", "status")

    def __init__(self, status: UserStatus) -> None:
        self.status = status
        """What the user is told."""
        self.shown: UserStatus | None = None
        """What others are told while the user is invisible."""
        self.held = Held()
        self.due: int | None = None
        self.recent: tuple[Transition, ...] = ()
        """The last few; not a deque, of which each takes more than they do."""
        self.sessions: tuple[OnlineSession, ...] = ()
        """The last few, oldest first."""
        self.opened: int | None = None
        """How many connections were opened in the session that lasts; None where none does."""

    @property
    def published(self) -> UserStatus:
        """Both as one."""
        return published(self.status, self.shown)


def end_session(record: Record, now: int, reason: str) -> None:
    """End the session that lasts, where one does."""
    if record.opened is not None:
        *earlier, session = record.sessions
        ended = msgspec.structs.replace(session, ended_at=now, connections=record.opened, reason=str(reason))
        record.sessions = (*earlier, ended)
        record.opened = None


def revision_of(status: UserStatus) -> int:
    """Of what the user has set: 0 for nothing."""
    return 0 if status.own is None else status.own.revision


def show_or_hide(record: Record, choice: Choice) -> None:
    """Begin or end to tell others that a user is offline, by what the user has set."""
    hid, status = record.shown, record.status
    if choice.status is Chosen.INVISIBLE:
        if hid is None:
            record.shown = msgspec.structs.replace(
                status, status=OFFLINE, status_text=None, online_since=None, ttl_until=None, own=None
            )
    elif hid is not None:
        record.shown = None
        if not status.online:
            record.status = msgspec.structs.replace(
                status, active_at=hid.active_at, profile=hid.profile, meta_json=hid.meta_json
            )
