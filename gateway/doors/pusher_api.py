"""Pusher's HTTP API, for the server libraries that backends have: https://pusher.com/docs/channels/library_auth_reference/rest-api.

Requests are signed with the application's secret. Errors are text, as these libraries show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from aiohttp import web
from msgspec import UNSET, UnsetType

from gateway import wire
from gateway.channels.membership import is_presence
from gateway.channels.names import check_name, is_cache
from gateway.doors.http import Caller
from gateway.errors import (
    InternalError,
    InvalidPayloadError,
    NotFoundError,
    RequestError,
    SignatureError,
    StoreUnavailableError,
    TooLargeError,
    UnavailableError,
    store_away,
)
from gateway.presence.model import DEFAULT_TENANT
from gateway.pusher.api import (
    ATTRIBUTES,
    BatchTriggered,
    CachedEvent,
    ChannelInfo,
    ChannelInfos,
    ChannelState,
    ChannelUser,
    ChannelUsers,
    Done,
    SignedChannelQuery,
    SignedChannelsQuery,
    SignedEventQuery,
    SignedQuery,
    TriggerBatch,
    Triggered,
    TriggerEvent,
    TriggerUserEvent,
)
from gateway.pusher.data import from_text, to_text
from gateway.pusher.signature import LIST
from gateway.wire import is_id

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from gateway.channels.channels import Channels
    from gateway.nodes.cluster import Cluster
    from gateway.pusher.signature import Signer
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

MAX_CHANNELS = 100
"""Channels of one event: Pusher's limit, as the next two are."""

MAX_BATCH = 10
"""Events of one batch."""

MAX_EVENT = 200
"""Characters of an event's name."""

TO_USER = "#server-to-user-"
"""What the channels begin with by which Pusher's libraries name a user."""

_OWN = frozenset({"member-added", "member-removed", "channel-members", "channel-left"})
_RESERVED = wire.RESERVED_EVENTS | _OWN
_RESERVED_PREFIXES = ("pusher:", "pusher_internal:")

_LISTS = frozenset({"channels"})
"""The parameters that are lists."""


Answer = Callable[[web.Request, bytes], Awaitable[object]]


class SignedOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the API's table, which makes its routes, and its part of ``/openapi.json``."""

    method: str
    path: str
    summary: str
    handler: Answer
    answers: type[msgspec.Struct]
    query: type[msgspec.Struct] = SignedQuery
    body: Any = None
    """Its type; None where there is none."""
    media: tuple[str, ...] = ("application/json",)
    """What a body may be."""
    status: int = 200
    deprecated: bool = False
    operation_id: str | None = None
    caller: Caller = Caller.APPLICATION


