"""The bus over a Redis stream: nothing is lost while Redis is away, and nothing comes twice."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.nodes.bus import Bus, Message, written
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of
from gateway.redis.stream import Stream, to_position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.redis.connection import Client
    from gateway.redis.stream import Entries

_log = structlog.get_logger(__name__)

LENGTH = 10_000
"""Messages kept in Redis, about, for a node that is cut off; and here, while Redis is away."""

SIZE = 64 << 20
"""Bytes of the messages kept here."""

LARGEST = 1 << 20
"""Bytes of one message: more than waits for a client by default, and little enough to be sent in time."""

CHUNK = 100
"""Messages that are sent at a time."""

CHUNK_SIZE = 1 << 20
"""Bytes of these, about."""

RETRY = 0.25
"""Seconds to wait after Redis failed, before it is asked again."""

RETRY_REFUSED = 5.0
"""The same, where it is there and refuses: that an operator mends, who is told each time."""

WATCH = 2.0
"""Seconds without a message, after which Redis is asked whether the stream is still the one that was read."""

REMEMBERED = 3_600_000
"""Milliseconds that Redis remembers a claim, and a sender's last number, to know what is sent again."""

_PUBLISH = Script((files("gateway.redis") / "publish.lua").read_text())
_decode = msgspec.json.Decoder(Message).decode


