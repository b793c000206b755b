"""This node's copy of everyone's presence, built from the log. Every read is answered from it, without I/O."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from sortedcontainers import SortedSet

from gateway.presence.model import (
    OFFLINE,
    Activity,
    Entry,
    Forgotten,
    Own,
    PrivateChange,
    Transition,
    UserStatus,
    latest,
    parted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gateway.presence.store import Snapshot

RESYNCHRONISED = "resynchronised"
"""The reason of a transition that stands for all changes that were missed before a snapshot."""

_NOBODY: Final[dict[str, UserStatus]] = {}
_OFFLINE: Final = OFFLINE
_replace: Final = msgspec.structs.replace


class View:
    """Every user's status, as of `position` of the log.

    The follower writes it. Applying an entry twice, or one that is older than what is known, changes nothing.
    """

    def __init__(self) -> None:
        self.position = 0
        self._statuses: dict[str, dict[str, UserStatus]] = {}
        """By tenant and user id."""
        # Sorted, so that a page of the list is found without sorting everyone.
        self._online: dict[str, SortedSet[str]] = {}
        """The ids of the users who are online, by tenant. A tenant stays listed when its last user goes."""
        self._own: dict[tuple[str, str], Own] = {}
        """The private side of each user, by tenant and user id: apart, so that no ordinary read can leak it."""
        self.hidden: dict[tuple[str, str], UserStatus] = {}
        """The real presence of each invisible user, by tenant and user id."""
        self.revealed: set[tuple[str, str]] = set()
        """The users, by tenant and id, whom the last `load` or `apply` found invisible no more."""
        self.on_private: Callable[[str, str], object] | None = None
        """Called with a tenant and user id when the real status of a user who is invisible and online has changed."""

    # Written by the follower, and by the tracker what the log is about to say

    def load(self, snapshot: Snapshot) -> list[Transition]:
        """Take over a snapshot.

        A user who is known here at a later version than in the snapshot is left alone: the store has lost it, and
        gets it back by what `ahead_of` returns.

        Returns:
            One transition, with the net change, for each user whose version has grown.
        """
        missed = []
        self.revealed.clear()
        for status in snapshot.statuses:
            was = self.status(status.tenant, status.user_id)
            if status.version > was.version:
                missed.append(
                    Transition(
                        position=snapshot.position,
                        at=status.active_at or 0,
                        was=was.status,
                        was_text=was.status_text,
                        now=self._take(status),
                        reason=RESYNCHRONISED,
                    )
                )
            elif status.version == was.version and status.status is was.status:
                own = self._own.get((status.tenant, status.user_id))
                if own is None or own.revision <= _revision(status):
                    own = status.own
                self._take(_replace(status, own=own, active_at=latest(status.active_at, was.active_at)))
        self.position = snapshot.position
        return missed

    def ahead_of(self, snapshot: Snapshot) -> list[UserStatus]:
        """The statuses, private side included, that are newer here than in the snapshot, or that it contradicts."""
        theirs = {(status.tenant, status.user_id): status for status in snapshot.statuses}
        ahead = []
        for known in self.everyone():
            status, own = theirs.get((known.tenant, known.user_id)), known.own
            if (
                status is None
                or status.version < known.version
                or (
                    status.version == known.version
                    and (status.status is not known.status or (own is not None and own.revision > _revision(status)))
                )
            ):
                ahead.append(known)
        return ahead

    def apply(self, entries: Iterable[Entry]) -> list[Transition]:
        """Apply entries of the log, in order.

        Returns:
            The transitions among them that were new, as others may be told of them: without the private side, and
            with the status that was known here as the one before.
        """
        news = []
        self.revealed.clear()
        for entry in entries:
            known = self.status(entry.tenant, entry.user_id)
            if isinstance(entry, Activity):
                if entry.version == known.version and entry.position > self.position:
                    self._put(entry.applied_to(known))
            elif isinstance(entry, PrivateChange):
                if entry.now.version == known.version and entry.position > self.position:
                    self._take_private(_not_before(entry.now, known.active_at))
            elif isinstance(entry, Forgotten):
                if entry.version == known.version and entry.position > self.position:
                    self._forget(entry.now)
            elif entry.now.version > known.version and entry.position > self.position:
                self._take(_not_before(entry.now, known.active_at))
                news.append(_told(entry, known))
            self.position = max(self.position, entry.position)
        return news

    def touch(self, tenant: str, user_id: str, now: int, within: int) -> int | None:
        """Show that a user is active, before the log says so.

        Args:
            tenant: whose user.
            user_id: who.
            now: the time, in Unix milliseconds.
            within: milliseconds that may have passed since the user was last active.

        Returns:
            When the user was last active, which is `now` or later. None, and nothing is shown, if they are offline to
            others or were last active longer ago than `within`: their status may change by it.
        """
        users = self._statuses.get(tenant, _NOBODY)
        status = users.get(user_id)
        if status is None or status.status is _OFFLINE:
            return None
        active_at = status.active_at
        if active_at is None or now - active_at >= within:
            return None
        if now <= active_at:
            return active_at
        users[user_id] = _replace(status, active_at=now)
        return now

    def _take_private(self, status: UserStatus) -> None:
        """Store a change that only its user is told of, and call `on_private` if it changes their real status."""
        key = (status.tenant, status.user_id)
        was = self.hidden.get(key)
        self._take(status)
        now = self.hidden.get(key)
        if was is None or now is None or not was.online or not now.online or self.on_private is None:
            return
        if was.status is not now.status or was.status_text != now.status_text:
            self.on_private(status.tenant, status.user_id)

    def _take(self, status: UserStatus) -> UserStatus:
        """Store a status as the log carries it, and return what others are told of it."""
        key, own = (status.tenant, status.user_id), status.own
        if own is not None:
            self._own[key] = own
            if own.hidden is None:
                self._reveal(key)
            else:
                self.hidden[key] = parted(status)[0]
            status = _replace(status, own=None)
        elif key in self._own:
            del self._own[key]
            self._reveal(key)
        self._put(status)
        return status

    def _reveal(self, key: tuple[str, str]) -> None:
        if self.hidden.pop(key, None) is not None:
            self.revealed.add(key)

    def _forget(self, left: UserStatus) -> None:
        """Forget a user, except for what is left of them: the statuses that they set by hand."""
        self._take(left)
        if left.own is None:
            users = self._statuses[left.tenant]
            del users[left.user_id]
            if not users:
                del self._statuses[left.tenant]
                self._online.pop(left.tenant, None)

    def _put(self, status: UserStatus) -> None:
        users = self._statuses.get(status.tenant)
        if users is None:
            users = self._statuses[status.tenant] = {}
        was = users.get(status.user_id)
        users[status.user_id] = status
        if status.online != (was is not None and was.online):
            online = self._online.get(status.tenant)
            if online is None:
                online = self._online[status.tenant] = SortedSet()
            if status.online:
                online.add(status.user_id)
            else:
                online.remove(status.user_id)

    # Read by everyone

    def status(self, tenant: str, user_id: str) -> UserStatus:
        """Return a user's status as others are told it; offline at version 0 for a user never seen."""
        known = self._statuses.get(tenant, _NOBODY).get(user_id)
        return UserStatus(tenant=tenant, user_id=user_id) if known is None else known

    def own_status(self, tenant: str, user_id: str, now: int) -> UserStatus:
        """Return a user's real status, with what they set by hand, which only that user may be told."""
        key = (tenant, user_id)
        status, own = self.status(tenant, user_id), self._own.get(key)
        if own is None:
            return status
        hidden = self.hidden.get(key)
        # While a user is offline, nobody commits that what they set has run out.
        if own.choice.holds_at(now) or (hidden is not None and hidden.online):
            return _replace(status, own=own) if hidden is None else hidden
        return status

    def everyone(self) -> Iterator[UserStatus]:
        """Every status that is known, in whole: with what only its user is told."""
        for users in self._statuses.values():
            for status in users.values():
                own = self._own.get((status.tenant, status.user_id))
                yield status if own is None else _replace(status, own=own)

    def has_set(self, tenant: str, user_id: str) -> bool:
        """Whether a user has ever set a status by hand and has not been forgotten since."""
        return (tenant, user_id) in self._own

    def statuses(self, tenant: str, user_ids: Sequence[str]) -> list[UserStatus]:
        """Return the statuses of many users, in the order asked."""
        known = self._statuses.get(tenant, _NOBODY)
        return [known.get(user_id) or UserStatus(tenant=tenant, user_id=user_id) for user_id in user_ids]

    def online_count(self, tenant: str) -> int:
        """How many users of the tenant are online."""
        return len(self._online.get(tenant, ()))

    def online_counts(self) -> dict[str, int]:
        """How many users are online, by tenant; tenants without any are left out."""
        return {tenant: count for tenant, online in self._online.items() if (count := len(online))}

    def online(self, tenant: str, *, after: str | None = None, limit: int | None = None) -> list[UserStatus]:
        """Return the tenant's users who are online, ordered by user id.

        Args:
            tenant: whose users.
            after: only ids greater than this one; None begins at the first.
            limit: at most so many; None for all.
        """
        online = self._online.get(tenant)
        if online is None:
            return []
        ids: Iterator[str] = online.irange(minimum=after, inclusive=(False, True))
        users = self._statuses[tenant]
        return [users[user_id] for user_id in islice(ids, limit)]


def _revision(status: UserStatus) -> int:
    return 0 if status.own is None else status.own.revision


def _told(entry: Transition, known: UserStatus) -> Transition:
    """A transition as others are told of it: without the private side, and from the status that was known here.

    That may differ from `Transition.was` if the store has lost what others have been told.
    """
    now = entry.now if entry.now.own is None else _replace(entry.now, own=None)
    if now is entry.now and entry.was is known.status and entry.was_text == known.status_text:
        return entry
    return _replace(entry, now=now, was=known.status, was_text=known.status_text)


def _not_before(status: UserStatus, active_at: int | None) -> UserStatus:
    """The status, with `active_at` if that is later than its own."""
    if active_at is None or (status.active_at is not None and status.active_at >= active_at):
        return status
    return msgspec.structs.replace(status, active_at=active_at)
