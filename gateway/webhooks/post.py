"""One attempt to send a webhook: the HTTP request, and what the endpoint's answer means."""

from __future__ import annotations

import math
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import aiohttp
import msgspec

from gateway.version import __version__
from gateway.webhooks.endpoint import headers
from gateway.webhooks.pusher import body_of

if TYPE_CHECKING:
    from gateway.webhooks.endpoint import Endpoint
    from gateway.webhooks.event import Message

LONGEST_WAIT = 3600.0
"""Seconds that an endpoint may ask for by ``Retry-After``. If it asks for more, it is tried after these."""

_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Answer(msgspec.Struct, frozen=True):
    """The outcome of an attempt."""

    reason: str | None = None
    """Why it failed, for people to read; None if the endpoint has accepted the event."""
    retry_after: float | None = None
    """Seconds after which the endpoint asks to be tried again; None if it does not say."""
    busy: bool = False
    """Whether that goes for all events, as with 429 and 503."""
    gone: bool = False
    """Whether the endpoint wants no more events, which is what 410 means."""


TAKEN = Answer()


class Poster(Protocol):
    """Sends events to one endpoint."""

    async def __call__(self, message: Message, now: int, /) -> Answer:
        """Send an event once. It does not raise: what goes wrong is in the answer."""


class HTTPPoster:
    """Sends to one endpoint, over connections of its own.

    Args:
        endpoint: where.
        timeout: seconds that one attempt may take, from the connection to the status.
        connections: how many at the most.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float, connections: int) -> None:
        self._endpoint = endpoint
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", "User-Agent": f"presence-gateway/{__version__}"},
        )

    async def __call__(self, message: Message, now: int) -> Answer:
        """Send an event once; see `Poster`."""
        if self._endpoint.signer is None:
            body = bytes(message.body)
            signed = headers(self._endpoint, message.id, body, now // 1000)
        else:
            found = body_of(message, now)
            if found is None:  # of another tenant than the Pusher application: nothing to send
                return TAKEN
            body, signed = found, self._endpoint.signer.webhook_headers(found)
        if message.traceparent is not None:
            signed = signed | {"traceparent": message.traceparent}
            if message.tracestate is not None:
                signed["tracestate"] = message.tracestate
        try:
            # A redirect is not followed: the event is signed for this endpoint, and for nobody else to read.
            async with self._session.post(
                self._endpoint.url, data=body, headers=signed, allow_redirects=False
            ) as response:
                return answer_of(response.status, response.headers.get("Retry-After"), now)
        except TimeoutError:
            return Answer("it did not answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(f"it cannot be reached: {type(error).__name__}")  # not its text, which may contain the URL

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def answer_of(status: int, retry_after: str | None, now: int) -> Answer:
    """Interpret the status and the ``Retry-After`` of an endpoint's response.

    Args:
        status: of the response.
        retry_after: the header's value, seconds or a date; None if there is none.
        now: Unix milliseconds.
    """
    if 200 <= status < 300:  # noqa: PLR2004 - the class of statuses that means success
        return TAKEN
    reason = f"it answered {status}"
    if 300 <= status < 400:  # noqa: PLR2004
        reason += ", and redirects are not followed"
    wait = None if retry_after is None else _seconds(retry_after, now)
    return Answer(reason, wait, busy=wait is not None and status in _BUSY, gone=status == HTTPStatus.GONE)


def _seconds(text: str, now: int) -> float | None:
    """The seconds that a ``Retry-After`` asks for (RFC 9110, section 10.2.3); None if it has neither of its forms."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        wait = float(text[:10])
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        wait = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now / 1000
    return min(max(wait, 0.0), LONGEST_WAIT) if math.isfinite(wait) else None
