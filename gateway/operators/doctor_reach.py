"""What a doctor finds at the other addresses that a gateway asks: it connects, and sends nothing but for the keys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import jwt

from gateway.operators.findings import Finding, error, ok, warning
from gateway.operators.tables import inert

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import Settings

TIMEOUT = 3.0
"""Seconds that each may take."""

_PORTS = {"http": 80, "https": 443, "postgresql": 5432}


async def examine_reach(settings: Settings) -> list[Finding]:
    """Look whether what the gateway is to ask, and to tell, is there."""
    connecting = (_connect(name, url) for name, url in _addresses(settings))
    keys = [] if settings.jwt_jwks_url is None else [_fetch_keys(settings.jwt_jwks_url)]
    return list(await asyncio.gather(*keys, *connecting))


def _addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each with what names it in the settings. They may hold passwords."""
    if settings.channel_auth_url is not None:
        yield "CHANNEL_AUTH_URL", settings.channel_auth_url
    for endpoint in settings.webhook_endpoints():
        yield f"the webhook endpoint {endpoint.name}", endpoint.url
    url = settings.export_database_url
    if url is not None and not url.get_secret_value().startswith("sqlite"):
        yield "EXPORT_DATABASE_URL", url.get_secret_value()


async def _connect(name: str, url: str) -> Finding:
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or _PORTS.get(parts.scheme.partition("+")[0], 443)
    where = f"{inert(host)}:{port}"
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except OSError as problem:  # a time-out is one, too
        return warning(
            "reach",
            f"{inert(name)}: {where} takes no connection: {inert(str(problem) or 'no answer in time')}",
            "start it, or set the address right; a firewall may be between",
        )
    return ok("reach", f"{inert(name)}: {where} takes connections")


async def _fetch_keys(url: str) -> Finding:
    """Fetch the keys that tokens are verified with: without them nobody is let in."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT)) as session,
            session.get(url) as response,
        ):
            response.raise_for_status()
            keys = jwt.PyJWKSet.from_dict(await response.json(content_type=None)).keys
    except (aiohttp.ClientError, OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError) as problem:
        why = str(problem) or "no answer in time"
        if isinstance(problem, aiohttp.ClientResponseError):
            why = f"it answers {problem.status}"  # aiohttp would tell the whole address
        return error(
            "keys",
            f"JWT_JWKS_URL gives no keys: {inert(why)}; nobody would be let in",
            'set it to where your issuer publishes {"keys": […]}, and let this machine ask there',
        )
    return ok("keys", f"JWT_JWKS_URL gives {len(keys)} keys")
