"""Makes users who become invisible, or visible again, so in their channels, too: one pass at a time for each user.

A pass commits a change in each channel, which every node hears of, and a user may ask for a hundred passes a second.
So after each pass there is a pause that grows with the number of channels; the next pass takes the state of then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import StoreUnavailableError
from gateway.presence.view import RESYNCHRONISED
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.membership import Membership
    from gateway.presence.model import Transition

RETRY = 0.25
"""Seconds to wait before trying again after the store failed."""

PAUSE = 0.001
"""Seconds for each channel, between the end of a pass and the next."""


class Hiding:
    """A listener of the presence log.

    Args:
        membership: who is in which channels by this node.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._again: set[tuple[str, str]] = set()
        """Users who may have changed since their pass began."""

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions of presence; see `Channels.publish`."""
        for transition in transitions:
            tenant, user_id = user = transition.tenant, transition.user_id
            if user in self._following:
                self._again.add(user)
            elif self._membership.has(*user) and (
                self._membership.has_turned(*user) or transition.reason == RESYNCHRONISED
            ):
                self._following[user] = asyncio.create_task(self._follow(tenant, user_id))

    async def close(self) -> None:
        """Cancel what is still under way."""
        await end(list(self._following.values()))

    async def _follow(self, tenant: str, user_id: str) -> None:
        user = tenant, user_id
        self._again.add(user)
        try:
            while user in self._again:
                self._again.discard(user)
                try:
                    channels = await self._membership.follow_visibility(tenant, user_id)
                except StoreUnavailableError:
                    self._again.add(user)
                    await asyncio.sleep(RETRY)
                else:
                    await asyncio.sleep(PAUSE * channels)
        finally:
            self._again.discard(user)
            del self._following[user]
