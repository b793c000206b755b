"""An application's own authorizer, asked over HTTP as Laravel's front ends ask ``/broadcasting/auth``."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp
import msgspec
import structlog

from gateway.channels.authorization import person_named, unavailable
from gateway.channels.names import Kind, kind_of
from gateway.errors import ForbiddenError, InvalidPayloadError
from gateway.version import __version__
from gateway.wire import UNPRINTABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.channels.model import Asker, Person

_log = structlog.get_logger(__name__)

TIMEOUT = 5.0
"""Seconds that one answer may take, from the connection to its last byte."""

PATIENCE = 15.0
"""Seconds that a question waits for its turn at the most, besides."""

AT_ONCE = 20
"""Requests at the same time."""

EACH = 4
"""Of these for one connection, so that a client which asks for a thousand channels does not keep others waiting."""

MAX_ANSWER = 16_384
"""Bytes of an answer that are read; a longer answer is an error."""

FAILURES = 5
"""After how many failures in a row, to connect or to answer in time, the backend is not asked for a while."""

PAUSE = 5.0
"""Seconds for which it is not asked then. Clients get an error at once in that time."""

_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, 419})
"""The statuses that refuse. The last is Laravel's, for a CSRF token of another session."""

_PASSED_ON = frozenset({"authorization", "cookie", "x-csrf-token", "x-xsrf-token"})
"""The headers of a client that are passed on, since they show the application who asks."""

_SOCKET_ID = re.compile(r"[0-9]{1,20}\.[0-9]{1,20}")