class PusherAPI:
    """Lets an application's backend say things in channels, and ask who is there.

    Args:
        settings: the application's id, and sizes.
        signer: what knows its secret.
        channels: where things are said.
        cluster: what reaches a user's connections.
        now: the time, in Unix milliseconds.
    """

    def __init__(
        self, settings: Settings, signer: Signer, channels: Channels, cluster: Cluster, now: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._channels = channels
        self._cluster = cluster
        self._now = now
        self.operations = self._table()
        """What it can be asked."""
        self.around: Callable[[Handler, str], Handler] | None = None
        """As `HTTPDoor.around`."""
        self._max_body = 2 * MAX_BATCH * settings.pusher_max_data + 65_536  # each quote in a text is two bytes of JSON

    def routes(self) -> list[web.RouteDef]:
        """The routes of the table."""
        return [web.route(row.method, row.path, self._handler(row)) for row in self.operations]

    def _handler(self, row: SignedOperation) -> Handler:
        handle: Handler = partial(self._handle, row)
        return handle if self.around is None else self.around(handle, f"{row.method} {row.path}")

    def _table(self) -> tuple[SignedOperation, ...]:
        terminate = SignedOperation(
            method="POST",
            path="/apps/{app}/users/{user}/terminate_connections",
            summary="Close a user's connections on every node",
            handler=self._terminate,
            answers=Done,
        )
        return (
            SignedOperation(
                method="POST",
                path="/apps/{app}/events",
                summary="Say something in channels; the body's fields may stand in the query, channels as channels[]",
                handler=self._events,
                body=TriggerEvent,
                answers=Triggered,
            ),
            SignedOperation(
                method="POST",
                path="/apps/{app}/batch_events",
                summary="Say several things, each in one channel",
                handler=self._batch_events,
                body=TriggerBatch,
                answers=BatchTriggered,
            ),
            SignedOperation(
                method="GET",
                path="/apps/{app}/channels",
                summary="The channels that somebody is in",
                handler=self._list,
                query=SignedChannelsQuery,
                answers=ChannelInfos,
            ),
            SignedOperation(
                method="GET",
                path="/apps/{app}/channels/{channel}",
                summary="What is known of a channel",
                handler=self._channel,
                query=SignedChannelQuery,
                answers=ChannelState,
                operation_id="getAppsChannel",
            ),
            SignedOperation(
                method="POST",
                path="/apps/{app}/channels/{channel}/events",
                summary="Say something in a channel, as libraries did before 2012: the body is the event's data",
                handler=self._channel_events,
                query=SignedEventQuery,
                body=str,
                media=("application/json", "text/plain"),
                answers=Done,
                status=202,
                deprecated=True,
            ),
            SignedOperation(
                method="GET",
                path="/apps/{app}/channels/{channel}/users",
                summary="The members of a presence channel",
                handler=self._users,
                answers=ChannelUsers,
            ),
            SignedOperation(
                method="POST",
                path="/apps/{app}/users/{user}/events",
                summary="Tell a user something on all connections; the body's fields may stand in the query",
                handler=self._user_events,
                body=TriggerUserEvent,
                answers=Done,
            ),
            terminate,
            # As pusher-http-python has it.
            msgspec.structs.replace(terminate, path="/users/{user}/terminate_connections"),
        )

    # Around each call

    async def _handle(self, row: SignedOperation, request: web.Request) -> web.StreamResponse:
        try:
            body = await self._check(request)
            if not self._channels.membership.tracker.ready:
                raise UnavailableError("this node is starting; try again in a moment")
            answered = wire.encode(await row.handler(request, body))
            return web.Response(body=answered, status=row.status, content_type="application/json")
        except RequestError as error:
            return _refusal(error)
        except StoreUnavailableError:
            return _refusal(store_away())
        except Exception:
            _log.exception("a request failed", request=f"{request.method} {request.match_info.route.resource}")
            return _refusal(InternalError("the gateway failed; its log says why"))

    async def _check(self, request: web.Request) -> bytes:
        """Read the body of a request that the application's secret has signed."""
        app_id = request.match_info.get("app", self._settings.pusher_app_id)
        if app_id != self._settings.pusher_app_id:
            raise NotFoundError("there is no application of this id; see PUSHER_APP_ID")
        body = await self._read(request)
        query, now = list(request.query.items()), self._now() / 1000
        try:
            self._signer.check_request(request.method, request.rel_url.raw_path, query, body, now)
        except SignatureError:
            if request.path == request.rel_url.raw_path:
                raise
            # Libraries sign the path before, or after, what stands between them and the wire escapes it.
            self._signer.check_request(request.method, request.path, query, body, now)
        return body

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._settings.keepalive_timeout):
                return await request.clone(client_max_size=self._max_body).read()
        except web.HTTPRequestEntityTooLarge:
            raise TooLargeError(f"a body may have {self._max_body} bytes") from None
        except web.RequestPayloadError:
            raise InvalidPayloadError("the body is not what its Content-Encoding says") from None
        except OSError:  # among them TimeoutError
            raise InvalidPayloadError("the body did not come, or not in time") from None

    # Events

    async def _events(self, request: web.Request, body: bytes) -> Triggered:
        event = _read(request, body, TriggerEvent)
        self._check_event(event)
        attributes = _attributes(event.info)
        await self._say(event)
        if not attributes:
            return Triggered()
        return Triggered({name: self._info(name, attributes) for name in event.targets})

    async def _batch_events(self, _request: web.Request, body: bytes) -> BatchTriggered:
        events = _decode(body, TriggerBatch).batch
        if len(events) > MAX_BATCH:
            raise InvalidPayloadError(f"The event batch size exceeds the maximum of {MAX_BATCH}: it has {len(events)}")
        for event in events:
            if event.channel is None or event.channels:
                raise InvalidPayloadError("Each event of a batch has one channel")
            self._check_event(event)
        attributes = [_attributes(event.info) for event in events]
        for event in events:
            await self._say(event)
        if not any(attributes):
            return BatchTriggered()
        return BatchTriggered(
            [self._info(event.targets[0], asked) for event, asked in zip(events, attributes, strict=True)]
        )

    async def _channel_events(self, request: web.Request, body: bytes) -> Done:
        """As it was before 2012: the body is the data, and all else is in the query."""
        name, socket_id = request.query.get("name"), request.query.get("socket_id")
        if name is None:
            raise InvalidPayloadError("The query has no name: the body of this call is the event's data, and no more")
        try:
            data = body.decode()
        except UnicodeDecodeError:
            raise InvalidPayloadError("The data is not UTF-8") from None
        event = TriggerEvent(name=name, data=data, channel=request.match_info["channel"], socket_id=socket_id)
        self._check_event(event)
        await self._say(event)
        return Done()

    async def _user_events(self, request: web.Request, body: bytes) -> Done:
        event = _read(request, body, TriggerUserEvent)
        self._check_text(event.name, event.data)
        self._cluster.tell(DEFAULT_TENANT, _user_id(request.match_info["user"]), event.name, _json(event.data))
        return Done()

    def _check_event(self, event: TriggerEvent) -> None:
        self._check_text(event.name, event.data)
        targets = event.targets
        if not 1 <= len(targets) <= MAX_CHANNELS:
            raise InvalidPayloadError(f"An event has 1 to {MAX_CHANNELS} channels; this has {len(targets)}")
        for name in targets:
            if name.startswith(TO_USER):
                _user_id(name.removeprefix(TO_USER))
            else:
                check_name(name)
        if event.socket_id is not None and not is_id(event.socket_id):
            raise InvalidPayloadError("Invalid socket_id: it is the socket_id of a connection")

    def _check_text(self, name: str, data: str) -> None:
        if not 1 <= len(name) <= MAX_EVENT:
            raise InvalidPayloadError(f"Event name too long: it has 1 to {MAX_EVENT} characters; this has {len(name)}")
        if wire.UNPRINTABLE.search(name):
            raise InvalidPayloadError("An event's name has no control characters")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise InvalidPayloadError(f"{name} is an event that only the server itself says; name yours otherwise")
        limit = self._settings.pusher_max_data
        if (size := len(data.encode(errors="surrogatepass"))) > limit:
            raise TooLargeError(
                f"The data content of this event exceeds the allowed maximum ({limit} bytes): it has {size}."
                " See PUSHER_MAX_DATA"
            )

    async def _say(self, event: TriggerEvent) -> None:
        data = _json(event.data)
        users = [name.removeprefix(TO_USER) for name in event.targets if name.startswith(TO_USER)]
        channels = [name for name in event.targets if not name.startswith(TO_USER)]
        if channels:
            await self._channels.say(DEFAULT_TENANT, channels, event.name, data, source=event.socket_id)
        for user_id in users:
            self._cluster.tell(DEFAULT_TENANT, user_id, event.name, data)

    # Who is there

    async def _list(self, request: web.Request, _body: bytes) -> ChannelInfos:
        prefix = request.query.get("filter_by_prefix", "")
        attributes = _attributes(request.query.get("info")) - {"cache"}
        if "user_count" in attributes and not prefix.startswith("presence-"):
            raise InvalidPayloadError(
                "user_count is only known of presence channels: filter_by_prefix must begin with presence-"
            )
        names = self._channels.membership.occupied(DEFAULT_TENANT, prefix)
        return ChannelInfos({name: self._info(name, attributes) for name in names})

    async def _channel(self, request: web.Request, _body: bytes) -> ChannelState:
        name = check_name(request.match_info["channel"])
        attributes = _attributes(request.query.get("info"))
        if "user_count" in attributes and not is_presence(name):
            raise InvalidPayloadError("Cannot retrieve the user count unless the channel is a presence channel")
        if "cache" in attributes and not is_cache(name):
            raise InvalidPayloadError("Cannot retrieve the cache unless the channel is a cache channel")
        known = self._info(name, attributes)
        return ChannelState(
            occupied=self._channels.membership.is_occupied(DEFAULT_TENANT, name),
            user_count=known.user_count,
            subscription_count=known.subscription_count,
            cache=await self._cache(name) if "cache" in attributes else UNSET,
        )

    async def _users(self, request: web.Request, _body: bytes) -> ChannelUsers:
        name = check_name(request.match_info["channel"])
        if not is_presence(name):
            raise InvalidPayloadError("Users can only be retrieved for presence channels")
        return ChannelUsers([ChannelUser(person.user_id) for person in self._channels.members(DEFAULT_TENANT, name)])

    def _info(self, channel: str, attributes: frozenset[str]) -> ChannelInfo:
        """What is known of a channel; a channel that has none of an attribute goes without."""
        if channel.startswith(TO_USER) or not attributes & {"user_count", "subscription_count"}:
            return ChannelInfo()
        occupancy = self._channels.occupancy(DEFAULT_TENANT, channel)
        known = {"user_count": occupancy.users, "subscription_count": occupancy.subscriptions}
        return ChannelInfo(**{name: n for name, n in known.items() if name in attributes and n is not None})

    async def _cache(self, channel: str) -> CachedEvent | UnsetType:
        """The last event of a cache channel; UNSET where there is none."""
        history = await self._channels.history(DEFAULT_TENANT, channel, limit=1)
        if not history.events:
            return UNSET
        last = history.events[-1]
        left = last.at / 1000 + self._settings.channel_history_ttl - self._now() / 1000
        return CachedEvent(to_text(last.data), max(round(left), 0))

    # Users

    async def _terminate(self, request: web.Request, _body: bytes) -> Done:
        await self._cluster.disconnect(DEFAULT_TENANT, _user_id(request.match_info["user"]), self._now())
        return Done()


