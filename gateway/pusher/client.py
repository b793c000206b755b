"""One client of the Pusher door: its requests, what it is told, and its user if that is known."""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway.access.auth import Identity, clean_text, find_token
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.channels.authorization import person_named
from gateway.channels.model import ADDED, Asker, Subscriber
from gateway.channels.names import Kind, is_cache, is_encrypted, is_name, kind_of
from gateway.channels.wire import MemberChanged
from gateway.engine.batch import Batch
from gateway.engine.stream import write_all
from gateway.engine.talk import NO_CODE
from gateway.errors import (
    CloseCode,
    ForbiddenError,
    InvalidPayloadError,
    RefusedError,
    RequestError,
    ServerDrainingError,
    SignatureError,
)
from gateway.presence.model import DEFAULT_TENANT, Ending, Event, Profile
from gateway.pusher import frames
from gateway.pusher.codes import Code, closing, code_of, refused_version
from gateway.wire import MAX_EVENT, UserOffline, UserOnline, is_id, is_too_deep

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from aiohttp import web

    from gateway.channels.model import Entry, Joined, Person, Said
    from gateway.connections.live import LiveConnection
    from gateway.delivery.queue import Queued
    from gateway.doors.pusher import PusherDoor
    from gateway.engine.stream import Sink
    from gateway.engine.talk import Wire
    from gateway.runtime.timers import Timer

_log = structlog.get_logger(__name__)

CLIENT_EVENTS: Final = Rate(10, 1.0)
"""How many client events one connection may send: Pusher's limit."""

MAX_CLIENT_EVENT: Final = 10_240
"""Bytes of a client event's data, as JSON: Pusher's limit."""

_GOODBYES: Final = frozenset({1000, NO_CODE})
"""Close codes that count as a goodbye. Not 1001, with which browsers close when a page is left or reloaded: it may be
back in a moment."""

_MAX_NAME: Final = 512
"""Characters of a user's name at the most."""


def batch_of(*texts: bytes) -> Batch:
    """Frames that go out to one or to many."""
    return Batch(texts, b"")


