"""Activity that changes nothing but when it was: the view shows it at once, and the store is told of it later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.presence.view import View


class Touches:
    """What users of this node did, for the store to be told.

    Args:
        view: what shows it meanwhile.
        within: milliseconds since users were last active in which activity changes nothing else.
    """

    def __init__(self, view: View, within: int) -> None:
        self.gathered: dict[tuple[str, str], int] = {}
        """When users were active, by tenant and user id; the store has yet to be told."""
        self.since = 0
        """When the first of them was."""
        self._view = view
        self._within = within

    def touch(self, tenant: str, user_id: str, now: int) -> int | None:
        """Record activity of a user that changes nothing but when it was.

        Returns:
            When the user was last active, which is now or later; None where nothing was recorded, because activity
            may change more.
        """
        active_at = self._view.touch(tenant, user_id, now, self._within)
        if active_at == now:
            if not self.gathered:
                self.since = now
            self.gathered[tenant, user_id] = now
        return active_at

    def take(self) -> dict[tuple[str, str], int]:
        """Take all of it."""
        gathered = self.gathered
        self.gathered = {}
        return gathered
