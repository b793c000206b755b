"""Activity that changes nothing but `active_at`: the view shows it at once, and the store is told later, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.presence.view import View


class Touches:
    """Gathers when users of this node were active.

    Args:
        view: shows it meanwhile.
        within: milliseconds after their last activity within which a user cannot be away yet, so that more activity
            changes nothing else.
    """

    def __init__(self, view: View, within: int) -> None:
        self.gathered: dict[tuple[str, str], int] = {}
        """When users were active, by tenant and user id. The store has yet to be told."""
        self.since = 0
        """When the first of these was recorded."""
        self._view = view
        self._within = within

    def touch(self, tenant: str, user_id: str, now: int) -> int | None:
        """Record that a user is active, if that changes nothing else.

        Returns:
            When the user was last active, which is `now` or later. None, and nothing is recorded, if it may change
            more: the caller sends a `Beat`.
        """
        active_at = self._view.touch(tenant, user_id, now, self._within)
        if active_at == now:
            if not self.gathered:
                self.since = now
            self.gathered[tenant, user_id] = now
        return active_at

    def take(self) -> dict[tuple[str, str], int]:
        """Return what was gathered, and begin anew."""
        gathered = self.gathered
        self.gathered = {}
        return gathered
