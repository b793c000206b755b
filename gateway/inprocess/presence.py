"""``gateway.presence``: what code in the same process asks and says, section 8 of the contract."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gateway.connections.requests import encode_meta
from gateway.presence.model import DEFAULT_TENANT, Beat, Connection, UserStatus
from gateway.presence.reads import StoreReads, check_ids, to_choice

if TYPE_CHECKING:
    from gateway.connections.privacy import Privacy
    from gateway.nodes.cluster import Cluster
    from gateway.presence.store import Store
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View


RELEASED: ContextVar[set[tuple[str, str]] | None] = ContextVar("RELEASED", default=None)
"""Who was said to be offline in the request that is being answered, by tenant and user id; None where none is."""


def note_release(tenant: str, user_id: str) -> None:
    """Take note that a user was said to be offline."""
    if (released := RELEASED.get()) is not None:
        released.add((tenant, user_id))


class Presence(StoreReads):
    """`StoreReads`, and commands, which are awaited.

    Args:
        tracker: where commands go.
        view: what reads are answered from.
        store: what the others are answered from.
        cluster: what knows of connections what no store does.
        privacy: what hears that a rule has changed.
    """

    def __init__(self, tracker: Tracker, view: View, store: Store, cluster: Cluster, privacy: Privacy) -> None:
        super().__init__(view, store, tracker.now)
        self._tracker = tracker
        self._cluster = cluster
        self._privacy = privacy

    async def connections(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> list[Connection]:
        """A user's live connections; see `StoreReads.connections`. They have their `active_at`.

        It is None where the connection's node does not say it in time; others are asked by way of the store.
        """
        return await self._cluster.with_activity(await super().connections(user_id, tenant=tenant))

    def visibility_changed(self, user_id: str | None = None, *, tenant: str = DEFAULT_TENANT) -> None:
        """Say that a rule about who may see whom has changed: it is asked anew, on every node.

        Those who are connected and have looked at the user, or whom the user has looked at, are told the difference at
        once: ``user-online``, or ``user-offline`` as of one never seen.

        Args:
            user_id: whom others see otherwise, or who sees others otherwise; None for everyone, who then find out with
                what they next ask or hear.
            tenant: whose user.

        Raises:
            InvalidPayloadError: an id is not acceptable.
            RuntimeError: it is the rule itself that says so, while it is asked.
        """
        check_ids(tenant, *([] if user_id is None else [user_id]))
        self._privacy.visibility_changed(tenant, user_id)

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
        check_ids(tenant, user_id)
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
        check_ids(tenant, user_id)
        note_release(tenant, user_id)
        await self._tracker.release(tenant, user_id)
        return self.status(user_id, tenant=tenant)

    async def set_status(
        self,
        user_id: str,
        status: str,
        text: str | None = None,
        expires_in: float | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> UserStatus:
        """Set a user's status by hand, as the user may; also of one who is offline, for when they come back.

        Args:
            user_id: whose.
            status: ``online`` (back to what activity says), ``away``, ``busy``, ``dnd`` or ``invisible`` (offline to
                everyone else).
            text: what others read beside it, at most 128 characters; None for none.
            expires_in: seconds until it is as if nothing had been set, at most a year; None for until it is changed.
            tenant: whose user.

        Returns:
            The user's presence as only that user is to be told it.

        Raises:
            InvalidPayloadError: an argument is not acceptable.
            StoreUnavailableError: the store is away; nothing was set.
        """
        check_ids(tenant, user_id)
        now = self._tracker.now()
        await self._tracker.set_status(tenant, user_id, to_choice(status, text, expires_in, now))
        return self._view.own_status(tenant, user_id, now)
