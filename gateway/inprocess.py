"""``gateway.presence``: what code in the same process asks and says, section 8 of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidPayloadError
from gateway.presence.model import DEFAULT_TENANT, Beat, UserStatus
from gateway.reads import Reads
from gateway.requests import encode_meta
from gateway.wire import is_id

if TYPE_CHECKING:
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View


class Presence(Reads):
    """`Reads`, and commands, which are awaited.

    Args:
        tracker: where commands go.
        view: what reads are answered from.
    """

    def __init__(self, tracker: Tracker, view: View) -> None:
        super().__init__(view)
        self._tracker = tracker

    async def heartbeat(
        self, user_id: str, *, meta: dict[str, Any] | None = None, tenant: str = DEFAULT_TENANT
    ) -> UserStatus:
        """Say that a user is there: active now, and online for ``PRESENCE_TTL`` from now.

        Args:
            user_id: who.
            meta: what the user's page or device says of itself, at most 2 KiB as JSON; None leaves it as it was.
            tenant: whose user.

        Returns:
            The user's presence with the heartbeat in it.

        Raises:
            InvalidPayloadError: the id or the meta is not acceptable.
        """
        _check_ids(tenant, user_id)
        meta_json = encode_meta(meta)
        now = self._tracker.now()
        await self._tracker.beat(Beat(tenant=tenant, user_id=user_id, at=now, holds=True, meta_json=meta_json))
        return self.status(user_id, tenant=tenant)

    async def set_online(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> UserStatus:
        """Say that a user logged in: as `heartbeat`."""
        return await self.heartbeat(user_id, tenant=tenant)

    async def set_offline(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> UserStatus:
        """Say that a user logged out. Live connections go on counting; `Gateway.disconnect` closes them.

        Raises:
            InvalidPayloadError: the id is not acceptable.
        """
        _check_ids(tenant, user_id)
        await self._tracker.release(tenant, user_id)
        return self.status(user_id, tenant=tenant)


def _check_ids(*ids: str) -> None:
    if not all(is_id(value) for value in ids):
        raise InvalidPayloadError("an id has 1 to 128 characters without control characters")
