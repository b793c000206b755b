"""Laravel Echo's door: Socket.IO's namespace ``/``, as ``broadcaster: 'socket.io'`` speaks with it.

A page enters a channel by ``subscribe``, with the headers by which its backend knows it. Its user is known by a token
in its handshake, by one among those headers, or by the answer of the application's authorizer. From then on the user
is online.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway import wire
from gateway.access.auth import Identity, find_token
from gateway.access.buckets import TokenBucket
from gateway.channels.events import laravel_name
from gateway.channels.model import ADDED, Asker, Subscriber
from gateway.channels.names import Kind, is_encrypted, is_name, kind_of
from gateway.channels.wire import MemberChanged
from gateway.engine.namespace import EventCodec, Namespace
from gateway.errors import (
    CloseCode,
    ForbiddenError,
    InvalidPayloadError,
    RateLimitedError,
    RefusedError,
    RequestError,
    UnknownEventError,
)
from gateway.presence.model import DEFAULT_TENANT, Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from aiohttp import web

    from gateway.access.entrance import Entrance
    from gateway.channels.authorization import Authorizer
    from gateway.channels.channels import Channels
    from gateway.channels.model import Person, Said
    from gateway.connections.live import LiveConnection
    from gateway.delivery.queue import Queued
    from gateway.engine.batch import Batch
    from gateway.engine.namespace import SocketPeer

_log = structlog.get_logger(__name__)

NAMESPACE = "/"

WHISPER = "client-"
"""The prefix of client events, which members of a channel send each other."""

MAX_WHISPER = 10_240
"""Bytes of a client event's data, as JSON; Pusher's limit. Large ones would fill the buffers of a whole channel."""

_FORWARDED = ("Authorization", "X-Csrf-Token")
"""The headers of ``subscribe`` that are passed on to the authorizer, besides the page's cookies."""

_UNHEARD = frozenset({"connected", "user-online", "user-offline", "user-status-changed"})
"""Events for native clients that Echo does not know."""