class ChannelCodec:
    """Encodes what happens in channels, once for all of Pusher's clients."""

    write_all = staticmethod(write_all)

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode who came and went."""
        texts = []
        for event, data in events:
            assert isinstance(data, MemberChanged)  # noqa: S101 - by the port
            if event == ADDED:
                texts.append(frames.member_added(data.channel, data.user_id, data.info))
            else:
                texts.append(frames.member_removed(data.channel, data.user_id))
        return batch_of(*texts)

    def encode_said(self, said: Said) -> Batch:
        """Encode what was said."""
        return batch_of(frames.said_in(said))


_CHANNELS: Final = ChannelCodec()


class _UserCodec:
    """Encodes what one signed-in user is told: events for that user, and who of their watchlist comes and goes.

    Other events for native clients are left out, since Pusher's clients do not know them.
    """

    write_all = staticmethod(write_all)

    def __init__(self, client: Client) -> None:
        self._client = client

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch | None:
        changes: dict[str, list[str]] = {"online": [], "offline": []}
        texts = []
        for event, data in events:
            if isinstance(data, UserOnline | UserOffline):
                changes["online" if isinstance(data, UserOnline) else "offline"].append(data.user_id)
            elif event not in _UNHEARD and (user_id := self._client.signed_in) is not None:
                texts.append(frames.to_user(user_id, event, data))
        if any(changes.values()):
            texts.append(frames.watchlist(changes))
        return batch_of(*texts) if texts else None


_UNHEARD: Final = frozenset({Event.CHANGED.value, "connected", "token-expired", "server-draining"})


class ChannelListener:
    """A client, as channels write to it."""

    codec = _CHANNELS

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def removed(self, channel: str) -> None:
        """Tell the client that its backend took it out of a channel."""
        self._wire.send(frames.subscription_error(channel, 403, "AuthError", "The backend ended the subscription"))

    @property
    def sink(self) -> Sink:
        """What is written to."""
        return self._wire.sink

    def write(self, batch: Batch) -> None:
        """Send what was encoded once for many."""
        self._wire.write(batch)


class Client:
    """One client. It is a `Talker` of the engine and, once its user is known, the `Peer` of a live connection.

    Args:
        door: by which it came in.
        request: its handshake.
        key: the application key in its URL.
    """

    wire: Wire
    subscriber: Subscriber

    def __init__(self, door: PusherDoor, request: web.Request, key: str) -> None:
        now = door.loop_time()
        self.socket_id = f"{secrets.randbelow(10**10)}.{secrets.randbelow(10**10)}"
        self.codec = _UserCodec(self)
        self.live: LiveConnection | None = None
        self.signed_in: str | None = None
        """The id of the user who has signed in (Pusher's user authentication); None if nobody has."""
        self._info: object = None
        """The ``user_info`` of the user who has signed in."""
        self._door = door
        self._request = request
        self._key = key
        self._address: str | None = None
        """The address that it counts for as long as its user is not known."""
        self._waiting: list[Queued] = []
        """Notifications for its user, which it is sent when the user has signed in."""
        self._events = TokenBucket(door.events, now)
        self._subscriptions = TokenBucket(door.subscriptions, now)
        self._patience = TokenBucket(door.patience, now)
        self._said = TokenBucket(CLIENT_EVENTS, now)
        self._heard_at = now
        self._timer: Timer | None = None
        self._closed = self._ended = False

    # As a peer of presence

    @property
    def sink(self) -> Sink:
        """What is written to."""
        return self.wire.sink

    def write(self, batch: Batch | None) -> None:
        """Send events for its user; None for none."""
        if batch is not None:
            self.wire.write(batch)

    def hand(self, queued: Queued) -> None:
        """Send a queued notification when the user has signed in, and acknowledge it: Pusher's clients cannot."""
        if self.signed_in is None or self.live is None:
            self._waiting.append(queued)
            return
        self.wire.send(frames.to_user(self.signed_in, queued.event, queued.data))
        self._door.connections.acknowledge(self.live, queued.id)

    def close(self, code: CloseCode) -> None:
        """Close the connection; see the port."""
        self.shut(*closing(code), drop=code is CloseCode.TOO_SLOW)

    # As a talker

    async def begin(self, wire: Wire) -> None:
        """Let the client in, or refuse it."""
        self.wire = wire
        self.subscriber = Subscriber(DEFAULT_TENANT, self.socket_id, ChannelListener(wire))
        door = self._door
        try:
            if refused := self._refusal():
                self.shut(*refused)
                door.counts.refuse("pusher", "INVALID_PAYLOAD")
                return
            await self._let_in()
        except RefusedError as error:
            _log.info("refused", door="pusher", code=error.code, reason=str(error))
            door.counts.refuse("pusher", error.code)
            self.shut(code_of(error), str(error))
            return
        except ForbiddenError:
            return  # it left meanwhile
        if self._closed:
            return
        door.clients.add(self)
        wire.send(frames.established(self.socket_id, door.activity_timeout))
        if self.live is not None:
            door.connections.greet(self.live, hears=False)
        self._timer = door.timers.call_later(door.activity_timeout, self._look)

    def take(self, text: str) -> Coroutine[Any, Any, None] | None:
        """Take one message."""
        if self._closed:
            return None
        self._heard_at = now = self._door.loop_time()
        try:
            frame = frames.read_frame(text)
            event = frame.event
            bucket = self._subscriptions if event in _SUBSCRIPTIONS else self._events
            if wait := bucket.take(now):
                self._over_rate(frame, now, wait)
            elif event == frames.PING:
                self.wire.send(frames.PONG_FRAME)
            elif event != frames.PONG:
                return self._serve(frame)
        except InvalidPayloadError as error:
            if not self._events.take(now) or not self._is_flood(now):
                self.wire.send(frames.error(None, str(error)))
        return None

    def take_bytes(self) -> None:
        """Refuse a message that is no text."""
        self.take("")

    def too_slow(self) -> None:
        """Close the client, which does not read."""
        if not self._closed:
            _log.info("client too slow; closing")
            self._door.counts.too_slow["pusher"] += 1
        self.close(CloseCode.TOO_SLOW)

    async def end(self, code: int | None) -> None:
        """End the connection, in presence and in channels. A second call does nothing."""
        if self._ended:
            return
        self._ended = self._closed = True
        self._door.clients.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._door.connections.quotas.closed(self._address)
        self._address = None
        ending = Ending.GOODBYE if code in _GOODBYES else Ending.LOST
        if self.live is not None:
            await self._door.connections.end(self.live, ending)
        else:
            await self._door.channels.end(self.subscriber, ending)

    def shut(self, code: Code, why: str, *, drop: bool = False) -> None:
        """Close the connection, saying why."""
        if not self._closed:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if not drop:
                self.wire.send(frames.error(code, why))
            self.wire.close(code, why, drop=drop)

    # Being let in

    def _refusal(self) -> tuple[Code, str] | None:
        request, door = self._request, self._door
        if self._key != door.signer.key:
            return Code.NO_SUCH_APP, "There is no application with this key; see PUSHER_APP_KEY"
        if refused := refused_version(request.query.get("protocol")):
            return refused
        if not door.origins.allows(request.headers.get("Origin"), request):
            return Code.UNAUTHORIZED, "This origin is not allowed; see CORS_ALLOWED_ORIGINS"
        return None

    async def _let_in(self) -> None:
        door = self._door
        if door.connections.draining:
            raise ServerDrainingError("this node is shutting down; connect again")
        identity = await self._identity()
        if identity is not None:
            await self._become(identity)
            return
        address = door.connections.quotas.address_of(self._request)
        door.connections.quotas.admit_address(address)
        if not self._ended:
            self._address = address
            door.connections.quotas.opened(address)

    async def _identity(self) -> Identity | None:
        """The client's user, by a token; None if it has none. A bad cookie is ignored: it may be another service's."""
        request, door = self._request, self._door
        token = find_token(request.headers, request.query, {})
        if token is not None:
            return await door.authenticator.identify(token)
        cookie = find_token({}, {}, door.origins.cookies(request))
        try:
            return None if cookie is None else await door.authenticator.identify(cookie)
        except RefusedError as error:
            _log.debug("a cookie is no token; going on without", reason=str(error))
            return None

    async def _become(self, identity: Identity) -> None:
        """Become a connection of this user, who is online by it from now on."""
        door, request = self._door, self._request
        address = door.connections.quotas.address_of(request)
        door.connections.quotas.closed(self._address)  # it is counted again in the same turn
        self._address = None
        self.live = live = await door.connections.open(
            identity,
            connection_id=self.socket_id,
            door="pusher",
            peer=self,
            user_agent=request.headers.get("User-Agent"),
            address=address,
        )
        subscriber = self.subscriber
        subscriber.tenant, subscriber.user_id = identity.tenant, identity.user_id
        subscriber.live, live.subscriber = live, subscriber
        if self._ended:
            await door.connections.end(live, Ending.LOST)
            raise ForbiddenError("the connection has ended")

    async def _become_known(self, user_id: str, info: object) -> None:
        """Be the user's whom the application's backend has signed, where it is nobody's yet."""
        if self.live is not None:
            return
        name = info.get("name") if isinstance(info, dict) else None
        profile = Profile(name=clean_text(name[:_MAX_NAME]) if isinstance(name, str) and name else None)
        identity = Identity(tenant=self.subscriber.tenant, user_id=user_id, profile=profile, expires_at=None)
        try:
            await self._become(identity)
        except RefusedError as error:
            self._door.counts.refuse("pusher", error.code)
            self.shut(code_of(error), str(error))
            raise ForbiddenError(str(error)) from None
        if self.live is not None:
            self._door.connections.greet(self.live, hears=False)

    # That it is there

    def _look(self) -> None:
        """See whether the client was heard of, and ask it where it was not."""
        door = self._door
        silent = door.loop_time() - self._heard_at
        if silent < door.activity_timeout:
            self._timer = door.timers.call_later(door.activity_timeout - silent, self._look)
        else:
            self.wire.send(frames.PING_FRAME)
            self._timer = door.timers.call_later(door.pong_timeout, self._look_again, self._heard_at)

    def _look_again(self, heard_at: float) -> None:
        if self._heard_at > heard_at:
            self._look()
        else:
            self.shut(Code.NO_PONG, "Pong reply not received in time")

    # What it asks for

    def _over_rate(self, frame: frames.ClientFrame, now: float, wait: float) -> None:
        self._door.connections.quotas.refuse("events_per_connection")
        if self._is_flood(now):
            return
        message = f"Too much at a time; try again in {math.ceil(wait)} s"
        if frame.event == frames.SUBSCRIBE:
            channel = frames.read_data(frame, frames.Subscribe).channel
            self.wire.send(frames.subscription_error(channel, 429, "LimitReached", message))
        else:
            client_event = frame.event.startswith(frames.CLIENT_EVENT)
            self.wire.send(frames.error(Code.CLIENT_EVENT_REJECTED if client_event else None, message))

    def _is_flood(self, now: float) -> bool:
        """Count what was refused; one that goes on all the same is closed."""
        if not self._patience.take(now):
            return False
        self.close(CloseCode.RATE_LIMITED)
        return True

    async def _serve(self, frame: frames.ClientFrame) -> None:
        """Do what a client asks for; whatever is wrong with it costs nobody else anything."""
        try:
            self._count()
            if frame.event == frames.SUBSCRIBE:
                await self._subscribe(frames.read_data(frame, frames.Subscribe))
            elif frame.event == frames.UNSUBSCRIBE:
                await self._unsubscribe(frames.read_data(frame, frames.Unsubscribe))
            elif frame.event == frames.SIGNIN:
                await self._sign_in(frames.read_data(frame, frames.Signin))
            elif frame.event.startswith(frames.CLIENT_EVENT):
                await self._say(frame)
            else:
                raise InvalidPayloadError(f"{frame.event[:MAX_EVENT]} is no event that a client may send")
            if self.live is not None and (waiting := self._door.active(self.live)) is not None:
                await waiting
        except RequestError as error:
            self._tell(frames.error(None, str(error)))
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a request failed", door="pusher")
            self._tell(frames.error(None, "the gateway failed; its log says why"))

    def _count(self) -> None:
        """Count a request against what its user, its address and its tenant share."""
        live = self.live
        if live is not None and live.shares is not None:
            self._door.connections.quotas.take(live.shares, self._door.clock() / 1000)

    def _tell(self, text: bytes) -> None:
        if not self._closed:
            self.wire.send(text)

    async def _subscribe(self, asked: frames.Subscribe) -> None:
        channel = asked.channel
        if channel in self.subscriber.channels:
            raise InvalidPayloadError(f"Existing subscription to channel {channel}")
        try:
            if channel.startswith(frames.TO_USER):
                self._subscribe_to_user(channel)
                return
            if not is_name(channel):
                raise InvalidPayloadError("Invalid channel name")
            entry = self._door.channels.entry(self.subscriber, channel, self._asker(channel))
            person = await self._authorized(asked, entry)
            since = 0 if is_cache(channel) else None
            await self._door.channels.join(
                self.subscriber, channel, person, entry=entry, since=since, limit=1, answer=self._answer_subscription
            )
        except SignatureError as error:
            self._tell(frames.subscription_error(channel, error.http_status, "AuthError", str(error)))
        except RequestError as error:
            kind = "AuthError" if isinstance(error, ForbiddenError) else "SubscriptionError"
            self._tell(frames.subscription_error(channel[:MAX_EVENT], error.http_status, kind, str(error)))

    def _subscribe_to_user(self, channel: str) -> None:
        """The user's own channel, which whoever signs in hears without asking; pusher-js asks all the same."""
        if self.signed_in is None or channel != frames.TO_USER + self.signed_in:
            raise ForbiddenError("this channel is for its user, who has to sign in")
        self._tell(frames.succeeded(channel, None))

    def _asker(self, channel: str) -> Asker | None:
        """As whom a client asks for a public channel; None for one that its backend signs for."""
        if kind_of(channel) is not Kind.PUBLIC:
            return None
        identity = None if self.live is None else self.live.identity
        return Asker(tenant=self.subscriber.tenant, connection_id=self.socket_id, identity=identity)

    async def _authorized(self, asked: frames.Subscribe, entry: Entry) -> Person | None:
        """Check that a client may enter a channel, and as whom.

        Raises:
            RequestError: it may not.
        """
        channel, kind = asked.channel, kind_of(asked.channel)
        if entry.asker is not None:
            await self._door.authorizer.person(entry.asker, channel)
            return None
        signed = asked.channel_data if kind is Kind.PRESENCE else None
        if not self._door.signer.is_channel_auth(asked.auth or "", self.socket_id, channel, signed):
            raise SignatureError("The connection is unauthorized: auth is not what the application's secret makes")
        if kind is not Kind.PRESENCE:
            return None
        if signed is None:
            if self.signed_in is None:
                raise InvalidPayloadError("A presence channel takes channel_data, or a user who has signed in")
            return person_named(self.signed_in, self._info)
        data = frames.read_signed(signed, frames.ChannelData, "channel_data")
        person = person_named(data.user_id, data.user_info)
        await self._become_known(person.user_id, data.user_info)
        return person

    def _answer_subscription(self, joined: Joined) -> None:
        channel = joined.channel
        self._tell(frames.succeeded(channel, joined.members))
        if is_cache(channel):
            last = joined.history.events[-1:] if joined.history is not None else ()
            self._tell(frames.said_in(last[0]) if last else frames.cache_miss(channel))
            if not last:
                self._door.channels.on_cache_miss(self.subscriber.tenant, channel)

    async def _unsubscribe(self, asked: frames.Unsubscribe) -> None:
        await self._door.channels.leave(self.subscriber, asked.channel)

    async def _sign_in(self, asked: frames.Signin) -> None:
        if self.signed_in is not None:
            raise InvalidPayloadError("The connection has signed in already")
        if not self._door.signer.is_user_auth(asked.auth, self.socket_id, asked.user_data):
            self.shut(Code.UNAUTHORIZED, "Invalid signature: auth is not what the application's secret makes of it")
            return
        data = frames.read_signed(asked.user_data, frames.UserData, "user_data")
        person = person_named(data.id, data.user_info)
        await self._become_known(person.user_id, data.user_info)
        if self.live is None or self.live.identity.user_id != person.user_id:
            self.shut(Code.UNAUTHORIZED, "The connection is another user's, by its token or a presence channel")
            return
        self.signed_in, self._info = person.user_id, data.user_info
        self._tell(frames.signed_in(asked.user_data))
        waiting, self._waiting = self._waiting, []
        for queued in waiting:
            self.hand(queued)
        if data.watchlist:
            self._watch(self.live, data.watchlist)

    def _watch(self, live: LiveConnection, watchlist: Sequence[int | str]) -> None:
        """Let the client hear who of its user's watchlist comes and goes, and first who is there."""
        user_ids = [*dict.fromkeys(map(str, watchlist))]
        if not all(map(is_id, user_ids)):
            raise InvalidPayloadError("a watchlist has user ids of 1 to 128 characters without control characters")
        door = self._door
        door.connections.watch(live, user_ids)
        statuses = door.sight.statuses(live.identity.tenant, live.identity.user_id, user_ids, door.clock())
        online = [status.user_id for status in statuses if status.online]
        if online:
            self._tell(frames.watchlist({"online": online}))

    async def _say(self, frame: frames.ClientFrame) -> None:
        """Tell the others in a channel what a client says to them."""
        channel = frame.channel
        if channel is None or channel not in self.subscriber.channels:
            raise InvalidPayloadError("Client event rejected: the connection is not in the channel")
        if kind_of(channel) is Kind.PUBLIC or is_encrypted(channel):
            raise InvalidPayloadError("Client event rejected: only for private and presence channels, not encrypted")
        if len(frame.event) > MAX_EVENT:
            raise InvalidPayloadError(f"Client event rejected: a name may have {MAX_EVENT} characters")
        if len(data := bytes(frame.data)) > MAX_CLIENT_EVENT or is_too_deep(data):
            raise InvalidPayloadError(f"Client event rejected: data may have {MAX_CLIENT_EVENT} bytes")
        if self._said.take(self._door.loop_time()):
            self._tell(frames.error(Code.CLIENT_EVENT_REJECTED, "Client event rejected: more than 10 in a second"))
            return
        await self._door.channels.say_to_others(self.subscriber, channel, frame.event, frame.data)


_SUBSCRIPTIONS: Final = frozenset({frames.SUBSCRIBE, frames.UNSUBSCRIBE})
