"""The HTTP door: one table of operations.

The routes, the checks of callers and payloads, and ``/openapi.json`` are all made from this table.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web

from gateway import wire
from gateway.access.auth import Authenticator, Identity, find_token
from gateway.access.limits import KeyedBuckets
from gateway.connections.requests import encode_meta, page_of_online, validate
from gateway.doors.problems import problem
from gateway.errors import (
    CODES,
    ForbiddenError,
    InternalError,
    InvalidPayloadError,
    NotReadyError,
    RateLimitedError,
    RefusedError,
    RequestError,
    StoreUnavailableError,
    TokenInvalidError,
    UnavailableError,
    store_away,
)
from gateway.presence import inspection
from gateway.presence.model import DEFAULT_TENANT, Beat
from gateway.revocation.messages import Revoked, RevokeTokens
from gateway.revocation.revocations import Revocation
from gateway.wire import is_id

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from gateway.access.origins import Origins
    from gateway.connections.connections import Connections
    from gateway.nodes.cluster import Cluster
    from gateway.presence.model import UserStatus
    from gateway.presence.store import Store
    from gateway.presence.tracker import Tracker
    from gateway.presence.visibility import Sight
    from gateway.revocation.revoker import Revoker
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_MAX_SAFE_INTEGER = 2**53 - 1
"""The greatest integer that JavaScript's numbers hold exactly."""


_ASKED_HEADERS = "Authorization, Content-Type, X-API-Key, X-CSRF-TOKEN, X-Requested-With, X-Socket-ID"
"""The headers that pages of other origins may send. The last three are sent by Laravel's front ends."""

_READS = frozenset({"GET", "HEAD"})
"""The methods that change nothing."""

MAX_FIELDS = 20
"""Fields of a form at the most."""

CLOCK_TOLERANCE = 1000
"""Milliseconds that this machine's clock may differ from Redis's before an operator is told."""


class Caller(StrEnum):
    """Who may call an operation."""

    ANYONE = "anyone"
    USER = "a user's token"
    SERVICE = "a service key"
    USER_OR_SERVICE = "a user's token or a service key"
    APPLICATION = "the signature of the Pusher application's secret"


class Call(msgspec.Struct, frozen=True):
    """One request, checked."""

    tenant: str
    identity: Identity | None
    """The user who calls; None for a service."""
    path: dict[str, str]
    query: Any
    body: Any
    headers: Mapping[str, str] = {}
    """As they came, matched without case."""
    reads_only: bool = False
    """Whether it came with one of ``SERVICE_API_KEYS_READONLY``."""

    @property
    def viewer(self) -> str | None:
        """The user who reads the answer; None for a service, which may see everyone."""
        return None if self.identity is None else self.identity.user_id


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    method: str
    path: str
    summary: str
    caller: Caller
    handler: Callable[[Call], Awaitable[Any]]
    answers: Any
    """The type of the answer."""
    query: type[wire.Body] = wire.NoPayload
    body: type[wire.Body] | None = None
    form: bool = False
    """Whether the body may also be a form."""
    status: int = 200
    """The HTTP status of the answer."""
    deprecated: bool = False
    operation_id: str | None = None
    """Its ``operationId`` in ``/openapi.json``; None to derive it from the path."""

    @property
    def media(self) -> tuple[str, ...]:
        """The content types that the body may have."""
        return ("application/json", *(["application/x-www-form-urlencoded"] if self.form else []))


class OnlineStatusQuery(wire.Body):
    """Which users."""

    ids: Annotated[str, msgspec.Meta(description="User ids, separated by commas.", examples=["1,2,3"])]


