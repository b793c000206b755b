"""Which address a client comes from, also behind proxies."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address

    from aiohttp import web

    Address = IPv4Address | IPv6Address

UNIX = "unix"
"""Among the trusted proxies: whoever connects by a local socket."""

HOPS = 32
"""Proxies that are looked past at the most."""

_PREFIX = 64
"""Bits of an IPv6 address that are one customer's: RFC 6177. Whoever has one has all that begin so."""

_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::\d+)?|(?P<v4>[^:]*):\d+")


class Addresses:
    """Finds the address of a client, which no client can choose.

    A proxy adds to ``X-Forwarded-For`` whom it was asked by. So the header is read from its right end, for as long as
    the one that wrote an entry is trusted: the first that is not trusted is the client, whatever stands left of it.

    Args:
        trusted: addresses and networks of proxies, as ``10.0.0.0/8``, and ``unix``.

    Raises:
        ValueError: one is none.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        trusted = tuple(trusted)
        self._networks = [ip_network(each, strict=False) for each in trusted if each != UNIX]
        self._unix = UNIX in trusted

    def of(self, request: web.BaseRequest) -> str | None:
        """The address that a request comes from, as limits count it: of IPv6 its first 64 bits.

        Returns:
            None for a local socket whose end is not trusted, or says nothing.
        """
        found = _parse(request.remote or "")
        if self._trusts(found):
            for hop in _hops(request):
                if hop is None:  # the last that was understood is as near as one gets
                    break
                found = hop
                if not self._trusts(hop):
                    break
        return None if found is None else _key(found)

    def _trusts(self, address: Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks if network.version == address.version)


def _hops(request: web.BaseRequest) -> Iterator[Address | None]:
    entries = ",".join(request.headers.getall("X-Forwarded-For", ())).rsplit(",", HOPS)
    if len(entries) > HOPS:
        del entries[0]
    return map(_parse, reversed(entries))


def _parse(text: str) -> Address | None:
    """Read an address, with a port or without; None for what is none."""
    text = text.strip()
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match["v6"] or match["v4"] or ""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _key(address: Address) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), _PREFIX), strict=False))
    return str(address)
