"""The requests of the contract's section 3 as one table, behind every door that speaks in events."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway import wire
from gateway.errors import (
    InternalError,
    InvalidPayloadError,
    KeysUnavailableError,
    RefusedError,
    RequestError,
    UnavailableError,
    UnknownEventError,
)
from gateway.presence.model import Beat, UserStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.auth import Authenticator
    from gateway.connections import Connections, LiveConnection
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View

    Handler = Callable[[LiveConnection, Any], Awaitable[wire.Body]]

_log = structlog.get_logger(__name__)


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
        raise InvalidPayloadError(f"{error}; {usage}") from None


def encode_meta(meta: dict[str, Any] | None) -> bytes | None:
    """Encode a ``meta`` to be kept for its user; None for none.

    Raises:
        InvalidPayloadError: it is too large, or no JSON.
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
    return encoded


def page_of_online(view: View, tenant: str, query: wire.GetOnlineUsers) -> wire.OnlineUsers:
    """Read one page of a tenant's online users. It ends early where its users' names and avatars are very long.

    Raises:
        InvalidPayloadError: the cursor is not one that an earlier page gave.
    """
    after = None if query.cursor is None else _read_cursor(query.cursor)
    statuses = view.online(tenant, after=after, limit=query.limit + 1)
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
        count=view.online_count(tenant),
        next_cursor=_cursor(page[-1].user_id) if len(statuses) > len(page) else None,
    )


def _cursor(user_id: str) -> str:
    return base64.urlsafe_b64encode(user_id.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars="-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raise InvalidPayloadError("cursor must be the nextCursor of an earlier page") from None


class _Request(msgspec.Struct, frozen=True):
    """One row of the table."""

    payload: type[wire.Body]
    answer: str
    handler: Handler
    usage: str


class Requests:
    """Answers requests of live connections.

    Args:
        connections: whose rate and activity requests count for.
        tracker: where commands go.
        view: what reads are answered from.
        authenticator: what verifies a refreshed token.
    """

    def __init__(self, connections: Connections, tracker: Tracker, view: View, authenticator: Authenticator) -> None:
        self._connections = connections
        self._tracker = tracker
        self._view = view
        self._authenticator = authenticator
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
            ),
            "heartbeat": _Request(
                wire.Heartbeat, "heartbeat-ack", self._heartbeat, 'heartbeat takes nothing, or {"meta": {…}}'
            ),
            "refresh-token": _Request(
                wire.RefreshToken, "token-refreshed", self._refresh, 'refresh-token takes {"token": "…"}'
            ),
        }

    async def answer(self, live: LiveConnection, event: object, payload: object) -> wire.Answer | wire.Failure:
        """Answer one request. Whatever is wrong with it is in the answer; this never raises.

        Args:
            live: who asks.
            event: the request's name, as it came.
            payload: its payload as decoded JSON, as it came; None where there was none.
        """
        try:
            self._connections.admit_request(live)
            request = self._table.get(event) if isinstance(event, str) else None
            if request is None:
                raise UnknownEventError(f"no such request; there are {', '.join(self._table)}")
            valid = validate(payload, request.payload, request.usage)
            if not isinstance(valid, wire.Heartbeat | wire.RefreshToken):  # which record activity with what they bring
                await self._connections.active(live.identity)
            body = await request.handler(live, valid)
            self._connections.catch_up(live)
        except RequestError as error:
            return failure(error)
        except Exception:
            _log.exception("a request failed", request=event, user=live.identity.user_id)
            return failure(InternalError("the gateway failed; its log says why"))
        return wire.Answer(request.answer, body)

    def malformed(self, live: LiveConnection, message: str) -> wire.Failure:
        """Answer what could not even be read as a request; it counts against the rate all the same."""
        try:
            self._connections.admit_request(live)
        except RequestError as error:
            return failure(error)
        return failure(InvalidPayloadError(message))

    async def _check_user(self, live: LiveConnection, query: wire.CheckUserStatus) -> wire.Body:
        status = self._view.status(live.identity.tenant, query.user_id)
        return wire.user_status_at(status, self._tracker.now())

    async def _check_users(self, live: LiveConnection, query: wire.CheckUsersStatus) -> wire.Body:
        statuses = self._view.statuses(live.identity.tenant, query.user_ids)
        return wire.UserStatuses(
            statuses=[wire.user_status(status) for status in statuses],
            timestamp=wire.timestamp(self._tracker.now()),
        )

    async def _online_users(self, live: LiveConnection, query: wire.GetOnlineUsers) -> wire.Body:
        page = page_of_online(self._view, live.identity.tenant, query)
        return wire.OnlineUsersAt(
            users=page.users,
            count=page.count,
            next_cursor=page.next_cursor,
            timestamp=wire.timestamp(self._tracker.now()),
        )

    async def _heartbeat(self, live: LiveConnection, beat: wire.Heartbeat) -> wire.Body:
        meta = encode_meta(beat.meta)
        identity, now = live.identity, self._tracker.now()
        await self._tracker.beat(Beat(tenant=identity.tenant, user_id=identity.user_id, at=now, meta_json=meta))
        active_at = self._view.status(identity.tenant, identity.user_id).active_at
        return wire.HeartbeatAck(timestamp=wire.timestamp(now), last_active=wire.timestamp(active_at or now))

    async def _refresh(self, live: LiveConnection, request: wire.RefreshToken) -> wire.Body:
        try:
            identity = await self._authenticator.identify(request.token)
        except KeysUnavailableError as error:
            raise UnavailableError(str(error)) from None
        except RefusedError as error:
            raise InvalidPayloadError(f"{error.code}: {error}") from None
        self._connections.renew_token(live, identity)
        await self._tracker.beat(
            Beat(tenant=identity.tenant, user_id=identity.user_id, at=self._tracker.now(), profile=identity.profile)
        )
        return wire.TokenRefreshed(expires_at=wire.optional_timestamp(identity.expires_at))


def failure(error: RequestError) -> wire.Failure:
    """The answer to a request that failed."""
    return wire.Failure(
        error=wire.ErrorBody(
            code=error.code,
            message=str(error),
            retry_after=msgspec.UNSET if error.retry_after is None else error.retry_after,
        )
    )
