"""A middleware for the application that a gateway is attached to: its requests count as activity of their users."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.access.auth import Authenticator, find_token
from gateway.access.limits import KeyedBuckets, Rate
from gateway.errors import RefusedError
from gateway.inprocess.presence import RELEASED
from gateway.presence.model import DEFAULT_TENANT, Beat, Profile
from gateway.wire import is_id

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine
    from typing import Any

    from aiohttp.typedefs import Handler, Middleware

    from gateway.access.origins import Origins
    from gateway.presence.tracker import Tracker

_log = structlog.get_logger(__name__)

User = str | tuple[str, str] | None
"""A user id, or user id and tenant if that is not the default one; None for a request of no user."""

UserOf = Callable[[web.Request], User]

WAITING = 1_000
"""Requests whose activity may wait for a key or for the store. Any more do not count as activity; later ones will."""


STREAM = 1.0
"""Seconds after which a request counts even if it has not been answered yet."""


class ActivityMiddleware:
    """Records each request as a heartbeat like ``POST /presence/heartbeat``. No request waits for that, or fails by it.

    Args:
        tracker: records activity.
        authenticator: verifies tokens.
        origins: decides whether a page's cookies may be tokens.
        ours: the gateway's own routes, which record activity by themselves.
        user_of: returns the user who makes a request; None to look for a token.
        every: seconds in which a user is recorded only once.
    """

    def __init__(
        self,
        tracker: Tracker,
        authenticator: Authenticator,
        origins: Origins,
        ours: Collection[web.AbstractResource],
        *,
        user_of: UserOf | None,
        every: float,
    ) -> None:
        self._tracker = tracker
        self._authenticator = authenticator
        self._origins = origins
        self._ours = ours
        self._user_of = user_of
        rate = Rate(1, every)
        self._tokens: KeyedBuckets[bytes] = KeyedBuckets(rate)
        self._users: KeyedBuckets[tuple[str, str]] = KeyedBuckets(rate)
        self._recording: set[asyncio.Task[None]] = set()

    def middleware(self) -> Middleware:
        """The middleware itself, for an application's list."""

        @web.middleware
        async def activity(request: web.Request, handler: Handler) -> web.StreamResponse:
            match = request.match_info
            if match.http_exception is not None or match.route.resource in self._ours:
                return await handler(request)
            gone: set[tuple[str, str]] = set()
            before = RELEASED.set(gone)
            # Recorded after the answer, so that a logout is not undone; but at once for an answer that takes long.
            timer = asyncio.get_running_loop().call_later(STREAM, self._note, request, gone)
            try:
                return await handler(request)
            finally:
                RELEASED.reset(before)
                if asyncio.get_running_loop().time() < timer.when():
                    timer.cancel()
                    self._note(request, gone)

        return activity

    def _note(self, request: web.Request, gone: Collection[tuple[str, str]]) -> None:
        """Record a request, unless its handler has set the user offline; then the next request counts again."""
        for user in gone:
            self._users.forget(user)
        try:
            self._find_user(request, gone)
        except Exception:
            _log.exception("a request could not be counted as activity", request=f"{request.method} {request.path}")

    def _find_user(self, request: web.Request, gone: Collection[tuple[str, str]]) -> None:
        if self._user_of is not None:
            user = self._user_of(request)
            if user is not None:
                user_id, tenant = (user, DEFAULT_TENANT) if isinstance(user, str) else user
                if not (is_id(user_id) and is_id(tenant)):
                    raise ValueError("user_of returns a user id, (user id, tenant), or None")
                self._record(tenant, user_id, None, gone)
            return
        token = find_token(request.headers, request.query, self._origins.cookies(request))
        if token is not None and self._is_due(token):
            self._soon(self._identify(token, gone))

    def _is_due(self, token: str) -> bool:
        # A token that was here a moment ago is not verified again.
        key = hashlib.blake2b(token.encode(errors="surrogatepass"), digest_size=16).digest()
        return not self._tokens.take(key, asyncio.get_running_loop().time())

    async def _identify(self, token: str, gone: Collection[tuple[str, str]]) -> None:
        try:
            identity = await self._authenticator.identify(token)
        except RefusedError:
            return  # the application's to say, if it asked for one
        self._record(identity.tenant, identity.user_id, identity.profile, gone)

    def _record(self, tenant: str, user_id: str, profile: Profile | None, gone: Collection[tuple[str, str]]) -> None:
        if (tenant, user_id) not in gone and not self._users.take((tenant, user_id), asyncio.get_running_loop().time()):
            beat = Beat(tenant=tenant, user_id=user_id, at=self._tracker.now(), holds=True, profile=profile)
            self._soon(self._beat(beat))

    async def _beat(self, beat: Beat) -> None:
        await self._tracker.beat(beat)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._recording) >= WAITING:
            work.close()
            return
        task = asyncio.create_task(self._guard(work))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            _log.exception("activity could not be recorded")
