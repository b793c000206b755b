"""Who is typing: told when somebody begins and when they end, and ended after a while if nobody says so."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from gateway import wire
from gateway.channels.events import USER_TYPING
from gateway.channels.messages_wire import UserTyping
from gateway.errors import UnavailableError

if TYPE_CHECKING:
    import asyncio

    from gateway.channels.channels import Channels
    from gateway.channels.model import Person, Said, Subscriber
    from gateway.presence.clock import Clock
    from gateway.runtime.timers import Scheduler

EXPIRES = 6.0
"""Seconds after the last report that somebody types, after which they count as having ended."""

EVERY = 2.0
"""Seconds in which it is reported only once that somebody goes on typing."""

_Key = tuple[str, str, str]
"""Tenant, channel and user id."""


class _Typist:
    """Somebody who types at a connection to this node."""

    __slots__ = ("name", "sources", "told_at")

    def __init__(self, name: str) -> None:
        self.name = name
        self.sources: set[str | None] = set()
        """The ids of the connections at which they type; None stands for HTTP."""
        self.told_at = float("-inf")


class Typists:
    """Tells channels who is typing.

    The typist's node says when they end. If it does not, because it was killed, say, each other node tells its own
    clients when it has heard nothing for `EXPIRES` seconds.

    Args:
        channels: where it is told.
        scheduler: the event loop.
        clock: the time.
    """

    def __init__(self, channels: Channels, scheduler: Scheduler, clock: Clock) -> None:
        self._channels = channels
        self._scheduler = scheduler
        self._clock = clock
        self._typists: dict[_Key, _Typist] = {}
        self._by_source: dict[str, set[_Key]] = {}
        self._ends: dict[_Key, asyncio.TimerHandle] = {}
        """The timers that tell this node's clients that somebody has ended, for each whom they heard to type."""
        channels.on_said[USER_TYPING] = self._hear
        channels.on_end.append(self.end)

    async def type(self, tenant: str, channel: str, person: Person, *, is_typing: bool, source: str | None) -> None:
        """Tell a channel that somebody types, or has ended.

        Args:
            tenant: whose channel.
            channel: which.
            person: who.
            is_typing: whether they type.
            source: the id of the connection at which they type, which is not sent the event; None for HTTP.

        Raises:
            UnavailableError: the store is away.
        """
        key = (tenant, channel, person.user_id)
        typist = self._typists.get(key)
        if not is_typing:
            if typist is not None:
                self._drop(key, typist, source)
                await self._stop(key, typist, source)
            return
        if typist is None:
            typist = self._typists[key] = _Typist(person.profile.name or person.user_id)
        typist.sources.add(source)
        if source is not None:
            self._by_source.setdefault(source, set()).add(key)
        now = self._scheduler.time()
        if now - typist.told_at < EVERY:
            return
        typist.told_at = now
        try:
            await self._say(key, typist, source, is_typing=True)
        except BaseException:
            self._forget(key, typist)
            raise

    async def stop(self, tenant: str, channel: str, user_id: str, source: str | None) -> None:
        """End somebody's typing, at all their connections to this node: they have sent what they typed.

        Raises:
            UnavailableError: the store is away.
        """
        key = (tenant, channel, user_id)
        typist = self._typists.get(key)
        if typist is not None:
            for each in tuple(typist.sources):
                self._drop(key, typist, each)
            await self._stop(key, typist, source)

    async def end(self, subscriber: Subscriber) -> None:
        """End the typing at a connection that has ended."""
        for key in tuple(self._by_source.get(subscriber.connection_id, ())):
            typist = self._typists.get(key)
            if typist is None:  # it has ended meanwhile
                continue
            self._drop(key, typist, subscriber.connection_id)
            with suppress(UnavailableError):  # every node ends it by itself after `EXPIRES`
                await self._stop(key, typist, None)

    async def _stop(self, key: _Key, typist: _Typist, source: str | None) -> None:
        if not typist.sources and self._typists.get(key) is typist:
            del self._typists[key]
            await self._say(key, typist, source, is_typing=False)

    def _drop(self, key: _Key, typist: _Typist, source: str | None) -> None:
        typist.sources.discard(source)
        keys = None if source is None else self._by_source.get(source)
        if source is not None and keys is not None:
            keys.discard(key)
            if not keys:
                del self._by_source[source]

    def _forget(self, key: _Key, typist: _Typist) -> None:
        for source in tuple(typist.sources):
            self._drop(key, typist, source)
        if self._typists.get(key) is typist:
            del self._typists[key]

    async def _say(self, key: _Key, typist: _Typist, source: str | None, *, is_typing: bool) -> None:
        tenant, channel, user_id = key
        body = UserTyping(user_id, typist.name, is_typing, wire.timestamp(self._clock()))
        await self._channels.say(tenant, [channel], USER_TYPING, body, sender=user_id, source=source, keep=False)

    # Hearing of it

    def _hear(self, said: Said) -> None:
        """Start a timer for somebody who is reported to type, in case nobody says when they end."""
        if said.sender is None:  # said by a backend, which has to end it itself
            return
        key = (said.tenant, said.channel, said.sender)
        if (timer := self._ends.pop(key, None)) is not None:
            timer.cancel()
        try:
            body = msgspec.json.decode(said.data, type=UserTyping)
        except msgspec.DecodeError:
            return
        if body.is_typing:
            self._ends[key] = self._scheduler.call_at(
                self._scheduler.time() + EXPIRES, partial(self._expire, key, said, body)
            )

    def _expire(self, key: _Key, said: Said, body: UserTyping) -> None:
        del self._ends[key]
        typist = self._typists.get(key)
        if typist is not None:
            self._forget(key, typist)
        over = msgspec.structs.replace(body, is_typing=False, timestamp=wire.timestamp(self._clock()))
        self._channels.tell(msgspec.structs.replace(said, data=msgspec.Raw(wire.encode(over)), at=self._clock()))

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._ends.values():
            timer.cancel()
        self._ends.clear()
