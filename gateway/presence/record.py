"""What the store in memory keeps of one user."""

from __future__ import annotations

import msgspec

from gateway.presence.model import OFFLINE, Choice, Chosen, Held, OnlineSession, Transition, UserStatus, published


class Record:
    """One user: their presence, what keeps them online, and when that will next change without a command."""

    __slots__ = ("due", "held", "opened", "recent", "sessions", "shown", "status")

    def __init__(self, status: UserStatus) -> None:
        self.status = status
        """The real presence, which the user is told."""
        self.shown: UserStatus | None = None
        """What others are told while the user is invisible; None if they are told the truth."""
        self.held = Held()
        self.due: int | None = None
        """When the user is queued to be looked at by a sweep; None if they are not."""
        self.recent: tuple[Transition, ...] = ()
        """The last few, oldest first. A tuple, because an empty deque takes more memory than these few."""
        self.sessions: tuple[OnlineSession, ...] = ()
        """The last few, oldest first."""
        self.opened: int | None = None
        """How many connections were opened in the running session; None if none runs."""

    @property
    def published(self) -> UserStatus:
        """Both sides in one, as the log and snapshots carry them; see `model.published`."""
        return published(self.status, self.shown)


def end_session(record: Record, now: int, reason: str) -> None:
    """End the running session, if there is one."""
    if record.opened is not None:
        *earlier, session = record.sessions
        ended = msgspec.structs.replace(session, ended_at=now, connections=record.opened, reason=str(reason))
        record.sessions = (*earlier, ended)
        record.opened = None


def revision_of(status: UserStatus) -> int:
    """The revision of the private side; 0 for a user who has never set a status."""
    return 0 if status.own is None else status.own.revision


def show_or_hide(record: Record, choice: Choice) -> None:
    """Set or clear `Record.shown`, as the status that the user has set by hand requires."""
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