def _read(request: web.Request, body: bytes, kind: type[Any]) -> Any:
    """Read what a call is given: by its body, by its query, as Pusher allows, or partly by each.

    Raises:
        InvalidPayloadError: it is not of its form, or query and body do not say the same.
    """
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        named = f"{field.name}{LIST}" if field.name in _LISTS else field.name
        if field.name in _LISTS and field.name in request.query:
            raise InvalidPayloadError(f"In a query {field.name} is written {named}=…&{named}=…, once for each")
        if named in request.query:
            given[field.name] = request.query.getall(named) if field.name in _LISTS else request.query[named]
    if not given:
        return _decode(body, kind)
    fields = _decode(body, dict[str, Any]) if body else {}
    for name, value in given.items():
        if fields.setdefault(name, value) != value:
            raise InvalidPayloadError(f"The query has another {name} than the body; give it once")
    try:
        return msgspec.convert(fields, kind)
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"The query and the body are not what this call takes: {error}") from None


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"The body is not what this call takes: {error}") from None


def _json(data: str) -> msgspec.Raw:
    try:
        return from_text(data)
    except UnicodeEncodeError:
        raise InvalidPayloadError("The data has half a character") from None


def _user_id(value: str) -> str:
    if not is_id(value):
        raise InvalidPayloadError("Invalid user id: it has 1 to 128 characters without control characters")
    return value


def _attributes(info: str | None) -> frozenset[str]:
    """What is asked for of channels, separated by commas."""
    asked = frozenset(part for part in (info or "").split(",") if part)
    if unknown := asked - ATTRIBUTES:
        raise InvalidPayloadError(f"info takes {', '.join(sorted(ATTRIBUTES))}; not {min(unknown)!r}")
    return asked


def _refusal(error: RequestError) -> web.Response:
    return web.Response(text=f"{error}\n", status=error.http_status)
