"""Which web pages may talk to the gateway from a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

_log = structlog.get_logger(__name__)

TOLD = 100
"""Origins that were refused and are told of in the log, each once: a browser does not let its page read why."""

_SHOWN = 255
"""Characters of one."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address, without port, is this machine's own."""
    return host in _LOOPBACK


def is_ascii(request: web.BaseRequest) -> bool:
    """Whether the headers that a handshake computes with are what the libraries under it take for granted."""
    headers = request.headers
    return headers.get("Origin", "").isascii() and headers.get("Sec-WebSocket-Key", "").isascii()


class Origins:
    """The same origin, and the ones that are allowed besides.

    Args:
        allowed: origins such as ``https://app.example``; ``*`` allows any.
        dev: allow pages of this machine too: other ports on loopback, and files (whose origin is ``null``).
    """

    def __init__(self, allowed: Iterable[str], *, dev: bool) -> None:
        self._allowed = frozenset(allowed)
        self._dev = dev
        self._told: set[str] = set()

    def allows(self, origin: str | None, request: web.BaseRequest) -> bool:
        """Whether a request with this ``Origin`` header may be served; one without comes from no page."""
        allowed = "*" in self._allowed or (self._dev and origin == "null") or self.trusts(origin, request)
        if not allowed:
            self._tell((origin or "")[:_SHOWN])
        return allowed

    def _tell(self, origin: str) -> None:
        if origin not in self._told and len(self._told) < TOLD:
            self._told.add(origin)
            _log.warning(
                "a page of another origin was refused; CORS_ALLOWED_ORIGINS names those that may", origin=origin
            )

    def cookies(self, request: web.BaseRequest) -> Mapping[str, str]:
        """The cookies that a token may be taken from.

        None where the page is one of the any that ``*`` lets in: its request carries its visitor's cookies
        without their knowing. Such a page sends a token that it was given.
        """
        headers = request.headers
        if "Cookie" not in headers:
            return {}
        # A script or an image of another site's page is asked for without an Origin, and with the cookies.
        own = "Origin" in headers or headers.get("Sec-Fetch-Site", "none") in {"none", "same-origin"}
        return request.cookies if own and self.trusts(headers.get("Origin"), request) else {}

    def trusts(self, origin: str | None, request: web.BaseRequest) -> bool:
        """Whether a page is of the same origin, or of one that is allowed by name."""
        if origin is None or origin in self._allowed or origin in _own_origins(request):
            return True
        return self._dev and is_loopback(_host(origin))


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:  # such as an unfinished IPv6 address
        return None


def _own_origins(request: web.BaseRequest) -> set[str]:
    """The origins that the request's own address has: as seen here, or as a proxy in front says.

    Behind TLS that is https alone: anyone on the way to the visitor can make a page of ``http://`` and the same host.
    """
    headers = request.headers
    scheme = headers.get("X-Forwarded-Proto", request.scheme).split(",")[0].strip()
    forwarded = headers.get("X-Forwarded-Host", request.host).split(",")[0].strip()
    return {f"{scheme}://{request.host}", f"{scheme}://{forwarded}"}
