"""Which tokens are revoked: this node's copy, against which every connection and request is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.errors import InvalidPayloadError
from gateway.presence.reads import check_ids
from gateway.redis.keys import SEPARATOR
from gateway.wire import LAST_TIME, UNPRINTABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

MOST = 100_000
"""Revocations that are kept at the most, which take some 30 MB on each node. Further ones are refused. One that names a
user takes one place for all of the user's tokens."""

TTL = 2_592_000.0
"""Seconds that a revocation is kept if the caller does not say when the tokens expire: 30 days."""

MAX_JTI = 512
"""Characters of a token's id at the most. A token with a longer id counts as one without."""

AHEAD = 60_000
"""Milliseconds that ``issuedBefore`` may lie in the future, for callers whose clock is ahead."""


class Revocation(msgspec.Struct, frozen=True):
    """Which tokens are taken back: one by its id, or all of a user or a tenant that were issued before some time."""

    tenant: str
    until: int
    """Unix milliseconds from when on it is forgotten: the tokens have expired by then."""
    user_id: str | None = None
    """None for a token by its id, and for all users."""
    jti: str | None = None
    before: int = 0
    """Unix milliseconds; 0 for a token by its id."""

    @property
    def name(self) -> str:
        """What it is kept under: a later one of the same name is joined with it."""
        if self.jti is not None:
            return SEPARATOR.join(("token", self.tenant, self.jti))
        return SEPARATOR.join(("tenant", self.tenant) if self.user_id is None else ("user", self.tenant, self.user_id))

    @classmethod
    def named(cls, name: str, before: int, until: int) -> Revocation:
        """The one of a name.

        Raises:
            ValueError: it is none.
        """
        kind, tenant, *rest = name.split(SEPARATOR, 2)
        match kind, rest:
            case "token", [jti]:
                return cls(tenant, until, jti=jti)
            case "user", [user_id]:
                return cls(tenant, until, user_id, before=before)
            case "tenant", []:
                return cls(tenant, until, before=before)
        raise ValueError(f"no revocation has the name {name!r}")

    @classmethod
    def of(
        cls,
        *,
        tenant: str,
        now: int,
        ttl: float,
        jti: str | None = None,
        user_id: str | None = None,
        all_users: bool = False,
        issued_before: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> Revocation:
        """Check what a caller says.

        Args:
            tenant: whose tokens.
            now: Unix milliseconds.
            ttl: seconds that it is kept for where `expires_at` is None.
            jti: the one token of this id.
            user_id: all tokens of this user.
            all_users: all tokens of the tenant.
            issued_before: of these, those that were issued before then; None for now.
            expires_at: when the last of them expires.

        Raises:
            InvalidPayloadError: it names none, or several, or a time is not acceptable.
        """
        if sum((jti is not None, user_id is not None, all_users)) != 1:
            raise InvalidPayloadError("name the tokens to revoke by one of jti, userId, and allUsers: true")
        check_ids(tenant, *(() if user_id is None else (user_id,)))
        if jti is not None and (not is_jti(jti) or issued_before is not None):
            raise InvalidPayloadError(
                f"a jti has 1 to {MAX_JTI} characters without control characters; issuedBefore goes with userId only"
            )
        before = 0 if jti is not None else now if issued_before is None else _milliseconds(issued_before)
        if before > now + AHEAD:
            raise InvalidPayloadError("issuedBefore lies ahead: it would refuse tokens that are still to be issued")
        until = round(now + ttl * 1000) if expires_at is None else _milliseconds(expires_at)
        if until <= now:
            raise InvalidPayloadError("expiresAt has passed: these tokens are refused already")
        return cls(tenant, min(until, LAST_TIME), user_id, jti, before)

    def joined_with(self, other: Revocation) -> Revocation:
        """Combine two revocations of the same name: it covers what either does, for as long as either does."""
        return msgspec.structs.replace(self, before=max(self.before, other.before), until=max(self.until, other.until))

    def covers(self, issued_at: int | None) -> bool:
        """Whether a token of its id, user or tenant is revoked by it. One that does not say when it was issued is."""
        return self.jti is not None or issued_at is None or issued_at < self.before


def is_jti(value: object) -> bool:
    """Whether a token can be revoked by this id."""
    return isinstance(value, str) and 0 < len(value) <= MAX_JTI and UNPRINTABLE.search(value) is None


def _milliseconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise InvalidPayloadError("a time must say its zone, as 2026-01-31T12:00:00Z does")
    return max(0, int(time.timestamp() * 1000))  # no token is older than 1970, and the Lua script takes digits only


class Bearer(Protocol):
    """Somebody who was let in by a token, and what the token says."""

    @property
    def tenant(self) -> str:
        """The user's tenant."""

    @property
    def user_id(self) -> str:
        """The user."""

    @property
    def jti(self) -> str | None:
        """The token's id; None if it has none."""

    @property
    def issued_at(self) -> int | None:
        """When the token was issued, in Unix milliseconds; None if it does not say."""


class Revocations:
    """All revocations that this process knows of."""

    def __init__(self) -> None:
        self._by_name: dict[str, Revocation] = {}
        self._tokens: dict[tuple[str, str], Revocation] = {}
        self._users: dict[tuple[str, str], Revocation] = {}
        self._tenants: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(tuple(self._by_name.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def cover(self, bearer: Bearer) -> bool:
        """Whether a token is revoked. It takes three look-ups, or one if nothing is revoked."""
        if not self._by_name:
            return False
        tenant, issued_at = bearer.tenant, bearer.issued_at
        if bearer.jti is not None and (tenant, bearer.jti) in self._tokens:
            return True
        of_user = self._users.get((tenant, bearer.user_id))
        if of_user is not None and of_user.covers(issued_at):
            return True
        of_all = self._tenants.get(tenant)
        return of_all is not None and of_all.covers(issued_at)

    def add(self, revocation: Revocation) -> bool:
        """Add a revocation; return whether it revokes more than was known."""
        known = self._by_name.get(revocation.name)
        joined = revocation if known is None else known.joined_with(revocation)
        if joined == known:
            return False
        self._by_name[joined.name] = joined
        if joined.jti is not None:
            self._tokens[joined.tenant, joined.jti] = joined
        elif joined.user_id is not None:
            self._users[joined.tenant, joined.user_id] = joined
        else:
            self._tenants[joined.tenant] = joined
        return True

    def forget(self, now: int) -> None:
        """Remove the revocations whose tokens have all expired."""
        for revocation in [each for each in self._by_name.values() if each.until <= now]:
            self.remove(revocation)

    def remove(self, revocation: Revocation) -> None:
        """Remove a revocation; one that is not known is ignored."""
        if self._by_name.pop(revocation.name, None) is None:
            return
        if revocation.jti is not None:
            del self._tokens[revocation.tenant, revocation.jti]
        elif revocation.user_id is not None:
            del self._users[revocation.tenant, revocation.user_id]
        else:
            del self._tenants[revocation.tenant]


class Register(Protocol):
    """Where nodes share revocations, and where they survive a restart."""

    async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
        """Add revocations. One whose name is there already is combined with it; see `Revocation.joined_with`.

        Returns:
            Those that were refused, because as many are kept as may be.

        Raises:
            StoreUnavailableError: it is not known whether they were added; they can be put again.
        """

    async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
        """Read what is new since the last call, or everything at the first call.

        Returns:
            The news, and whether they go on from the last call. If not, the register may have lost something; the news
            are then everything that it has, and the caller puts back whatever else it knows.

        Raises:
            StoreUnavailableError: the register cannot be reached.
        """

    async def close(self) -> None:
        """Release all resources."""
