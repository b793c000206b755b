"""The requests of the contract's section 3 as one table, behind every door that speaks in events."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog

from gateway import wire
from gateway.connections import encoded
from gateway.errors import (
    InternalError,
    InvalidPayloadError,
    KeysUnavailableError,
    RefusedError,
    RequestError,
    StoreUnavailableError,
    UnavailableError,
    UnknownEventError,
    store_away,
)
from gateway.presence.model import Beat, UserStatus
from gateway.presence.visibility import Sight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from typing_extensions import TypeIs

    from gateway.access.auth import Authenticator
    from gateway.connections.connections import Connections
    from gateway.connections.live import LiveConnection
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View
    from gateway.presence.visibility import Visibility

    Encodable: TypeAlias = wire.Body | bytes
    """What an answer says; bytes are JSON."""
    Handler: TypeAlias = Callable[[LiveConnection, Any, int], Encodable | Coroutine[Any, Any, Encodable]]
    """Called with who asks, a valid payload, and the time."""
    Reply: TypeAlias = wire.Answer | wire.Failure

_log = structlog.get_logger(__name__)

PREPARED, PREPARED_BYTES = 4096, 256
"""How many requests are kept as they were read, and how long they may be: past it all are read anew. Reading one takes
a third of what answering it does (`benchmarks/profile.md`)."""


SET_STATUS_USAGE = (
    'set-status takes {"status": "online|away|busy|dnd|invisible", '
    f'"statusText": "…" of at most {wire.MAX_STATUS_TEXT} characters?, '
    f'"expiresIn": seconds, at most {wire.MAX_EXPIRES_IN}?}}'
)


_PATTERN = re.compile(r" matching regex '.*'")
"""What nobody reads in an error; the usage behind it says the same in words."""


def validate(payload: object, to: type[wire.Body], usage: str, *, strict: bool = True) -> Any:
    """Turn a decoded JSON payload into its type; no payload is an empty one.

    Args:
        payload: what came.
        to: what it must fit.
        usage: what the request takes, for the error.
        strict: False also takes numbers written as strings, as a query has them.

    Raises:
        InvalidPayloadError: it does not fit; the message says where, and what `usage` is.
    """
    try:
        return msgspec.convert({} if payload is None else payload, to, strict=strict)
    except msgspec.ValidationError as error:
        raise InvalidPayloadError(
            f"{_PATTERN.sub(' of the characters that it may have', str(error))}; {usage}"
        ) from None


def encode_meta(meta: dict[str, Any] | None) -> bytes | None:
    """Encode a ``meta`` to be kept for its user; None for none.

    Raises:
        InvalidPayloadError: it is too large, nested too deep, or no JSON.
    """
    if meta is None:
        return None
    try:
        # The standard encoder, because it takes nothing that JSON has no word for, such as an attachment's bytes.
        encoded = json.dumps(meta, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"meta must be JSON: {error}") from None
    if len(encoded) > wire.MAX_META_BYTES:
        raise InvalidPayloadError(f"meta may have {wire.MAX_META_BYTES} bytes as JSON; this one has {len(encoded)}")
    if wire.is_too_deep(encoded):
        raise InvalidPayloadError(f"meta may be nested {wire.MAX_NESTING} deep")
    return encoded


def page_of_online(sight: Sight, tenant: str, viewer: str | None, query: wire.GetOnlineUsers) -> wire.OnlineUsers:
    """Read one page of a tenant's online users. It ends early where its users' names and avatars are very long.

    Args:
        sight: what is read.
        tenant: whose users.
        viewer: who asks; None for a service, which sees everyone.
        query: which page.

    Raises:
        InvalidPayloadError: the cursor is not one that an earlier page gave.
    """
    after = None if query.cursor is None else _read_cursor(query.cursor)
    statuses, count = sight.online(tenant, viewer, after=after, limit=query.limit + 1)
    page: list[UserStatus] = []
    size = 0
    for status in statuses[: query.limit]:
        profile = status.profile
        texts = (status.user_id, profile.name, profile.avatar, profile.role)
        size += wire.USER_SIZE + sum(len(text.encode()) for text in texts if text is not None)
        if size > wire.MAX_PAGE_BYTES and page:
            break
        page.append(status)
    return wire.OnlineUsers(
        users=[wire.online_user(status) for status in page],
        count=count,
        next_cursor=_cursor(page[-1].user_id) if len(statuses) > len(page) else None,
    )


def _cursor(user_id: str) -> str:
    return base64.urlsafe_b64encode(user_id.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars="-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raise InvalidPayloadError("cursor must be the nextCursor of an earlier page") from None


class MalformedError(ValueError):
    """What came is no request at all."""


class _Request:
    """One row of the table.

    Args:
        payload: what a payload must fit.
        answer: the name of what it is answered with.
        handler: what answers it.
        usage: what it takes, for errors.
        empty: what no payload means, where one may be left out.
        counts: whether asking is activity; where not, the handler records it with what it brings.
        secret: whether its payload is kept nowhere.
    """

    def __init__(
        self,
        payload: type[wire.Body],
        answer: str,
        handler: Handler,
        usage: str,
        *,
        empty: wire.Body | None = None,
        counts: bool = True,
        secret: bool = False,
    ) -> None:
        self.payload = payload
        self.answer = answer
        self.handler = handler
        self.usage = usage
        self.empty = empty
        self.counts = counts
        self.secret = secret
        self.opening = b'{"event":"%b","data":' % answer.encode()
        self._body = self._encoded = b""
        """What was encoded last, and as what."""

    def reply(self, body: Encodable) -> wire.Answer:
        """The acknowledgement with a body."""
        return wire.Answer(self.answer, msgspec.Raw(body) if isinstance(body, bytes) else body)

    def encode(self, body: Encodable) -> bytes:
        """The same as JSON."""
        if not isinstance(body, bytes):
            return b"".join((self.opening, wire.encode(body), b"}"))
        if body is not self._body:  # it is for heartbeats of one millisecond
            if len(body) > PREPARED_BYTES:
                return b"".join((self.opening, body, b"}"))
            self._encoded, self._body = b"".join((self.opening, body, b"}")), body
        return self._encoded


class Requests:
    """Answers requests of live connections.

    Args:
        connections: whose rate and activity requests count for.
        tracker: where commands go.
        view: what reads are answered from.
        authenticator: what verifies a refreshed token.
        visibility: who may see whom; None where everyone sees everyone.
    """

    def __init__(
        self,
        connections: Connections,
        tracker: Tracker,
        view: View,
        authenticator: Authenticator,
        visibility: Visibility | None = None,
    ) -> None:
        self._connections = connections
        self._tracker = tracker
        self._now = tracker.now
        self._touches = tracker.touches
        self._view = view
        self._visibility = visibility
        self._sight = Sight(view, visibility)
        self._authenticator = authenticator
        self._prepared: dict[bytes, tuple[_Request, wire.Body]] = {}
        self._table = {
            "check-user-status": _Request(
                wire.CheckUserStatus, "user-status", self._check_user, 'check-user-status takes {"userId": "…"}'
            ),
            "check-users-status": _Request(
                wire.CheckUsersStatus,
                "users-status",
                self._check_users,
                f'check-users-status takes {{"userIds": ["…"]}}, at most {wire.MAX_IDS}',
            ),
            "get-online-users": _Request(
                wire.GetOnlineUsers,
                "online-users",
                self._online_users,
                f'get-online-users takes nothing, or {{"limit": 1 to {wire.MAX_IDS}, "cursor": "…"}}',
                empty=wire.GetOnlineUsers(),
            ),
            "watch-users": _Request(
                wire.WatchUsers,
                "watching",
                self._watch,
                f'watch-users takes {{"userIds": ["…"]}}, at most {wire.MAX_IDS} at a time;'
                f" a connection may watch {connections.max_watched}",
            ),
            "unwatch-users": _Request(
                wire.UnwatchUsers,
                "unwatched",
                self._unwatch,
                f'unwatch-users takes nothing for all, or {{"userIds": ["…"]}}, at most {wire.MAX_IDS}',
                empty=wire.UnwatchUsers(),
            ),
            "heartbeat": _Request(
                wire.Heartbeat,
                "heartbeat-ack",
                self._heartbeat,
                'heartbeat takes nothing, or {"meta": {…}}',
                empty=wire.Heartbeat(),
                counts=False,
            ),
            "set-status": _Request(
                wire.SetStatus,
                "status-set",
                self._set_status,
                SET_STATUS_USAGE,
            ),
            "refresh-token": _Request(
                wire.RefreshToken,
                "token-refreshed",
                self._refresh,
                'refresh-token takes {"token": "…"}',
                counts=False,
                secret=True,
            ),
            "ack": _Request(
                wire.Ack, "acknowledged", self._acknowledge, 'ack takes {"id": "…"} or {"ids": ["…"]}', counts=False
            ),
        }

    def add(
        self,
        event: str,
        payload: type[wire.Body],
        answer: str,
        handler: Handler,
        usage: str,
        *,
        counts: bool = True,
        secret: bool = False,
    ) -> None:
        """Answer a further kind of request; the arguments are a row of the table."""
        self._table[event] = _Request(payload, answer, handler, usage, counts=counts, secret=secret)

    def answer(self, live: LiveConnection, event: object, *arguments: object) -> Reply | Coroutine[Any, Any, Reply]:
        """Answer one request: at once, or by a coroutine where something has to be committed first.

        Whatever is wrong with it is in the answer; neither this nor what it returns raises.

        Args:
            live: who asks.
            event: the request's name, as it came.
            arguments: its payload as decoded JSON, as it came; None, or none at all, where there was none.
        """
        now = self._now()
        try:
            self._connections.admit_request(live, now)
            request, valid = self._prepare(event, *arguments)
            body = self._run(live, request, valid, now)
        except Exception as error:
            return self._failed(error, live, event)
        if _is_at_hand(body):
            return request.reply(body)
        return self._reply_later(body, live, request)

    def answer_message(self, live: LiveConnection, message: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        """The same as JSON, for a request that comes as the JSON array of its name and its payload.

        What is asked the same way again and again, as a heartbeat is, is read only once.

        Raises:
            ValueError: it is no such array.
        """
        now = self._now()
        prepared = self._prepared.get(message)
        try:
            self._connections.admit_request(live, now)
            if prepared is None:
                prepared = self._prepare_message(message)
            request, valid = prepared
            body = self._run(live, request, valid, now)
            if _is_at_hand(body):
                return request.encode(body)
        except MalformedError:
            raise
        except Exception as error:
            # Not the message itself, which may hold a token.
            return wire.encode(self._failed(error, live, None if prepared is None else prepared[0].answer))
        return self._encode_later(body, live, request)

    def _prepare(self, event: object, *arguments: object) -> tuple[_Request, wire.Body]:
        """Find a request's row and validate its payload."""
        request = self._table.get(event) if isinstance(event, str) else None
        if request is None:
            raise UnknownEventError(f"no such request; there are {', '.join(self._table)}")
        if len(arguments) > 1:
            raise InvalidPayloadError("a request takes one argument")
        payload = arguments[0] if arguments else None
        valid = request.empty if payload is None or payload == {} else None
        return request, validate(payload, request.payload, request.usage) if valid is None else valid

    def _prepare_message(self, message: bytes) -> tuple[_Request, wire.Body]:
        try:
            event, *arguments = msgspec.json.decode(message, type=list)
        except (ValueError, RecursionError) as error:
            raise MalformedError(str(error)) from None
        if not isinstance(event, str) or event in wire.SOCKET_IO_EVENTS:
            raise MalformedError("no name for an event")
        prepared = self._prepare(event, *arguments)
        if len(message) <= PREPARED_BYTES and not prepared[0].secret:
            if len(self._prepared) >= PREPARED:
                self._prepared.clear()
            self._prepared[message] = prepared
        return prepared

    def _run(
        self, live: LiveConnection, request: _Request, valid: wire.Body, now: int
    ) -> Encodable | Coroutine[Any, Any, Encodable]:
        if request.counts:
            waiting = self._connections.active(live.identity, now)
            if waiting is not None:
                return self._after(waiting, live, request, valid, now)
        body = request.handler(live, valid, now)
        audience = live.audience
        if _is_at_hand(body) and (audience is None or audience.pending):
            self._connections.catch_up(live)
        return body

    async def _after(
        self, waiting: Coroutine[Any, Any, object], live: LiveConnection, request: _Request, valid: wire.Body, now: int
    ) -> Encodable:
        await waiting
        body = request.handler(live, valid, now)
        return body if _is_at_hand(body) else await body

    async def _reply_later(
        self, waiting: Coroutine[Any, Any, Encodable], live: LiveConnection, request: _Request
    ) -> Reply:
        try:
            body = await waiting
            self._connections.catch_up(live)
        except Exception as error:
            return self._failed(error, live, request.answer)
        return request.reply(body)

    async def _encode_later(
        self, waiting: Coroutine[Any, Any, Encodable], live: LiveConnection, request: _Request
    ) -> bytes:
        return wire.encode(await self._reply_later(waiting, live, request))

    def _failed(self, error: Exception, live: LiveConnection, request: object) -> wire.Failure:
        if isinstance(error, RequestError):
            return failure(error)
        _log.error("a request failed", request=request, user=live.identity.user_id, exc_info=error)
        return failure(InternalError("the gateway failed; its log says why"))

    def malformed(self, live: LiveConnection, message: str) -> wire.Failure:
        """Answer what could not even be read as a request; it counts against the rate all the same."""
        try:
            self._connections.admit_request(live, self._tracker.now())
        except RequestError as error:
            return failure(error)
        return failure(InvalidPayloadError(message))

    def _check_user(self, live: LiveConnection, query: wire.CheckUserStatus, now: int) -> Encodable:
        identity, visibility = live.identity, self._visibility
        if query.user_id == identity.user_id:
            if (identity.tenant, identity.user_id) in self._view.hidden:
                return encoded.status_at(self._view.own_status(identity.tenant, identity.user_id, now), now)
        elif visibility is not None and not visibility.sees(identity.tenant, identity.user_id, query.user_id):
            return encoded.status_at(UserStatus(tenant=identity.tenant, user_id=query.user_id), now)
        return encoded.status_at(self._view.status(identity.tenant, query.user_id), now)

    def _check_users(self, live: LiveConnection, query: wire.CheckUsersStatus, now: int) -> Encodable:
        identity = live.identity
        return encoded.statuses_at(self._sight.statuses(identity.tenant, identity.user_id, query.user_ids, now), now)

    def _online_users(self, live: LiveConnection, query: wire.GetOnlineUsers, now: int) -> Encodable:
        page = page_of_online(self._sight, live.identity.tenant, live.identity.user_id, query)
        return wire.OnlineUsersAt(
            users=page.users,
            count=page.count,
            next_cursor=page.next_cursor,
            timestamp=wire.timestamp(now),
        )

    def _watch(
        self, live: LiveConnection, request: wire.WatchUsers, now: int
    ) -> Encodable | Coroutine[Any, Any, Encodable]:
        self._connections.watch(live, request.user_ids)
        waiting = self._connections.settling(live.connection.id)
        if waiting is not None:
            return self._watch_settled(waiting, live, request)
        # In the same turn of the loop: what is published from now on is news to whoever has this.
        return self._check_users(live, request, now)

    async def _watch_settled(
        self, waiting: Awaitable[None], live: LiveConnection, request: wire.WatchUsers
    ) -> Encodable:
        await _settled(waiting)
        return self._check_users(live, request, self._now())

    def _unwatch(
        self, live: LiveConnection, request: wire.UnwatchUsers, _now: int
    ) -> Encodable | Coroutine[Any, Any, Encodable]:
        count = self._connections.unwatch(live, request.user_ids)
        waiting = self._connections.settling(live.connection.id)
        return wire.Unwatched(count=count) if waiting is None else self._unwatch_settled(waiting, count)

    async def _unwatch_settled(self, waiting: Awaitable[None], count: int) -> Encodable:
        await _settled(waiting)
        return wire.Unwatched(count=count)

    def _heartbeat(
        self, live: LiveConnection, beat: wire.Heartbeat, now: int
    ) -> Encodable | Coroutine[Any, Any, Encodable]:
        active_at = self._touches.touch(live.tenant, live.user_id, now) if beat.meta is None else None
        if active_at is None:
            return self._beat(live, encode_meta(beat.meta), now)
        return encoded.heartbeat_ack(now, active_at)

    async def _beat(self, live: LiveConnection, meta_json: bytes | None, now: int) -> Encodable:
        tenant, user_id = live.tenant, live.user_id
        beat = Beat(tenant=tenant, user_id=user_id, at=now, meta_json=meta_json)
        if meta_json is None or meta_json == live.connection.meta_json:
            await self._tracker.beat(beat)
        else:
            await asyncio.gather(self._tracker.beat(beat), self._connections.describe(live, meta_json))
        active_at = self._view.own_status(tenant, user_id, now).active_at
        return encoded.heartbeat_ack(now, active_at or now)

    def _acknowledge(self, live: LiveConnection, acknowledged: wire.Ack, _now: int) -> Encodable:
        ids = acknowledged.ids if acknowledged.id is None else [acknowledged.id, *acknowledged.ids]
        for item_id in ids:
            self._connections.acknowledge(live, item_id)
        return wire.Acknowledged(count=len(ids))

    async def _set_status(self, live: LiveConnection, request: wire.SetStatus, now: int) -> Encodable:
        tenant, user_id = live.identity.tenant, live.identity.user_id
        try:
            await self._tracker.set_status(tenant, user_id, request.choice(now))
        except StoreUnavailableError:
            raise UnavailableError("the store is away, and nothing was set; try again in a moment") from None
        return wire.own_user_status(self._view.own_status(tenant, user_id, now))

    async def _refresh(self, live: LiveConnection, request: wire.RefreshToken, _now: int) -> Encodable:
        try:
            identity = await self._authenticator.identify(request.token)
        except KeysUnavailableError as error:
            raise UnavailableError(str(error)) from None
        except RefusedError as error:
            raise InvalidPayloadError(f"{error.code}: {error}") from None
        self._connections.renew_token(live, identity)
        if live.token is not None:
            live.token = request.token
        await self._tracker.beat(
            Beat(tenant=identity.tenant, user_id=identity.user_id, at=self._tracker.now(), profile=identity.profile)
        )
        return wire.TokenRefreshed(expires_at=wire.optional_timestamp(identity.expires_at))


async def _settled(waiting: Awaitable[None]) -> None:
    """Wait until a client has its watch list wherever it goes on.

    Raises:
        UnavailableError: the store is away: there it would have the one it had before.
    """
    try:
        await waiting
    except StoreUnavailableError:
        raise store_away() from None


def _is_at_hand(body: Encodable | Coroutine[Any, Any, Encodable]) -> TypeIs[Encodable]:
    # Not a union, nor a tuple: compiled, this is two looks at a type.
    return isinstance(body, bytes) or isinstance(body, wire.Body)  # noqa: SIM101


def failure(error: RequestError) -> wire.Failure:
    """The answer to a request that failed."""
    return wire.Failure(
        error=wire.ErrorBody(
            code=error.code,
            message=str(error),
            retry_after=msgspec.UNSET if error.retry_after is None else error.retry_after,
        )
    )
