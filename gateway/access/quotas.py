"""What one user, one address and one tenant may take, and how often they were told so.

A connection's own limits are in `connections`. Those that are off cost nothing but a look at whether they are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from gateway.access.addresses import Addresses
from gateway.access.limits import KeyedBuckets
from gateway.errors import InvalidPayloadError, RateLimitedError, TenantFullError, TooManyConnectionsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from gateway.access.auth import Identity
    from gateway.access.buckets import TokenBucket
    from gateway.access.limits import Rate
    from gateway.settings import Settings

LIMITS = (
    *("connections_per_user", "connections_per_address", "connections_per_tenant"),
    *("events_per_connection", "events_per_user", "events_per_address", "events_per_tenant"),
    *("watched_per_connection", "watched_per_user", "watched_per_address", "watched_per_tenant"),
    *("heartbeats_per_user", "statuses_per_user", "messages_per_user", "typing_per_user"),
    "message_bytes_per_user",
)
"""Every limit, as ``/metrics`` names it."""


_A = {"user": "a user", "address": "an address", "tenant": "a tenant"}


class Share(NamedTuple):
    """A bucket that several connections take from."""

    limit: str
    """One of `LIMITS`."""
    whose: str
    """As the client is told."""
    rate: Rate
    bucket: TokenBucket


class _Buckets(NamedTuple):
    limit: str
    whose: str
    rate: Rate
    buckets: KeyedBuckets[tuple[str, str]]


class Quotas:
    """This node's limits.

    Args:
        settings: what they are.
    """

    def __init__(self, settings: Settings) -> None:
        self.refused = dict.fromkeys(LIMITS, 0)
        """How often something was refused, by limit."""
        self.elsewhere: dict[str, int] = {}
        """Connections to other nodes by tenant, as far as this node knows; it is replaced as it hears."""
        self._per_user = settings.max_connections_per_user
        self._per_address = settings.max_connections_per_address
        self._per_tenant = settings.max_connections_per_tenant
        self._watched_per_connection = settings.max_watched_users
        watched_per = {
            "user": settings.max_watched_users_per_user,
            "address": settings.max_watched_users_per_address,
            "tenant": settings.max_watched_users_per_tenant,
        }
        self._watched_per = [(whose, allowed) for whose, allowed in watched_per.items() if allowed is not None]
        self._watched: dict[tuple[str, str, str], int] = {}
        """How many names are on the watch lists of connections that are counted together."""
        self._of_user = _buckets("user", settings.rate_limit_events_per_user)
        self._of_address = _buckets("address", settings.rate_limit_events_per_address)
        self._of_tenant = _buckets("tenant", settings.rate_limit_events_per_tenant)
        self._shared = any((self._of_user, self._of_address, self._of_tenant))
        self._message_rate = settings.rate_limit_messages
        self._messages: KeyedBuckets[tuple[str, str]] = KeyedBuckets(settings.rate_limit_messages)
        self._typing: KeyedBuckets[tuple[str, str]] = KeyedBuckets(settings.rate_limit_messages)
        self._from: dict[str, int] = {}
        by_address = (self._per_address, self._of_address, settings.max_watched_users_per_address)
        needed = any(each is not None for each in by_address)
        self._addresses = Addresses(settings.trusted_proxies) if needed else None

    def refuse(self, limit: str) -> None:
        """Count that something was refused."""
        self.refused[limit] += 1

    def address_of(self, request: web.BaseRequest) -> str | None:
        """The address that a request counts for; None where no limit asks for it, or it has none."""
        return None if self._addresses is None else self._addresses.of(request)

    # Connections

    def admit(self, identity: Identity, address: str | None, of_user: int, of_tenant: int) -> None:
        """Let a further connection in, or not.

        Args:
            identity: whose it is.
            address: from where; None where that does not count.
            of_user: the user's connections to this node.
            of_tenant: the tenant's.

        Raises:
            TooManyConnectionsError: the user has as many as allowed, or the address has.
            TenantFullError: the tenant has, here and elsewhere.
        """
        if self._per_user is not None and of_user >= self._per_user:
            self.refuse("connections_per_user")
            raise TooManyConnectionsError(f"a user may have {self._per_user} connections; close one first")
        self.admit_address(address)
        if self._per_tenant is not None and of_tenant + self.elsewhere.get(identity.tenant, 0) >= self._per_tenant:
            self.refuse("connections_per_tenant")
            raise TenantFullError(f"the tenant may have {self._per_tenant} connections, and has them; try again later")

    def admit_address(self, address: str | None) -> None:
        """Let a further connection of an address in, or not; None where that does not count.

        Raises:
            TooManyConnectionsError: it has as many as allowed.
        """
        if self._per_address is not None and address is not None and self._from.get(address, 0) >= self._per_address:
            self.refuse("connections_per_address")
            raise TooManyConnectionsError(f"an address may have {self._per_address} connections; close one first")

    def opened(self, address: str | None) -> None:
        """Count a connection for its address."""
        if address is not None:
            self._from[address] = self._from.get(address, 0) + 1

    def closed(self, address: str | None) -> None:
        """Count it no more."""
        if address is not None:
            self._from[address] -= 1
            if not self._from[address]:
                del self._from[address]

    # Events

    def shares(self, identity: Identity, address: str | None, now: float) -> tuple[Share, ...] | None:
        """What a connection's requests take from besides its own bucket; None for nothing.

        Args:
            identity: whose it is.
            address: from where; None where that does not count.
            now: Unix seconds.
        """
        if not self._shared:
            return None
        tenant = identity.tenant
        keys = (
            (self._of_user, (tenant, identity.user_id)),
            (self._of_address, None if address is None else ("", address)),
            (self._of_tenant, (tenant, "")),
        )
        return tuple(
            Share(kind.limit, kind.whose, kind.rate, kind.buckets.of(key, now))
            for kind, key in keys
            if kind is not None and key is not None
        )

    def take(self, shares: tuple[Share, ...], now: float) -> None:
        """Count one request at `now`, in Unix seconds.

        Raises:
            RateLimitedError: one of the rates is used up.
        """
        for limit, whose, rate, bucket in shares:
            if wait := bucket.take(now):
                self.refuse(limit)
                raise RateLimitedError(f"more than {rate.count} requests in {rate.seconds:g} s of this {whose}", wait)

    def admit_request(self, request: web.BaseRequest, identity: Identity, now: float) -> None:
        """Count a request over HTTP, at `now` in Unix seconds.

        Raises:
            RateLimitedError: one of the rates is used up.
        """
        shares = self.shares(identity, self.address_of(request), now) if self._shared else None
        if shares is not None:
            self.take(shares, now)

    # Messages

    def admit_message(self, identity: Identity, now: float) -> None:
        """Count a message of a user, at `now` in Unix seconds.

        Raises:
            RateLimitedError: the user has sent as many as allowed.
        """
        if wait := self._messages.take((identity.tenant, identity.user_id), now):
            self.refuse("messages_per_user")
            rate = self._message_rate
            raise RateLimitedError(f"more than {rate.count} messages in {rate.seconds:g} s of this user", wait)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Count where a message is refused since as much of its sender's is kept as may be."""
        try:
            yield
        except RateLimitedError:
            self.refuse("message_bytes_per_user")
            raise

    def admit_typing(self, identity: Identity, now: float) -> None:
        """The same of what says that a user types."""
        if wait := self._typing.take((identity.tenant, identity.user_id), now):
            self.refuse("typing_per_user")
            rate = self._message_rate
            raise RateLimitedError(f"typing more than {rate.count} times in {rate.seconds:g} s", wait)

    # Watch lists

    def admit_watched(self, identity: Identity, address: str | None, watched: int, more: int) -> None:
        """Let a connection watch more users, or not.

        Args:
            identity: whose it is.
            address: from where; None where that does not count.
            watched: how many it watches.
            more: how many more it asks for.

        Raises:
            InvalidPayloadError: that would be too many.
        """
        if watched + more > self._watched_per_connection:
            self.refuse("watched_per_connection")
            raise InvalidPayloadError(
                f"a connection may watch {self._watched_per_connection} users; this one watches {watched}, "
                f"and asks for {more} more: unwatch-users makes room"
            )
        for whose, allowed, key in self._watchers(identity, address):
            of_all = self._watched.get(key, 0)
            if more and of_all + more > allowed:
                self.refuse(f"watched_per_{whose}")
                raise InvalidPayloadError(
                    f"{_A[whose]} may watch {allowed} users over all connections; these watch {of_all}, "
                    f"and this one asks for {more} more: unwatch-users makes room"
                )

    def count_watched(self, identity: Identity, address: str | None, change: int) -> None:
        """Count that a connection watches so many users more, or fewer where that is negative."""
        for _whose, _allowed, key in self._watchers(identity, address):
            count = self._watched.get(key, 0) + change
            if count:
                self._watched[key] = count
            else:
                self._watched.pop(key, None)

    def _watchers(self, identity: Identity, address: str | None) -> list[tuple[str, int, tuple[str, str, str]]]:
        """Together with whom a connection's watched users are counted, with how many they may be; nobody mostly."""
        keys = {
            "user": ("user", identity.tenant, identity.user_id),
            "address": None if address is None else ("address", "", address),
            "tenant": ("tenant", identity.tenant, ""),
        }
        return [(whose, allowed, key) for whose, allowed in self._watched_per if (key := keys[whose]) is not None]


def _buckets(whose: str, rate: Rate | None) -> _Buckets | None:
    return None if rate is None else _Buckets(f"events_per_{whose}", whose, rate, KeyedBuckets(rate))
