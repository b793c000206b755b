"""This node's picture of everyone, built from the log: what every read is answered from, without I/O."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from sortedcontainers import SortedSet

from gateway.presence.model import Activity, Entry, Status, Transition, UserStatus, latest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.presence.store import Snapshot

RESYNCHRONISED = "resynchronised"
"""The reason of a transition that a snapshot brought: the net change between what was known and what is."""

_NOBODY: dict[str, UserStatus] = {}
_replace = msgspec.structs.replace


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
        """Ids, by tenant."""

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
        for status in snapshot.statuses:
            was = self.status(status.tenant, status.user_id)
            if status.version > was.version:
                self._put(status)
                missed.append(
                    Transition(
                        position=snapshot.position,
                        at=status.active_at or 0,
                        was=was.status,
                        now=status,
                        reason=RESYNCHRONISED,
                    )
                )
            elif status.version == was.version and status.status is was.status:
                self._put(msgspec.structs.replace(status, active_at=latest(status.active_at, was.active_at)))
        self.position = snapshot.position
        return missed

    def ahead_of(self, snapshot: Snapshot) -> list[UserStatus]:
        """The statuses known here that the snapshot contradicts, or knows only older versions of."""
        theirs = {(status.tenant, status.user_id): status for status in snapshot.statuses}
        ahead = []
        for known in (status for users in self._statuses.values() for status in users.values()):
            status = theirs.get((known.tenant, known.user_id))
            if (
                status is None
                or status.version < known.version
                or (status.version == known.version and status.status is not known.status)
            ):
                ahead.append(known)
        return ahead

    def apply(self, entries: Iterable[Entry]) -> list[Transition]:
        """Follow the log.

        Returns:
            The transitions among the entries that were news, each from what was known here.
        """
        news = []
        for entry in entries:
            known = self.status(entry.tenant, entry.user_id)
            if isinstance(entry, Activity):
                if entry.version == known.version and entry.position > self.position:
                    self._put(entry.applied_to(known))
            elif entry.now.version > known.version:
                self._put(_not_before(entry.now, known.active_at))
                # They differ where a store lost changes that had been told already.
                news.append(entry if entry.was is known.status else msgspec.structs.replace(entry, was=known.status))
            self.position = max(self.position, entry.position)
        return news

    def touch(self, tenant: str, user_id: str, now: int, within: int) -> int | None:
        """Show activity of a user that the log will tell of soon.

        Returns:
            When the user was last active, which is now or later; None for one who is not online, or has not been
            active within so many milliseconds: then nothing is shown.
        """
        users = self._statuses.get(tenant, _NOBODY)
        status = users.get(user_id)
        if status is None or status.status is not Status.ONLINE:
            return None
        active_at = status.active_at
        if active_at is None or now - active_at >= within:
            return None
        if now <= active_at:
            return active_at
        users[user_id] = _replace(status, active_at=now)
        return now

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
        """Return a user's status; offline at version 0 for a user never seen."""
        known = self._statuses.get(tenant, _NOBODY).get(user_id)
        return UserStatus(tenant=tenant, user_id=user_id) if known is None else known

    def statuses(self, tenant: str, user_ids: Sequence[str]) -> list[UserStatus]:
        """Return the statuses of many users, in the order asked."""
        known = self._statuses.get(tenant, _NOBODY)
        return [known.get(user_id) or UserStatus(tenant=tenant, user_id=user_id) for user_id in user_ids]

    def online_count(self, tenant: str) -> int:
        """How many users of the tenant are online."""
        return len(self._online.get(tenant, ()))

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


def _not_before(status: UserStatus, active_at: int | None) -> UserStatus:
    """The status, active no earlier than is known already."""
    if active_at is None or (status.active_at is not None and status.active_at >= active_at):
        return status
    return msgspec.structs.replace(status, active_at=active_at)