class HTTPDoor:
    """Answers HTTP requests about presence.

    Args:
        settings: sizes and rates.
        origins: which pages may read the answers.
        connections: this node's. Those of the caller hear of a change before an answer shows it.
        cluster: closes and notifies connections on all nodes.
        tracker: executes commands.
        sight: answers reads.
        store: explains a user's status, and reads sessions.
        authenticator: verifies tokens and service keys.
        revoker: revokes tokens.
    """

    def __init__(  # noqa: PLR0913 - each is another part of the gateway
        self,
        settings: Settings,
        origins: Origins,
        connections: Connections,
        cluster: Cluster,
        tracker: Tracker,
        sight: Sight,
        store: Store,
        authenticator: Authenticator,
        *,
        revoker: Revoker,
    ) -> None:
        self._settings = settings
        self._revoker = revoker
        self._origins = origins
        self._connections = connections
        self._cluster = cluster
        self._tracker = tracker
        self._view = sight.view
        self._sight = sight
        self._store = store
        self._authenticator = authenticator
        self._heartbeats: KeyedBuckets[tuple[str, str]] = KeyedBuckets(settings.rate_limit_heartbeat)
        self._choices: KeyedBuckets[tuple[str, str]] = KeyedBuckets(settings.rate_limit_heartbeat)
        self.around: Callable[[Handler, str], Handler] | None = None
        """Given a handler and the operation's name, returns a handler that traces it. None without tracing."""
        self.warnings: Callable[[], list[str]] = list
        """Called for what else an operator is to know of a node that is ready."""
        self.refused = dict.fromkeys(CODES, 0)
        """Calls that were answered with an error, by code."""
        self.operations = self._table()

    def add(self, operations: Sequence[Operation]) -> None:
        """Add rows to the table. Call it before `routes`."""
        self.operations += tuple(operations)

    def routes(self) -> list[web.RouteDef]:
        """The routes of the table, and one per path for the preflight requests of browsers (CORS)."""
        methods: dict[str, list[str]] = {}
        for operation in self.operations:
            methods.setdefault(operation.path, []).append(operation.method)
        routes = [
            web.route(operation.method, operation.path, self._handler(operation)) for operation in self.operations
        ]
        return routes + [web.options(path, self._preflight(allowed)) for path, allowed in methods.items()]

    # The table

    def _table(self) -> tuple[Operation, ...]:
        return (
            Operation(
                method="GET",
                path="/online-status",
                summary="Which of these users are online",
                caller=Caller.USER_OR_SERVICE,
                query=OnlineStatusQuery,
                answers=list[wire.IdOnline],
                handler=self._online_status,
            ),
            Operation(
                method="GET",
                path="/api/users/online",
                summary="Who is online, a page at a time, ordered by id",
                caller=Caller.USER_OR_SERVICE,
                query=wire.GetOnlineUsers,
                answers=wire.OnlineUsers,
                handler=self._online_users,
            ),
            Operation(
                method="GET",
                path="/api/users/{id}/online-status",
                summary="One user's presence",
                caller=Caller.USER_OR_SERVICE,
                answers=wire.UserOnlineStatus,
                handler=self._user_status,
            ),
            Operation(
                method="GET",
                path="/api/users/{id}/explain",
                summary="Why a user has the status it has",
                caller=Caller.SERVICE,
                answers=inspection.Explained,
                handler=self._explain,
            ),
            Operation(
                method="GET",
                path="/api/users/{id}/sessions",
                summary="When a user was online lately, on what, and why that ended; users may ask for their own",
                caller=Caller.USER_OR_SERVICE,
                query=inspection.GetSessions,
                answers=inspection.UserSessions,
                handler=self._sessions,
            ),
            Operation(
                method="DELETE",
                path="/api/users/{id}/connections",
                summary="Close a user's connections",
                caller=Caller.SERVICE,
                answers=wire.Closed,
                handler=self._disconnect,
            ),
            Operation(
                method="POST",
                path="/presence/heartbeat",
                summary="Say that the calling user is there, for as long as PRESENCE_TTL",
                caller=Caller.USER,
                body=wire.Heartbeat,
                answers=wire.HeartbeatRecorded,
                handler=self._heartbeat,
            ),
            Operation(
                method="PUT",
                path="/presence/status",
                summary="Set the calling user's status by hand, whether or not they are online",
                caller=Caller.USER,
                body=wire.SetStatus,
                answers=wire.OwnUserStatus,
                handler=self._set_status,
            ),
            Operation(
                method="POST",
                path="/presence/online",
                summary="Say that a user has logged in: online for as long as PRESENCE_TTL",
                caller=Caller.SERVICE,
                body=wire.ReportPresence,
                answers=wire.UserStatusAt,
                handler=self._set_online,
            ),
            Operation(
                method="POST",
                path="/presence/offline",
                summary="Say that a user has logged out: offline, unless a live connection says otherwise",
                caller=Caller.SERVICE,
                body=wire.ReportPresence,
                answers=wire.UserStatusAt,
                handler=self._set_offline,
            ),
            Operation(
                method="POST",
                path="/api/notifications",
                summary="Send an event to every connection of a user, or queue it until they come online",
                caller=Caller.SERVICE,
                body=wire.Notify,
                answers=wire.Notified,
                handler=self._notify,
            ),
            Operation(
                method="POST",
                path="/api/tokens/revoke",
                summary="Refuse tokens, and close the connections that came in with them, on every node",
                caller=Caller.SERVICE,
                body=RevokeTokens,
                answers=Revoked,
                handler=self._revoke,
            ),
            Operation(
                method="GET",
                path="/health/live",
                summary="Whether the process runs",
                caller=Caller.ANYONE,
                answers=wire.Health,
                handler=self._live,
            ),
            Operation(
                method="GET",
                path="/health/ready",
                summary="Whether this node takes new connections; 503 while it drains or the store is away",
                caller=Caller.ANYONE,
                answers=wire.Health,
                handler=self._ready,
            ),
        )

    async def _online_status(self, call: Call) -> list[wire.IdOnline]:
        ids = call.query.ids.split(",") if call.query.ids else []
        if len(ids) > wire.MAX_IDS:
            raise InvalidPayloadError(f"ids takes at most {wire.MAX_IDS}; there are {len(ids)}")
        if not all(is_id(user_id) for user_id in ids):
            raise InvalidPayloadError("ids takes user ids of 1 to 128 characters, separated by commas")
        statuses = self._sight.statuses(call.tenant, call.viewer, ids, self._tracker.now())
        return [wire.IdOnline(id=_number_if_one(status.user_id), online=status.online) for status in statuses]

    async def _online_users(self, call: Call) -> wire.OnlineUsers:
        return page_of_online(self._sight, call.tenant, call.viewer, call.query)

    async def _user_status(self, call: Call) -> wire.UserOnlineStatus:
        return wire.user_online_status(self._status(call, call.path["id"]), self._tracker.now())

    def _status(self, call: Call, user_id: str) -> UserStatus:
        """A user's status as the caller is told it; callers are told the truth about themselves."""
        return self._sight.statuses(call.tenant, call.viewer, [user_id], self._tracker.now())[0]

    async def _explain(self, call: Call) -> inspection.Explained:
        explanation = await self._store.explain(call.tenant, call.path["id"])
        return inspection.explained(explanation, await self._cluster.with_activity(explanation.connections))

    async def _sessions(self, call: Call) -> inspection.UserSessions:
        user_id = call.path["id"]
        if call.identity is not None and call.identity.user_id != user_id:
            raise ForbiddenError("a user's sessions are for that user, and for backends with a service key")
        sessions = await self._store.sessions(call.tenant, user_id, self._tracker.now(), call.query.limit)
        return inspection.user_sessions(sessions)

    async def _disconnect(self, call: Call) -> wire.Closed:
        closed = await self._cluster.disconnect(call.tenant, call.path["id"], self._tracker.now())
        return wire.Closed(closed=closed)

    async def _heartbeat(self, call: Call) -> wire.HeartbeatRecorded:
        assert call.identity is not None  # noqa: S101 - Caller.USER says so
        user_id = call.identity.user_id
        now = self._tracker.now()
        wait = self._heartbeats.take((call.tenant, user_id), asyncio.get_running_loop().time())
        if wait:
            rate = self._settings.rate_limit_heartbeat
            self._connections.quotas.refuse("heartbeats_per_user")
            raise RateLimitedError(f"more than {rate.count} heartbeats in {rate.seconds:g} s", wait)
        await self._tracker.beat(
            Beat(
                tenant=call.tenant,
                user_id=user_id,
                at=now,
                holds=True,
                meta_json=encode_meta(call.body.meta),
                profile=call.identity.profile,
            )
        )
        status = self._status(call, user_id).status
        return wire.HeartbeatRecorded(status=status, timestamp=wire.timestamp(now))

    async def _set_status(self, call: Call) -> wire.OwnUserStatus:
        assert call.identity is not None  # noqa: S101 - Caller.USER says so
        user_id = call.identity.user_id
        wait = self._choices.take((call.tenant, user_id), asyncio.get_running_loop().time())
        if wait:
            rate = self._settings.rate_limit_heartbeat
            self._connections.quotas.refuse("statuses_per_user")
            raise RateLimitedError(f"the status was set more than {rate.count} times in {rate.seconds:g} s", wait)
        await self._tracker.set_status(call.tenant, user_id, call.body.choice(self._tracker.now()))
        return wire.own_user_status(self._status(call, user_id))

    async def _set_online(self, call: Call) -> wire.UserStatusAt:
        now, meta_json = self._tracker.now(), encode_meta(call.body.meta)
        beat = Beat(tenant=call.tenant, user_id=call.body.user_id, at=now, holds=True, meta_json=meta_json)
        await self._tracker.beat(beat)
        return wire.user_status_at(self._view.status(call.tenant, beat.user_id), now)

    async def _set_offline(self, call: Call) -> wire.UserStatusAt:
        user_id = call.body.user_id
        await self._tracker.release(call.tenant, user_id)
        return wire.user_status_at(self._view.status(call.tenant, user_id), self._tracker.now())

    async def _notify(self, call: Call) -> wire.Notified:
        delivery = await self._cluster.notify(call.tenant, call.body.user_id, call.body.event, call.body.data)
        return wire.Notified(sent=delivery.sent, method=delivery.method)

    async def _revoke(self, call: Call) -> Revoked:
        said: RevokeTokens = call.body
        revocation = Revocation.of(
            tenant=call.tenant,
            now=self._tracker.now(),
            ttl=self._settings.revocation_ttl,
            jti=said.jti,
            user_id=said.user_id,
            all_users=said.all_users,
            issued_before=said.issued_before,
            expires_at=said.expires_at,
        )
        try:
            await self._revoker.revoke(revocation)
        except StoreUnavailableError:
            raise UnavailableError(
                "the store is away: this node refuses the tokens, and tells the others when it is back; "
                "ask again to be sure that all have heard"
            ) from None
        return Revoked(revoked=True, expires_at=wire.timestamp(revocation.until))

    async def _live(self, _call: Call) -> wire.Health:
        return wire.Health(status="ok")

    async def _ready(self, _call: Call) -> wire.Health:
        if self._connections.leaving:
            raise UnavailableError("this node is draining")
        if self._tracker.away is not None:
            raise UnavailableError(f"the store is away: {self._tracker.away}")
        if not self._tracker.ready:
            raise UnavailableError("this node is starting")
        offset, warnings = self._tracker.clock_offset, self.warnings()
        if abs(offset) > CLOCK_TOLERANCE:
            off = f"this machine's clock is {abs(offset) / 1000:.1f} s {'behind' if offset > 0 else 'ahead of'} Redis's"
            warnings = [f"{off}; presence goes by Redis's, tokens expire by this one", *warnings]
        return wire.Health(status="ok", warnings=warnings) if warnings else wire.Health(status="ok")

    # Around each operation

    def _handler(self, operation: Operation) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                call = await self._check(operation, request)
                answer = await operation.handler(call)
                if call.identity is not None:
                    self._connections.catch_up_user(call.identity)
                response = web.Response(body=wire.encode(answer), content_type="application/json")
            except (RequestError, RefusedError) as error:
                response = self._refusal(error)
            except StoreUnavailableError:
                response = self._refusal(store_away())
            except web.HTTPRequestTimeout:
                response = self._refusal(InvalidPayloadError("the body did not come, or not in time"), 408)
            except web.HTTPRequestEntityTooLarge:
                response = self._refusal(
                    InvalidPayloadError(f"a body may have {self._settings.max_payload} bytes"), 413
                )
            except Exception:
                _log.exception("a request failed", request=f"{operation.method} {operation.path}")
                response = self._refusal(InternalError("the gateway failed; its log says why"))
            self._allow_origin(request, response)
            return response

        name = f"{operation.method} {operation.path}"
        return handle if self.around is None or operation.caller is Caller.ANYONE else self.around(handle, name)

    def _refusal(self, error: RequestError | RefusedError, status: int | None = None) -> web.Response:
        self.refused[error.code] = self.refused.get(error.code, 0) + 1
        return problem(error, status)

    async def _check(self, operation: Operation, request: web.Request) -> Call:
        """Check who calls, that they may, and that what they sent is valid."""
        if request.method not in _READS and not self._origins.allows(request.headers.get("Origin"), request):
            # Against cross-site requests: a cookie may be a token, and a page of any site can make a browser send it.
            raise ForbiddenError("this origin is not allowed; see CORS_ALLOWED_ORIGINS")
        query = {name: value for name, value in request.query.items() if name not in {"token", "tenant"}}
        tenant, identity, reads_only = await self._caller(operation.caller, request)
        if reads_only and operation.method not in _READS:
            raise ForbiddenError("this key is one of SERVICE_API_KEYS_READONLY: it may read, and change nothing")
        if identity is not None:
            self._connections.quotas.admit_request(request, identity, self._tracker.now() / 1000)
        # Any request is activity; a heartbeat records it by itself.
        if identity is not None and operation.body is not wire.Heartbeat:
            waiting = self._connections.active(identity, self._tracker.now())
            if waiting is not None:
                await waiting
        if not all(is_id(value) for value in request.match_info.values()):
            raise InvalidPayloadError("a user id has 1 to 128 characters without control characters")
        return Call(
            tenant=tenant,
            identity=identity,
            path=dict(request.match_info),
            query=validate(query, operation.query, f"see {operation.path} in /docs", strict=False),
            body=await self._body(operation, request),
            headers=request.headers,
            reads_only=reads_only,
        )

    async def _caller(self, caller: Caller, request: web.Request) -> tuple[str, Identity | None, bool]:
        """Find out who calls: the tenant, the user or None for a service, and whether a service's key may only read."""
        if caller is Caller.ANYONE:
            return DEFAULT_TENANT, None, False
        if not self._tracker.ready:
            raise NotReadyError("this node is starting, and the store has not answered yet; try again in a moment")
        key = request.headers.get("X-API-Key")
        if key is None:
            identity = await self._authenticator.identify(
                find_token(request.headers, request.query, self._origins.cookies(request))
            )
            if caller is Caller.SERVICE:
                raise ForbiddenError("this call takes a service key: X-API-Key, one of SERVICE_API_KEYS")
            return identity.tenant, identity, False
        reads_only = not self._authenticator.knows_service_key(key)
        if reads_only and not self._authenticator.knows_reading_key(key):
            raise TokenInvalidError("this service key is not one of SERVICE_API_KEYS")
        if caller is Caller.USER:
            raise ForbiddenError("this call takes a user's token, not a service key")
        tenant = request.query.get("tenant", DEFAULT_TENANT)
        if not is_id(tenant):
            raise InvalidPayloadError("tenant has 1 to 128 characters without control characters")
        return tenant, None, reads_only

    async def _body(self, operation: Operation, request: web.Request) -> Any:
        if operation.body is None:
            return None
        try:
            async with asyncio.timeout(self._settings.keepalive_timeout):
                raw = await request.clone(client_max_size=self._settings.max_payload).read()
        except web.RequestPayloadError:
            raise InvalidPayloadError("the body is not what its Content-Encoding says") from None
        except OSError:  # among them TimeoutError
            raise web.HTTPRequestTimeout from None
        try:
            if operation.form and request.content_type == "application/x-www-form-urlencoded":
                payload: Any = dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
            else:
                payload = msgspec.json.decode(raw) if raw else None
        except (ValueError, RecursionError) as error:
            raise InvalidPayloadError(f"the body must be JSON: {error}") from None
        return validate(payload, operation.body, f"see {operation.path} in /docs")

    # Browsers

    def _preflight(self, methods: list[str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            response = web.Response(status=HTTPStatus.NO_CONTENT)
            response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
            response.headers["Access-Control-Allow-Headers"] = _ASKED_HEADERS
            response.headers["Access-Control-Max-Age"] = "600"
            self._allow_origin(request, response)
            return response

        return handle

    def _allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and self._origins.allows(origin, request):
            response.headers["Access-Control-Allow-Origin"] = origin
            if self._origins.trusts(origin, request):
                response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Expose-Headers"] = "Retry-After"
            response.headers["Vary"] = "Origin"


def _number_if_one(user_id: str) -> int | str:
    if _NUMBER.fullmatch(user_id) and int(user_id) <= _MAX_SAFE_INTEGER:
        return int(user_id)
    return user_id