class EchoCodec(EventCodec):
    """Encodes what happens in channels as Laravel Echo hears it: an event, its channel, and the data."""

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode who came and went, and what users are notified of."""
        told: list[tuple[object, ...]] = []
        for event, data in events:
            if isinstance(data, MemberChanged):
                name = "presence:joining" if event == ADDED else "presence:leaving"
                told.append((name, data.channel, _member(data.user_id, data.info)))
            elif event not in _UNHEARD:
                told.append((event, data))
        return self.batch(told)

    def encode_said(self, said: Said) -> Batch:
        """Encode what was said in a channel."""
        return self.batch([(laravel_name(said.event), said.channel, said.data)])


_ELSEWHERE = wire.Failure(
    error=wire.ErrorBody(
        code=UnknownEventError.code,
        message="no such request in the namespace /, which is Laravel Echo's: connect to /ws/messages",
    )
)


def _member(user_id: str, info: msgspec.Raw) -> dict[str, object]:
    return {"user_id": user_id, "user_info": info}


class _Subscription(msgspec.Struct):
    """What ``subscribe`` and ``unsubscribe`` bring."""

    channel: str
    auth: Any = None


class _Whisper(msgspec.Struct):
    """What ``client event`` brings."""

    channel: str
    event: str
    data: Any = None


class _Page:
    """Writes to a page.

    Args:
        peer: its connection.
        codec: encodes events for it.
        acknowledge: called with the id of a notification that was queued, when it is sent: Echo acknowledges nothing.
    """

    def __init__(self, peer: SocketPeer, codec: EchoCodec, acknowledge: Callable[[str], None]) -> None:
        self.codec = codec
        self.sink = peer.sink
        self.write = peer.write
        self.close = peer.close
        self._acknowledge = acknowledge

    def removed(self, channel: str) -> None:
        """Tell it that it was taken out of a channel, in the way that it is told that it may not enter one."""
        self.write(self.codec.batch([("subscription_error", channel, ForbiddenError.http_status)]))

    def hand(self, queued: Queued) -> None:
        """Send what waited for its user."""
        self.write(self.codec.encode([(queued.event, queued.data)]))
        self._acknowledge(queued.id)


class _Client:
    """One page: its connection, its user if that is known, and its place in channels."""

    def __init__(self, page: _Page, subscriber: Subscriber, request: web.Request, limiter: TokenBucket) -> None:
        self.page = page
        self.subscriber = subscriber
        self.request = request
        self.limiter = limiter
        self.identity: Identity | None = None
        self.address: str | None = None
        """The address that it counts for as long as its user is not known; None if there is no limit per address."""

    @property
    def live(self) -> LiveConnection | None:
        return self.subscriber.live


class EchoDoor(Namespace):
    """Lets pages with Laravel Echo in, and answers their requests.

    Args:
        entrance: what this door shares with the other doors.
        channels: the executor of channels.
        authorizer: decides who may be in which channel.
    """

    def __init__(self, entrance: Entrance, channels: Channels, authorizer: Authorizer) -> None:
        super().__init__(NAMESPACE)
        self._codec = EchoCodec(NAMESPACE)
        self._entrance = entrance
        self._settings = entrance.settings
        self._connections = entrance.connections
        self._channels = channels
        self._authorizer = authorizer
        self._clock = entrance.clock
        self._clients: dict[str, _Client] = {}
        self._requests = {
            "subscribe": partial(self._read, _Subscription, self._subscribe),
            "unsubscribe": partial(self._read, _Subscription, self._unsubscribe),
            "client event": partial(self._read, _Whisper, self._whisper),
        }

    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
        """Let a page in; see the port. One without a token has `handshake_timeout` to show who it is."""
        token = find_token(request.headers, request.query, self._entrance.origins.cookies(request), auth)
        limiter = TokenBucket(self._settings.rate_limit_events, self._clock() / 1000)
        page = _Page(self.peer(sid), self._codec, partial(self._acknowledge, sid))
        client = _Client(page, Subscriber(DEFAULT_TENANT, sid, page), request, limiter)
        try:
            if token is None:
                self._count(client)
            else:
                await self._identify(client, await self._entrance.authenticator.identify(token))
        except RefusedError as error:
            _log.info("refused", door="echo", code=error.code, reason=str(error))
            self._entrance.counts.refuse("echo", error.code)
            raise Refusal(str(error), error.told()) from None
        self._clients[sid] = client
        if token is None:
            self._entrance.timers.call_later(self._settings.handshake_timeout, self._close_if_nobodys, sid)

    async def on_connected(self, sid: str) -> None:
        """Greet the page, if its user is known; see the port."""
        self._greet(self._clients[sid])

    def live(self, sid: str) -> LiveConnection | None:
        """Whose client it is; see the port."""
        client = self._clients.get(sid)
        return None if client is None else client.live

    async def on_disconnect(self, sid: str, reason: str) -> None:
        """Take the page out of its channels, and end its connection; see the port."""
        client = self._clients.pop(sid, None)
        if client is None:
            return
        self._count_no_more(client)
        ending = Ending.GOODBYE if reason == self.server.reason.CLIENT_DISCONNECT else Ending.LOST
        if client.live is None:
            await self._channels.end(client.subscriber, ending)
        else:
            await self._connections.end(client.live, ending)

    def on_request(
        self,
        sid: str,
        event: str,
        args: list[Any],
        *,
        acknowledged: bool,
    ) -> Coroutine[Any, Any, None] | wire.Failure | None:
        """Answer a request; see the port.

        An unknown event is ignored, as Laravel's own server does, unless the client waits for an acknowledgement. Echo
        never does: it is a client that has forgotten the namespace, and is told so.
        """
        client, handler = self._clients[sid], self._requests.get(event)
        if handler is not None:
            return handler(client, args)
        return _ELSEWHERE if acknowledged else None

    # What a page asks for

    async def _read(self, kind: type[Any], handler: Any, client: _Client, args: list[Any]) -> None:
        """Decode a request, count it against the rate limit, and handle it. Errors are told to its page only."""
        channel = ""
        try:
            body = msgspec.convert(args[0] if args else None, kind)
            channel = body.channel
            self._admit(client)
            await handler(client, body)
        except (RequestError, RefusedError) as error:
            self._refuse(client, channel, error.http_status, str(error))
        except (msgspec.ValidationError, RecursionError) as error:
            self._refuse(client, channel, 422, str(error))
        except Exception:
            _log.exception("a request failed", door="echo")
            self._refuse(client, channel, 500, "the gateway failed; its log says why")

    def _refuse(self, client: _Client, channel: str, status: int, why: str) -> None:
        """Tell a page that it is not in a channel, as Laravel's own server does."""
        _log.debug("refused", door="echo", channel=channel, status=status, reason=why)
        self._emit(client, "subscription_error", channel, status)

    async def _subscribe(self, client: _Client, asked: _Subscription) -> None:
        channel = asked.channel
        if not is_name(channel):
            raise InvalidPayloadError("this is not a valid name of a channel")
        headers = self._headers(client, asked.auth)
        if client.identity is None:
            await self._identify_by(client, headers)
        if client.identity is None and kind_of(channel) is Kind.PUBLIC and not self._settings.echo_anonymous:
            raise ForbiddenError("a token is needed, or ECHO_ANONYMOUS")
        subscriber = client.subscriber
        asker = Asker(
            tenant=subscriber.tenant,
            connection_id=subscriber.connection_id,
            identity=client.identity,
            headers=headers,
        )
        entry = self._channels.entry(subscriber, channel, asker)
        person = await self._authorizer.person(asker, channel)
        subscriber.asker = asker
        if person is not None and client.identity is None:
            await self._identify(client, _identity_of(subscriber.tenant, person))
            self._greet(client)
        joined = await self._channels.join(subscriber, channel, person, entry=entry)
        if joined.members is not None:
            members = [_member(each.user_id, each.info) for each in joined.members]
            self._emit(client, "presence:subscribed", channel, members)

    async def _unsubscribe(self, client: _Client, asked: _Subscription) -> None:
        await self._channels.leave(client.subscriber, asked.channel)

    async def _whisper(self, client: _Client, said: _Whisper) -> None:
        subscriber = client.subscriber
        if said.channel not in subscriber.channels or kind_of(said.channel) is Kind.PUBLIC:
            return  # as Laravel's server does: client events are for those who are in a private channel
        if is_encrypted(said.channel):
            return  # its members could not decrypt it
        data = msgspec.Raw(wire.encode_given(said.data))
        if not said.event.startswith(WHISPER) or len(said.event) > wire.MAX_EVENT or len(bytes(data)) > MAX_WHISPER:
            return
        if client.identity is not None:
            try:
                self._connections.quotas.admit_typing(client.identity, self._clock() / 1000)
            except RateLimitedError:
                return  # Echo knows no error but `subscription_error`, which would say that it is not in the channel
        await self._channels.say_to_others(subscriber, said.channel, said.event, data)

    # Who it is

    def _headers(self, client: _Client, auth: object) -> Mapping[str, str]:
        """The headers that the authorizer is asked with: some that the page gave with the request, and its cookies."""
        named = auth.get("headers") if isinstance(auth, dict) else None
        headers = {
            str(name).title(): value
            for name, value in (named.items() if isinstance(named, dict) else ())
            if isinstance(value, str) and value.isprintable()
        }
        cookie = client.request.headers.get("Cookie")
        found: dict[str, str] = {name: headers[name] for name in _FORWARDED if name in headers}
        if cookie is not None and self._entrance.origins.cookies(client.request):
            found["Cookie"] = cookie
        return found

    async def _identify_by(self, client: _Client, headers: Mapping[str, str]) -> None:
        """Identify a page by a token among its headers. One that is not a JWT may be one that the authorizer knows."""
        token = find_token(headers, {}, {})
        if token is None:
            return
        try:
            identity = await self._entrance.authenticator.identify(token)
        except RefusedError:
            if self._settings.channel_auth_url is None:
                raise
            return
        await self._identify(client, identity)
        self._greet(client)

    def _count(self, client: _Client) -> None:
        """Count a page without a known user against the limit of its address, like any other connection.

        Raises:
            TooManyConnectionsError: the address has as many as allowed.
        """
        quotas = self._connections.quotas
        address = quotas.address_of(client.request)
        quotas.admit_address(address)
        quotas.opened(address)
        client.address = address

    def _count_no_more(self, client: _Client) -> None:
        address, client.address = client.address, None
        self._connections.quotas.closed(address)

    async def _identify(self, client: _Client, identity: Identity) -> None:
        subscriber = client.subscriber
        counted = client.address is not None
        self._count_no_more(client)  # `_open` counts it again
        try:
            live = await self._open(client, identity)
        except RefusedError:
            if counted and not subscriber.ended:
                self._count(client)
            raise
        if subscriber.ended:  # while it was opened: nobody else would end it
            await self._connections.end(live, Ending.LOST)
            raise ForbiddenError("the connection has ended")
        before = tuple(subscriber.channels)
        if identity.tenant != subscriber.tenant:  # before its user was known it was in channels of the default tenant
            for channel in before:
                await self._channels.leave(subscriber, channel)
        client.identity = identity
        live.subscriber, subscriber.live = subscriber, live
        subscriber.tenant, subscriber.user_id = identity.tenant, identity.user_id
        if subscriber.ended:
            await self._connections.end(live, Ending.LOST)
            raise ForbiddenError("the connection has ended")
        await self._enter_again(client, [channel for channel in before if channel not in subscriber.channels])

    async def _open(self, client: _Client, identity: Identity) -> LiveConnection:
        return await self._connections.open(
            identity,
            connection_id=client.subscriber.connection_id,
            door="echo",
            peer=client.page,
            user_agent=client.request.headers.get("User-Agent"),
            address=self._connections.quotas.address_of(client.request),
        )

    async def _enter_again(self, client: _Client, channels: Sequence[str]) -> None:
        """Put a page that has turned out to be of another tenant into the channels with the same names there."""
        subscriber = client.subscriber
        asker = Asker(tenant=subscriber.tenant, connection_id=subscriber.connection_id, identity=client.identity)
        for channel in channels:
            entry = self._channels.entry(subscriber, channel, asker)
            try:
                person = await self._authorizer.person(asker, channel)
                await self._channels.join(subscriber, channel, person, entry=entry)
            except RequestError:
                client.page.removed(channel)

    def _greet(self, client: _Client) -> None:
        if client.live is not None:
            self._connections.greet(client.live, hears=False)

    def _admit(self, client: _Client) -> None:
        now = self._clock()
        if client.live is not None:
            self._connections.admit_request(client.live, now)
        elif wait := client.limiter.take(now / 1000):
            raise ForbiddenError(f"too many requests; the next is taken in {wait:.1f} s")

    def _acknowledge(self, sid: str, item_id: str) -> None:
        client = self._clients.get(sid)
        if client is not None and client.live is not None:
            self._connections.acknowledge(client.live, item_id)

    def _close_if_nobodys(self, sid: str) -> None:
        client = self._clients.get(sid)
        if client is not None and client.identity is None and not client.subscriber.channels:
            client.page.close(CloseCode.TOKEN_REFUSED)

    def _emit(self, client: _Client, *event: object) -> None:
        client.page.write(self._codec.batch([event]))


def _identity_of(tenant: str, person: Person) -> Identity:
    """Whom an authorizer vouches for."""
    return Identity(tenant=tenant, user_id=person.user_id, profile=person.profile, expires_at=None)
