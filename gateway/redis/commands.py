"""Commands to Redis: those of one moment go out together, in order, and each hears its own answer."""

from __future__ import annotations

import asyncio
import time
from hashlib import sha1
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from redis.exceptions import NoScriptError

from gateway.errors import StoreUnavailableError
from gateway.redis.connection import connection_errors, pipeline
from gateway.redis.scripts import stripped
from gateway.runtime.measures import SIZES, Histogram
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.redis.connection import Client

TIMEOUT = 2.0
"""Seconds that Redis may take for an answer before the connection counts as dead: a fraction of a node's lease."""

BATCH = 500
"""Commands in one round trip at the most: what comes after them need not wait for more than some milliseconds."""


class Script:
    """A Lua script, by its text.

    It is sent `stripped`: to a Redis that was restarted each goes whole, over a link that may be slow.
    """

    def __init__(self, text: str) -> None:
        self.text = stripped(text)
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Call:
    """One command on its way."""

    __slots__ = ("arguments", "future", "keys", "script", "sent")

    def __init__(self, script: Script | None, keys: list[Any], arguments: list[Any]) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent = False

    def packed(self) -> list[Any]:
        """The command as it is sent."""
        if self.script is None:
            return self.arguments
        return ["EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments]


class RoundTrips:
    """What a client of Redis has done, for all who send by it; what waits for an entry of a stream is not among it."""

    def __init__(self) -> None:
        self.seconds = Histogram()
        """Seconds from a batch to its answers."""
        self.commands = Histogram(SIZES)
        """How many commands a batch has."""
        self.failures = 0
        """Batches that were not answered, or not in time."""
        self.senders: WeakSet[Commands] = WeakSet()

    @property
    def waiting(self) -> int:
        """How many commands wait to be sent."""
        return sum(sender.waiting for sender in self.senders)


_round_trips: WeakKeyDictionary[Any, RoundTrips] = WeakKeyDictionary()


def round_trips_of(client: Client) -> RoundTrips:
    """What a client has done."""
    return _round_trips.setdefault(client, RoundTrips())


class Commands:
    """Sends commands, one batch at a time: while one is under way, the next gathers.

    A node's commands so reach Redis in the order in which they were given, and the busier it is, the less each costs.

    Args:
        client: what they are sent by.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[Call] = []
        self._sender: asyncio.Task[None] | None = None
        self._round_trips = round_trips_of(client)
        self._round_trips.senders.add(self)

    @property
    def waiting(self) -> int:
        """How many commands wait to be sent."""
        return len(self._waiting)

    def start(self, script: Script, keys: list[Any], arguments: list[Any]) -> Call:
        """Queue a script; its keys and arguments may grow until it is sent."""
        return self._queue(Call(script, keys, arguments))

    def enqueue(self, *command: Any) -> Call:
        """Queue a plain command."""
        return self._queue(Call(None, [], list(command)))

    async def send(self, *command: Any) -> Any:
        """Send a plain command, and await its answer."""
        return await self.answer(self.enqueue(*command))

    async def answer(self, call: Call) -> Any:
        """Await what a command was answered.

        Raises:
            StoreUnavailableError: Redis cannot be reached or cannot serve. Whether the command was done is not known.
            redis.exceptions.ResponseError: the script failed, or says so.
        """
        return await asyncio.shield(call.future)  # others may have their part in it

    async def close(self) -> None:
        """Send no more; what waits fails."""
        if self._sender is not None:
            await end([self._sender])
        _fail(self._waiting, StoreUnavailableError("the connection to Redis is closed"))
        self._waiting = []

    def _queue(self, call: Call) -> Call:
        self._waiting.append(call)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return call

    async def _send(self) -> None:
        try:
            await self._send_all()
        finally:
            self._sender = None

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            for call in batch:
                call.sent = True
            try:
                await self._deliver(batch)
            except asyncio.CancelledError:
                _fail(batch, StoreUnavailableError("the connection to Redis is closed"))
                raise
            except connection_errors as error:
                self._round_trips.failures += 1
                # What waits behind would find the same, a time-out later.
                _fail([*batch, *self._waiting], unavailable(error))
                self._waiting = []
            except Exception as error:  # one of them cannot even be sent
                _fail(batch, error)

    async def _deliver(self, batch: list[Call]) -> None:
        began = time.perf_counter()
        replies = await pipeline(self._client, [call.packed() for call in batch])
        self._round_trips.seconds.observe(time.perf_counter() - began)
        self._round_trips.commands.observe(len(batch))
        unknown = [call for call, reply in zip(batch, replies, strict=True) if isinstance(reply, NoScriptError)]
        if unknown:  # Redis is new, or restarted: none of its scripts is there, and those that failed keep their order
            retried = dict(zip(map(id, unknown), await pipeline(self._client, _with_texts(unknown)), strict=True))
            replies = [retried.get(id(call), reply) for call, reply in zip(batch, replies, strict=True)]
        for call, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                _fail([call], _meaning(reply))
            else:
                call.future.set_result(reply)


def _with_texts(calls: Sequence[Call]) -> list[list[Any]]:
    """The calls as commands; the first of each script brings its text, and the others find it there."""
    known: set[str] = set()
    commands = []
    for call in calls:
        command = call.packed()
        if call.script is not None and call.script.sha not in known:
            known.add(call.script.sha)
            command[:2] = ["EVAL", call.script.text]
        commands.append(command)
    return commands


def unavailable(error: Exception) -> StoreUnavailableError:
    """What one of `connection_errors` means to those who know of a store only."""
    return StoreUnavailableError(str(error) or type(error).__name__)


def _meaning(error: Exception) -> Exception:
    return unavailable(error) if isinstance(error, connection_errors) else error


def _fail(calls: Sequence[Call], error: Exception) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(error)
            call.future.exception()  # not every caller is still there to hear it


def pairs_of(reply: Any) -> dict[bytes, bytes]:
    """A reply of names and values as a dict. Its shape depends on the protocol: a dict, a flat list, or pairs."""
    if isinstance(reply, dict):
        return reply
    if reply and isinstance(reply[0], (list, tuple)):
        return dict(reply)
    return dict(zip(reply[::2], reply[1::2], strict=True))
