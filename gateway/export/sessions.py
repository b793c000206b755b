"""Who was online from when to when, by what others were told. Pure: time comes in with what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.presence.model import OFFLINE, ONLINE, Event, Status, Transition, UserStatus, event_between
from gateway.presence.view import RESYNCHRONISED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Progress(msgspec.Struct, frozen=True):
    """How far an export has come."""

    position: int
    """The last entry of the log that is in the database, or was of no interest to it."""
    at: int
    """Up to when the database is complete, in Unix milliseconds."""
    revision: int = 0
    """Of the row that says so: it grows with each transaction."""


class SessionRow(msgspec.Struct, kw_only=True):
    """A row of ``presence_sessions``: a time in which a user was online. Times are Unix milliseconds."""

    tenant: str
    user_id: str
    began_at: int
    id: int | None = None
    """The database's; None for one that it has not yet."""
    began_by: str = ""
    """The reason of the change that began it; `RESYNCHRONISED` where that was missed."""
    ended_at: int | None = None
    """None while it goes on."""
    ended_by: str | None = None
    """Likewise; `RESYNCHRONISED` where the time is an estimate."""
    status: Status | None = None
    """The user's last one that the database has, where that is asked for."""
    status_text: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it was; None while it goes on."""
        return None if self.ended_at is None else (self.ended_at - self.began_at) / 1000


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One row of what was told of a user."""

    position: int
    at: int
    event: Event
    was: Status
    now: UserStatus
    reason: str

    @classmethod
    def of(cls, transition: Transition) -> Change | None:
        """What a transition told others; None where it told them nothing."""
        event = transition.event
        if event is None:
            return None
        return cls(
            position=transition.position,
            at=transition.at,
            event=event,
            was=transition.was,
            now=transition.now,
            reason=transition.reason,
        )


class Sessions:
    """Sessions that go on, and what changes make of them.

    Args:
        known: those that the database has as going on, of all users who change.
    """

    def __init__(self, known: Iterable[SessionRow]) -> None:
        self._open = {(session.tenant, session.user_id): session for session in known}
        self.begun: list[SessionRow] = []
        """Those that the database has not; some have ended as well."""
        self.ended: list[SessionRow] = []
        """Those that the database has as going on, and that have ended."""

    def follow(self, changes: Iterable[Change]) -> None:
        """Go on by what the log told."""
        for change in changes:
            self._take(change.now, change.at, change.reason)

    def resynchronise(self, statuses: Sequence[UserStatus], position: int, since: int, now: int) -> list[Change]:
        """Go on from a snapshot.

        A user who went meanwhile did so when they were last active, if that is known, and else as soon as they can
        have. Who came is online since when they came.

        Args:
            statuses: the snapshot's.
            position: of the snapshot.
            since: from when on changes may have been missed.
            now: the time.

        Returns:
            The net change of each user whose status is another.
        """
        changes = []
        unseen = dict(self._open)
        for status in statuses:
            known = unseen.pop((status.tenant, status.user_id), None)
            changes += self._differences(known, status, position, since, now)
        for known in unseen.values():  # of whom nobody knows anything any more
            gone = UserStatus(tenant=known.tenant, user_id=known.user_id)
            changes += self._differences(known, gone, position, since, now)
        return changes

    def _differences(
        self, known: SessionRow | None, status: UserStatus, position: int, since: int, now: int
    ) -> list[Change]:
        goes_on = known is not None and status.online_since == known.began_at
        if status.online:
            at = min(status.active_at or since, now) if goes_on else status.online_since or now
        else:
            at = min(max(status.active_at or since, since), now)
        came_back = known is not None and status.online and not goes_on
        self._take(status, min(since, at) if came_back else at, RESYNCHRONISED)
        was, text = OFFLINE, None
        if known is not None:
            if known.status is None and status.online:  # its rows were deleted, and there is nothing to compare
                return []
            was, text = known.status or ONLINE, known.status_text
        event = event_between(was, status.status, text, status.status_text)
        if event is None:
            return []
        return [Change(position=position, at=at, event=event, was=was, now=status, reason=RESYNCHRONISED)]

    def _take(self, status: UserStatus, at: int, reason: str) -> None:
        key = status.tenant, status.user_id
        session = self._open.get(key)
        since = at if status.online_since is None else status.online_since
        if session is not None and not (status.online and session.began_at == since):
            del self._open[key]
            # Who is online since another time has gone unseen in between.
            ended_at, ended_by = (min(at, since), RESYNCHRONISED) if status.online else (at, reason)
            session.ended_at, session.ended_by = max(ended_at, session.began_at), ended_by
            if session.id is not None:
                self.ended.append(session)
            session = None
        if status.online and session is None:
            session = SessionRow(tenant=status.tenant, user_id=status.user_id, began_at=since, began_by=reason)
            self._open[key] = session
            self.begun.append(session)
