"""This node's picture of everyone, built from the log: what every read is answered from, without I/O."""

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
"""The reason of a transition that a snapshot brought: the net change between what was known and what is."""

_NOBODY: Final[dict[str, UserStatus]] = {}
_OFFLINE: Final = OFFLINE
_replace: Final = msgspec.structs.replace


class View:
    """Every user's status, as of `position` of the log.

    The follower writes it. Applying an entry twice, or one older than what is known, changes nothing.
    """

    def __init__(self) -> None:
        self.position = 0
        self._statuses: dict[str, dict[str, UserStatus]] = {}
        """By tenant and user id."""
        # Sorted, so that a page of the list is found without sorting everyone.
        self._online: dict[str, SortedSet[str]] = {}
        """Ids, by tenant: of each that anybody is known of who was ever online."""
        self._own: dict[tuple[str, str], Own] = {}
        """What others are not told, by tenant and user id: apart, so that no read can tell it."""
        self.hidden: dict[tuple[str, str], UserStatus] = {}
        """What those who are invisible are told of themselves, by tenant and user id."""
        self.revealed: set[tuple[str, str]] = set()
        """Who was invisible before what was taken in last, and is not any more."""
        self.on_private: Callable[[str, str], object] | None = None
        """Called with a tenant and a user who is invisible and online, when what only they are told has changed."""

    # Written by the follower, and by the tracker what the log is about to say

    def load(self, snapshot: Snapshot) -> list[Transition]:
        """Go on from a snapshot.

        Whoever is known here by a version that the snapshot has not, is left as known: a store that lost it gets
        it back, from `ahead_of`.

        Returns:
            The net changes between what was known and the snapshot: one transition for each user whose version
            grew unseen.
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
        """The statuses known here that the snapshot contradicts, or knows only older versions of, in whole."""
        theirs = {(status.tenant, status.user_id): status for status in snapshot.statuses}
        ahead = []
        for known in (status for users in self._statuses.values() for status in users.values()):
            key = (known.tenant, known.user_id)
            status, own = theirs.get(key), self._own.get(key)
            if (
                status is None
                or status.version < known.version
                or (
                    status.version == known.version
                    and (status.status is not known.status or (own is not None and own.revision > _revision(status)))
                )
            ):
                ahead.append(known if own is None else _replace(known, own=own))
        return ahead

    def apply(self, entries: Iterable[Entry]) -> list[Transition]:
        """Follow the log.

        Returns:
            The transitions among the entries that were news, each from what was known here.
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
        """Show activity of a user that the log will tell of soon.

        Returns:
            When the user was last active, which is now or later; None for one who is offline to others, or has not
            been active within so many milliseconds: then nothing is shown.
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
        """Take in what only its user is told, and say where that is another status."""
        key = (status.tenant, status.user_id)
        was = self.hidden.get(key)
        self._take(status)
        now = self.hidden.get(key)
        if was is None or now is None or not was.online or not now.online or self.on_private is None:
            return
        if was.status is not now.status or was.status_text != now.status_text:
            self.on_private(status.tenant, status.user_id)

    def _take(self, status: UserStatus) -> UserStatus:
        """Take a status in as the log has it, and return what others are told of it."""
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
        """Know nothing of a user but what is left."""
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
        """Return a user's status as only that user is to be told it, with what they set by hand."""
        key = (tenant, user_id)
        status, own = self.status(tenant, user_id), self._own.get(key)
        if own is None:
            return status
        hidden = self.hidden.get(key)
        # Of those who are away, nobody commits that their time is over.
        if own.choice.holds_at(now) or (hidden is not None and hidden.online):
            return _replace(status, own=own) if hidden is None else hidden
        return status

    def has_set(self, tenant: str, user_id: str) -> bool:
        """Whether a user has ever set a status by hand, as far as is known."""
        return (tenant, user_id) in self._own

    def statuses(self, tenant: str, user_ids: Sequence[str]) -> list[UserStatus]:
        """Return the statuses of many users, in the order asked."""
        known = self._statuses.get(tenant, _NOBODY)
        return [known.get(user_id) or UserStatus(tenant=tenant, user_id=user_id) for user_id in user_ids]

    def online_count(self, tenant: str) -> int:
        """How many users of the tenant are online."""
        return len(self._online.get(tenant, ()))

    def online_counts(self) -> dict[str, int]:
        """The same of each tenant that has anybody."""
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
    """A transition as others are told of it, from what was known here: a store may have lost what had been told."""
    now = entry.now if entry.now.own is None else _replace(entry.now, own=None)
    if now is entry.now and entry.was is known.status and entry.was_text == known.status_text:
        return entry
    return _replace(entry, now=now, was=known.status, was_text=known.status_text)


def _not_before(status: UserStatus, active_at: int | None) -> UserStatus:
    """The status, active no earlier than is known already."""
    if active_at is None or (status.active_at is not None and status.active_at >= active_at):
        return status
    return msgspec.structs.replace(status, active_at=active_at)
