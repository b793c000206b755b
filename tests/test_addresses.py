"""Where a client comes from: what a trusted proxy says, and nothing that a client can write."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.access.addresses import HOPS, Addresses


class _Transport:
    def __init__(self, peer: str | None) -> None:
        self._peer = peer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name != "peername":
            return default
        return "" if self._peer is None else (self._peer, 1234)


def found(peer: str | None, *forwarded: str, trusted: tuple[str, ...] = ()) -> str | None:
    headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
    transport: Any = _Transport(peer)
    return Addresses(trusted).of(make_mocked_request("GET", "/", headers=headers, transport=transport))


PROXIES = ("10.0.0.0/8", "fd00::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", (), "203.0.113.7"),
        ("203.0.113.7", ("198.51.100.1",), "203.0.113.7"),  # whoever is no proxy says nothing
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1",), "198.51.100.1"),  # the client wrote the first
        ("10.0.0.1", ("1.1.1.1", "198.51.100.1"), "198.51.100.1"),  # as two lines
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1, 10.1.1.1",), "198.51.100.1"),  # two proxies
        ("10.0.0.1", ("10.9.9.9, 198.51.100.1",), "198.51.100.1"),  # as if it were a proxy
        ("10.0.0.1", ("10.2.2.2, 10.1.1.1",), "10.2.2.2"),  # all are ours
        ("10.0.0.1", ("198.51.100.1, unknown, 10.1.1.1",), "10.1.1.1"),
        ("10.0.0.1", ("unknown",), "10.0.0.1"),
        ("10.0.0.1", ("",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1,",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8:1:2::3]:4711",), "2001:db8:1:2::/64"),
        ("10.0.0.1", ("[2001:db8:1:2::3]",), "2001:db8:1:2::/64"),
        ("10.0.0.1", ("2001:db8:1:2:ffff::",), "2001:db8:1:2::/64"),
        ("fd00::1", ("2001:db8:1:3::3",), "2001:db8:1:3::/64"),
        ("fd00::2", ("2001:db8:1:3::3",), "fd00::/64"),  # one address is trusted, and not its neighbours
        ("::ffff:10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:203.0.113.7", (), "203.0.113.7"),
        ("fe80::1%eth0", (), "fe80::/64"),
        (None, ("198.51.100.1",), None),
    ],
)
def test_the_first_from_the_right_that_is_no_proxy(
    peer: str | None, forwarded: tuple[str, ...], expected: str | None
) -> None:
    assert found(peer, *forwarded, trusted=PROXIES) == expected


def test_nobody_is_trusted_by_default() -> None:
    assert found("127.0.0.1", "198.51.100.1") == "127.0.0.1"


def test_a_local_socket_is_trusted_where_that_is_said() -> None:
    assert found(None, "1.1.1.1, 198.51.100.1", trusted=("unix",)) == "198.51.100.1"
    assert found(None, trusted=("unix",)) is None


def test_a_long_header_costs_no_more_than_a_few_looks() -> None:
    long = ", ".join(["198.51.100.1", *(f"10.0.{n}.1" for n in range(200))])
    assert found("10.0.0.1", long, trusted=PROXIES) == f"10.0.{200 - HOPS}.1"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        Addresses(["proxy.example"])
