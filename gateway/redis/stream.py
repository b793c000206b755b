"""A stream whose readers know what they missed: each entry names the one before it.

An entry has the fields ``prev``, the id of the entry before, and ``body``. Ids are Redis's own and grow with its
clock, so those of a stream that was lost and begun again, or that forked in a failover, do not come twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.redis.commands import unavailable
from gateway.redis.connection import connection_errors, pipeline
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from gateway.redis.connection import Client

BLOCK = 1.0
"""Seconds that one read waits. Half a second less than `commands.TIMEOUT` at the most: Redis ends it by ticks."""

COUNT = 1000
"""Entries in one read: a reader far behind takes them in pieces of some hundred kilobytes."""

_SEQUENCE_BITS = 20
"""Of the position: entries in one millisecond, of which one Redis appends some hundred."""


def to_position(entry_id: bytes | str) -> int:
    """The position of an entry, as one number that grows along the stream; ``0-0`` is 0."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, sequence = text.partition("-")
    return (int(milliseconds) << _SEQUENCE_BITS) + int(sequence)


def to_id(position: int) -> str:
    """The id of the entry at a position."""
    return f"{position >> _SEQUENCE_BITS}-{position & ((1 << _SEQUENCE_BITS) - 1)}"


def time_of(position: int) -> int:
    """When the entry at a position was appended, in Unix milliseconds by Redis's clock."""
    return position >> _SEQUENCE_BITS


class Entries(msgspec.Struct, frozen=True):
    """What a read found."""

    bodies: list[tuple[int, bytes]]
    """Position and body of each entry, in order."""
    continues: bool
    """False where entries are missing between what the reader had and these."""


class Stream:
    """One stream, to be read.

    Args:
        client: what it is read by; each read that waits takes a connection of its own.
        key: where it is.
    """

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self._reading: set[asyncio.Task[Any]] = set()

    async def read(self, after: int, *, wait: bool) -> Entries:
        """Read on.

        Args:
            after: the position of the last entry the caller has.
            wait: return only when there is an entry; otherwise return at once, possibly nothing.

        Raises:
            StoreUnavailableError: Redis cannot be reached.
        """
        block = ["BLOCK", round(BLOCK * 1000)] if wait else []
        command = ["XREAD", "COUNT", COUNT, *block, "STREAMS", self._key, to_id(after)]
        entries: list[tuple[bytes, dict[bytes, bytes]]] = []
        while True:
            try:
                [answer] = await self._cancellable(pipeline(self._client, [command]))
                if isinstance(answer, Exception):
                    raise answer
            except connection_errors as error:
                raise unavailable(error) from error
            if answer:
                [[_key, entries]] = answer
            if entries or not wait:
                break
        return Entries(
            [(to_position(entry_id), fields.get(b"body", b"")) for entry_id, fields in entries],
            not entries or to_position(entries[0][1].get(b"prev", b"0-0")) == after,
        )

    async def close(self) -> None:
        """End what still reads; whoever waits for it has been cancelled by their own side."""
        await end(list(self._reading))

    async def _cancellable(self, command: Awaitable[Any]) -> Any:
        """Await a command of redis-py, which may swallow a cancellation."""
        task = asyncio.ensure_future(command)
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody is left to hear it
            raise
        return task.result()
