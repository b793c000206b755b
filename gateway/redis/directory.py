"""Where nodes find each other's sessions: one hash for each node, which outlives it by the window."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import structlog

from gateway.errors import StoreUnavailableError
from gateway.redis.commands import Commands
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

KEEP = 5.0
"""Seconds between two times that a node prolongs its hash."""

RETRY = 0.25
"""Seconds to wait after Redis failed, before it is asked again."""

CHUNK = 500
"""Sessions that one command writes."""

_SessionT = TypeVar("_SessionT", bound=Any)


class RedisDirectory(Generic[_SessionT]):
    """A directory that any number of nodes share.

    A session is there as long as it can be recovered: written with its first connection, long before its node may
    die, and deleted when it ends. A node that dies leaves its hash, which Redis lets go of after the window.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        node: this node's name in offsets.
        window: seconds that a lost session is kept.
        kind: the type of a session.
    """

    def __init__(self, client: Client, prefix: str, node: str, window: float, kind: type[_SessionT]) -> None:
        self._commands = Commands(client)
        self._base = f"{base_of(prefix)}sessions:"
        self._key = self._base + node
        self._expires = round((window + 2 * KEEP) * 1000)
        self._decode = msgspec.json.Decoder(kind).decode
        self._known: dict[str, bytes] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    def put(self, session: _SessionT) -> None:
        """Let other nodes find a session."""
        encoded = msgspec.json.encode(session)
        if self._known.get(session.pid) != encoded:
            self._known[session.pid] = encoded
            self._changed.add(session.pid)
            self._wake.set()

    def drop(self, pid: str) -> None:
        """Let nobody find a session any more."""
        if self._known.pop(pid, None) is not None:
            self._changed.add(pid)
            self._wake.set()

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> _SessionT | None:
        """Take a session over from another node; see the port."""
        key = self._base + node
        encoded = await self._commands.send("HGET", key, pid)
        if encoded is None:
            return None
        session: _SessionT = self._decode(encoded)
        if session.owner != owner or not await self._commands.send("HDEL", key, pid):
            return None
        return session

    async def run(self) -> None:
        """Write what changed, and keep it from running out, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP):
                    await self._wake.wait()
            try:
                await self._write()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY)
            except Exception:
                _log.exception("sessions could not be written; trying again")
                await asyncio.sleep(KEEP)

    async def close(self) -> None:
        """Write what changed, and no more."""
        with suppress(Exception):  # the node goes; what is not there cannot be recovered
            await self._write()
        await self._commands.close()

    async def _write(self) -> None:
        self._wake.clear()
        if not self._changed:
            if self._known and not await self._commands.send("PEXPIRE", self._key, self._expires):
                self._changed.update(self._known)  # Redis has lost them
                self._wake.set()
            return
        changed, self._changed = self._changed, set()
        gone = [pid for pid in changed if pid not in self._known]
        there = [pid for pid in changed if pid in self._known]
        calls = [self._commands.enqueue("HDEL", self._key, *each) for each in _chunks(gone)]
        calls += [
            self._commands.enqueue("HSET", self._key, *(part for pid in each for part in (pid, self._known[pid])))
            for each in _chunks(there)
        ]
        calls.append(self._commands.enqueue("PEXPIRE", self._key, self._expires))
        try:
            for call in calls:
                await self._commands.answer(call)
        except BaseException:
            self._changed |= changed
            self._wake.set()
            raise


def _chunks(names: list[str]) -> list[list[str]]:
    return [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