class HTTPBackend:
    """Asks an application's backend, with a bounded number of requests, and pauses if it cannot be reached.

    Args:
        url: of its ``/broadcasting/auth``.
        timeout: seconds that one answer may take.
        patience: seconds that a question waits for its turn at the most, besides.
        pause: seconds for which the backend is not asked after `FAILURES` in a row.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, patience: float = PATIENCE, pause: float = PAUSE) -> None:
        self.asked = 0
        """Requests that were made."""
        self.failed = 0
        """Requests without an answer, or with one that could not be read."""
        self._url = url
        self._timeout = timeout
        self._patience = patience
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(AT_ONCE)
        self._turns: dict[str, tuple[asyncio.Semaphore, list[None]]] = {}
        """By connection, a semaphore and an entry for each task that holds it or waits for it; the last one deletes
        it."""
        self._failures = 0
        """How many requests in a row have failed to connect, or to be answered in time."""
        self._closed_until = 0.0
        """Until when, by the loop's clock, the backend is not asked."""
        self._failing = False
        """Whether the last request failed; the log says when that changes."""

    async def ask(self, asker: Asker, channel: str) -> Person | None:
        """Ask whether somebody may be in a channel; see `authorization.Backend`."""
        headers = {name: value for name, value in asker.headers.items() if name.lower() in _PASSED_ON}
        if any(UNPRINTABLE.search(value) for value in headers.values()):
            raise ForbiddenError("Authorization and Cookie take no control characters")
        form = {"channel_name": channel, "socket_id": socket_id_of(asker.connection_id)}
        headers["X-Socket-ID"] = asker.connection_id
        self._check_open()
        async with self._turn(asker.connection_id):
            self._check_open()  # again: other requests may have failed while this one waited for its turn
            status, body = await self._reach(form, headers)
        if status in _REFUSALS:
            self._note(None)
            raise ForbiddenError(f"{channel} is not for this user")
        if status != HTTPStatus.OK:
            self._fail(f"it answered {status}; 200 lets in, and 401, 403, 404 and 419 refuse")
        return self._read(body, channel)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _turn(self, connection_id: str) -> AsyncIterator[None]:
        own, takers = self._turns.setdefault(connection_id, (asyncio.Semaphore(EACH), []))
        takers.append(None)
        try:
            try:
                async with asyncio.timeout(self._patience):
                    await own.acquire()
                    try:
                        await self._places.acquire()
                    except BaseException:
                        own.release()
                        raise
            except TimeoutError:
                raise unavailable("too many ask at once; try again in a moment") from None
            try:
                yield
            finally:
                self._places.release()
                own.release()
        finally:
            takers.pop()
            if not takers:
                del self._turns[connection_id]

    async def _reach(self, form: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request, and return the status and body of the answer.

        Raises:
            UnavailableError: there is no answer.
        """
        try:
            try:
                answer = await self._post(form, headers)
            except aiohttp.ServerDisconnectedError:  # a kept-open connection that the backend was just closing
                answer = await self._post(form, headers)
        except TimeoutError:
            self._unreached(f"it did not answer within {self._timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._unreached(f"it cannot be reached: {type(error).__name__}")  # not its text, which may contain the URL
        self._failures = 0
        return answer

    async def _post(self, form: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=AT_ONCE),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                cookie_jar=aiohttp.DummyCookieJar(),  # one user's session is not another's
                auto_decompress=False,
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"presence-gateway/{__version__}",
                    "X-Requested-With": "XMLHttpRequest",
                },
            )
        self.asked += 1
        # A redirect is not followed: it leads to a login page, or would show the user's token to somebody else.
        async with self._session.post(self._url, data=form, headers=headers, allow_redirects=False) as response:
            body = b""
            while len(body) <= MAX_ANSWER and (chunk := await response.content.read(MAX_ANSWER)):
                body += chunk
            return response.status, body

    def _read(self, body: bytes, channel: str) -> Person | None:
        """Read the body of an answer with status 200: the member that it lets in. HTML, such as a login page, fails."""
        if len(body) > MAX_ANSWER:
            self._fail(f"its answer has more than {MAX_ANSWER} bytes")
        answer = self._decode(body) if body.strip() else True
        if answer is False:
            self._note(None)
            raise ForbiddenError(f"{channel} is not for this user")
        if not (answer is True or answer == [] or isinstance(answer, dict)):  # PHP writes an empty object as []
            self._fail("its answer is no JSON object")
        person = None
        if kind_of(channel) is Kind.PRESENCE:
            data = answer.get("channel_data") if isinstance(answer, dict) else None
            if isinstance(data, str):
                data = self._decode(data.encode(errors="replace"))
            if not isinstance(data, dict):
                self._fail("of a presence channel its answer has channel_data: {user_id, user_info}")
            try:
                person = person_named(data.get("user_id"), data.get("user_info"))
            except InvalidPayloadError as error:
                self._fail(str(error))
        self._note(None)
        return person

    def _decode(self, text: bytes) -> Any:
        try:
            return msgspec.json.decode(text)
        except (ValueError, RecursionError):
            self._fail("its answer is no JSON")

    # What became of it

    def _check_open(self) -> None:
        if asyncio.get_running_loop().time() < self._closed_until:
            raise unavailable("it did not answer lately; try again in a moment")

    def _unreached(self, reason: str) -> NoReturn:
        self._failures += 1
        if self._failures >= FAILURES:  # after the pause, each further failure begins another one
            self._closed_until = asyncio.get_running_loop().time() + self._pause
        self._fail(reason)

    def _fail(self, reason: str) -> NoReturn:
        self.failed += 1
        self._note(reason)
        raise unavailable("try again in a moment")

    def _note(self, reason: str | None) -> None:
        """Log when the backend begins to fail, and when it works again; `reason` is None for a success."""
        if (reason is not None) == self._failing:
            return
        self._failing = reason is not None
        if self._failing:
            _log.warning("CHANNEL_AUTH_URL lets nobody in; whoever asks is told to try again", reason=reason)
        else:
            _log.info("CHANNEL_AUTH_URL says again who may be in channels")


def socket_id_of(connection_id: str) -> str:
    """A connection's id in Pusher's form of two numbers, on which Pusher's server libraries insist.

    An id that has that form already is returned as it is. The gateway does not depend on the result: it does not check
    the signature in an answer.
    """
    if _SOCKET_ID.fullmatch(connection_id):
        return connection_id
    digest = blake2b(connection_id.encode(errors="surrogatepass"), digest_size=16).digest()
    return f"{int.from_bytes(digest[:4], 'big')}.{int.from_bytes(digest[4:8], 'big')}"
