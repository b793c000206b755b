"""Who is online, as plain calls: what a gateway and a `PresenceClient` offer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.presence.model import DEFAULT_TENANT, UserStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.presence.view import View


class Reads:
    """Who is online, as plain calls: answered from this process's view, without I/O.

    Args:
        view: what they are answered from.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def status(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> UserStatus:
        """A user's presence; offline, at version 0, for a user never seen."""
        return self._view.status(tenant, user_id)

    def statuses(self, user_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT) -> list[UserStatus]:
        """Many users' presence, in the order asked."""
        return self._view.statuses(tenant, user_ids)

    def online_users(self, *, tenant: str = DEFAULT_TENANT) -> list[str]:
        """The ids of all who are online, in order."""
        return [status.user_id for status in self._view.online(tenant)]

    def online_count(self, *, tenant: str = DEFAULT_TENANT) -> int:
        """How many are online."""
        return self._view.online_count(tenant)
