"""Who is online, as plain calls, and what only the store knows: what a gateway and a `PresenceClient` offer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway import wire
from gateway.errors import InvalidPayloadError
from gateway.presence.model import DEFAULT_TENANT, Chosen, UserStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.presence.clock import Clock
    from gateway.presence.model import Choice, Connection, OnlineSession
    from gateway.presence.store import Store
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


class StoreReads(Reads):
    """`Reads`, and what the store alone knows, which is awaited.

    Args:
        view: what the plain calls are answered from.
        store: what is asked for the rest.
        clock: the time, in Unix milliseconds.
    """

    def __init__(self, view: View, store: Store, clock: Clock) -> None:
        super().__init__(view)
        self._store = store
        self._clock = clock

    async def sessions(self, user_id: str, *, limit: int = 20, tenant: str = DEFAULT_TENANT) -> list[OnlineSession]:
        """The last times that a user was online, newest first; the first may last, and is without an end then.

        It is the truth, also of a user who is or was invisible: show it to nobody but the user.

        Args:
            user_id: whose.
            limit: at most so many; ``SESSION_HISTORY`` says how many there are.
            tenant: whose user.

        Raises:
            InvalidPayloadError: an argument is not acceptable.
            StoreUnavailableError: the store is away.
        """
        check_ids(tenant, user_id)
        if limit < 1:
            raise InvalidPayloadError("limit takes a number of sessions, 1 at least")
        return list(await self._store.sessions(tenant, user_id, self._clock(), limit))

    async def connections(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> list[Connection]:
        """A user's live connections on all nodes: what each is, since when, by which door. It is the truth, too.

        Raises:
            InvalidPayloadError: an id is none.
            StoreUnavailableError: the store is away.
        """
        check_ids(tenant, user_id)
        return list((await self._store.explain(tenant, user_id)).connections)


def check_ids(*ids: object) -> None:
    """Check ids of tenants and users.

    Raises:
        InvalidPayloadError: one is none.
    """
    if not all(map(wire.is_id, ids)):
        raise InvalidPayloadError("an id has 1 to 128 characters without control characters")


def to_choice(status: str, text: str | None, expires_in: float | None, now: int) -> Choice:
    """Turn the arguments of ``set_status`` into what they set at `now`, by the rules of ``set-status``.

    Raises:
        InvalidPayloadError: one is not acceptable; the message says which.
    """
    if status not in (choices := [str(choice) for choice in Chosen]):
        raise InvalidPayloadError(f"status takes {', '.join(choices)}; not {status!r:.100}")
    said = {"status": status, "statusText": text, "expiresIn": expires_in}
    try:
        return msgspec.convert(said, wire.SetStatus).choice(now)
    except msgspec.ValidationError as error:
        raise InvalidPayloadError(str(error)) from None