class RedisBus(Bus):
    """A bus that any number of nodes share.

    What is published is numbered, and stays in an outbox until Redis has it. Redis knows each sender's last number, so
    that a message which is sent again, because its answer was lost, is there once.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        sender: this node's name, new with each start.
    """

    def __init__(self, client: Client, prefix: str, sender: str) -> None:
        super().__init__()
        self._sender = sender
        self._commands = Commands(client)
        self._base = f"{base_of(prefix)}bus"
        self._position_key = f"{self._base}:position"
        self._stream = Stream(client, self._base)
        self._heard: int | None = None
        """Up to where this node has followed the stream; None before it began."""
        self._started = asyncio.Event()
        self._outbox: deque[bytes] = deque()
        self._size = 0
        """Bytes in the outbox."""
        self._sent = 0
        """How many messages have left it: the number of the last one."""
        self._dropped = 0
        """How many found no place in it since it was full."""
        self._published = asyncio.Event()
        self._progress = asyncio.Condition()

    @property
    def waiting(self) -> int:
        """How many messages have not left this node; see the port."""
        return len(self._outbox)

    def publish(self, topic: str, data: Any) -> None:
        """Tell every other node; see the port."""
        number = self.last + 1
        trace = None if self.trace is None else self.trace()
        message = written(self._sender, topic, msgspec.json.encode(data), number, trace)
        if len(message) > LARGEST:
            raise InvalidPayloadError(f"what goes to other nodes may have {LARGEST} bytes; this has {len(message)}")
        self.last = number
        if len(self._outbox) >= LENGTH or self._size + len(message) > SIZE:
            if not self._dropped:
                self.gaps += 1
                _log.error("Redis is away for too long: messages to other nodes are dropped", waiting=len(self._outbox))
            self._dropped += 1
            return
        self._outbox.append(message)
        self._size += len(message)
        self._published.set()

    async def claim(self, name: str) -> bool:
        """Be the one of all nodes that claim a name; see the port."""
        key = f"{self._base}:claim:{name}"
        await self._commands.send("SET", key, self._sender, "NX", "PX", REMEMBERED)
        return bool(await self._commands.send("GET", key) == self._sender.encode())

    async def start(self) -> None:
        """Take note of what others publish from now on; see the port."""
        if self._heard is None:
            self._heard = self.began = self.told = await self._end()
            self._started.set()

    async def started(self) -> None:
        """Return when this node misses nothing more; see the port."""
        await self._started.wait()

    async def run(self) -> None:
        """Send and hear; see the port."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            if self._subscribers:
                tasks.create_task(self._hear())

    async def flush(self, within: float) -> None:
        """Return when what was published until now has left this node; see the port."""
        last = self._sent + len(self._outbox)
        try:
            async with asyncio.timeout(within), self._progress:
                await self._progress.wait_for(lambda: self._sent >= last)
        except TimeoutError:
            _log.warning("messages to other nodes have not left this one", waiting=last - self._sent)

    async def close(self) -> None:
        """Send no more."""
        await self._stream.close()
        await self._commands.close()

    async def read_back(self, after: int) -> Sequence[tuple[int, Message]] | None:
        """Read what was published after a position; see the port."""
        found: list[tuple[int, Message]] = []
        reached, end = after, await self._end()
        while reached < end:
            entries = await self._stream.read(reached, wait=False)
            if not entries.continues or not entries.bodies:
                return None
            reached = entries.bodies[-1][0]
            try:
                found += [(position, _decode(body)) for position, body in entries.bodies]
            except msgspec.MsgspecError:
                return None
        return found if reached != after or after == end else None

    # Sending

    async def _send(self) -> None:
        while True:
            await self._published.wait()
            self._published.clear()
            while messages := self._next():
                try:
                    await self._append(messages)
                except StoreUnavailableError:
                    await asyncio.sleep(RETRY)
                    continue
                except Exception:
                    _log.exception("messages could not be published; trying again", messages=len(messages))
                    await asyncio.sleep(RETRY_REFUSED)
                    continue
                for message in messages:
                    self._outbox.popleft()
                    self._size -= len(message)
                self._sent += len(messages)
                if self._dropped:
                    _log.error("messages to other nodes were dropped", messages=self._dropped)
                    self._dropped = 0
                async with self._progress:
                    self._progress.notify_all()

    def _next(self) -> list[bytes]:
        """The messages to send now. Sent again, they are the same ones, and perhaps more."""
        messages: list[bytes] = []
        size = 0
        for message in self._outbox:
            size += len(message)
            if messages and (len(messages) == CHUNK or size > CHUNK_SIZE):
                break
            messages.append(message)
        return messages

    async def _append(self, messages: Sequence[bytes]) -> None:
        keys = [self._base, self._position_key, f"{self._base}:sender:{self._sender}"]
        arguments = [LENGTH, self._sent + 1, REMEMBERED, *messages]
        await self._commands.answer(self._commands.start(_PUBLISH, keys, arguments))

    # Hearing

    async def _hear(self) -> None:
        while True:
            try:
                await self.start()
                found = await self._read()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)
                continue
            except Exception:
                _log.exception("the bus cannot be read; trying again")
                await asyncio.sleep(RETRY_REFUSED)
                continue
            if found is None or not found.continues:
                self.gaps += 1
                self.began = self.told = found.bodies[0][0] - 1 if found is not None else self._heard or 0
                _log.warning(
                    "messages of other nodes may have been missed: the bus did not go on from where this node was"
                )
            for position, body in found.bodies if found is not None else ():
                self._heard = position
                try:
                    message = _decode(body)
                except msgspec.MsgspecError:
                    _log.exception("a message on the bus is none")
                    continue
                if message.sender != self._sender:
                    await self.hand_on(message, position)
                elif self.returned is not None:
                    self.returned(message.number, position)
                self.told = position

    async def _read(self) -> Entries | None:
        """Read on as soon as there is something; None where the stream has become another, from whose end to go on.

        One that is behind would be waited at in vain: it was lost, and its successor's clock is behind, too.
        """
        assert self._heard is not None  # noqa: S101 - it has started
        reading = asyncio.ensure_future(self._stream.read(self._heard, wait=True))
        try:
            while not (await asyncio.wait([reading], timeout=WATCH))[0]:
                with suppress(StoreUnavailableError):  # which the reading finds as well
                    end = await self._end()
                    if end < self._heard and not reading.done():
                        self._heard = end
                        return None
            return reading.result()
        finally:
            reading.cancel()

    async def _end(self) -> int:
        return to_position(await self._commands.send("GET", self._position_key) or b"0-0")
