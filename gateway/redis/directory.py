"""Where nodes find each other's sessions: one hash for each node, which outlives it by the window."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import structlog

from gateway.errors import StoreUnavailableError
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

KEEP = 5.0
"""Seconds between two times that a node prolongs its hash."""

RETRY = 0.25
"""Seconds to wait after Redis failed, before it is asked again."""

CHUNK = 500
"""Sessions that one command writes."""

_WRITE = Script((files("gateway.redis") / "sessions.lua").read_text())

_SessionT = TypeVar("_SessionT", bound=Any)


class RedisDirectory(Generic[_SessionT]):
    """A directory that any number of nodes share.

    A session is there as long as it can be recovered: written with its first connection, long before its node may
    die, and deleted when it ends. A node that dies leaves its hash, which Redis lets go of after the window.

    Each change has a number, so that one which was on its way when it was given up, and tried again, undoes nothing.

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
        self._changed_by: asyncio.Future[None] | None = None
        """Done when what has changed by now is written; None where nobody waits for that."""
        self._writing: set[str] = set()
        self._written: asyncio.Future[None] | None = None
        """The same of what is being written."""
        self._listed: set[str] = set()
        """Of which Redis may have something."""
        self._failing = False
        """Whether Redis could not be told last."""
        self._number = 0
        self._one = asyncio.Lock()
        self._wake = asyncio.Event()

    def put(self, session: _SessionT) -> None:
        """Let other nodes find a session."""
        encoded = msgspec.json.encode(session)
        if self._known.get(session.pid) != encoded:
            self._known[session.pid] = encoded
            self._change(session.pid)

    def drop(self, pid: str) -> None:
        """Let nobody find a session any more."""
        if self._known.pop(pid, None) is not None:
            self._change(pid)

    def settling(self, pid: str) -> Awaitable[None] | None:
        """Wait until what was put or dropped of a session is so for other nodes; see the port."""
        if pid in self._changed:
            if self._failing and pid not in self._listed:
                return None
            if self._changed_by is None:
                self._changed_by = asyncio.get_running_loop().create_future()
            return asyncio.shield(self._changed_by)
        if pid in self._writing:
            if self._written is None:
                self._written = asyncio.get_running_loop().create_future()
            return asyncio.shield(self._written)
        return None

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

    def _change(self, pid: str) -> None:
        self._changed.add(pid)
        self._wake.set()

    async def _write(self) -> None:
        async with self._one:
            await self._write_next()

    async def _write_next(self) -> None:
        self._wake.clear()
        # While Redis is away nothing of a new session goes there, so that nobody need wait until that is so.
        changed = self._changed & self._listed if self._failing else self._changed
        if not (changed or self._known or self._failing):
            return
        gone, there = changed - self._known.keys(), changed & self._known.keys()
        self._listed |= there
        self._writing, self._changed = changed, self._changed - changed
        self._written, self._changed_by = self._changed_by, None
        try:
            is_first = await self._send(list(gone), list(there))
        except BaseException as error:
            self._failing = True
            self._changed |= changed
            self._wake.set()
            self._end_waiting(error if isinstance(error, StoreUnavailableError) else StoreUnavailableError(str(error)))
            raise
        self._failing = False
        self._listed -= gone
        self._end_waiting(None)
        if is_first:  # or Redis has lost what was there before
            self._changed |= self._known.keys() - changed
        if self._changed:
            self._wake.set()

    async def _send(self, gone: list[str], there: list[str]) -> bool:
        """Tell Redis what has changed, or nothing but that the node lives; whether it knew of none before."""
        self._number += 1
        told = [(len(each), *each) for each in _chunks(gone)]
        told += [(0, *(part for pid in each for part in (pid, self._known[pid]))) for each in _chunks(there)]
        keys = [self._key, f"{self._key}:number"]
        calls = [self._commands.start(_WRITE, keys, [self._number, self._expires, *each]) for each in told or [(0,)]]
        return 0 in [await self._commands.answer(call) for call in calls]

    def _end_waiting(self, error: StoreUnavailableError | None) -> None:
        waiting, self._written, self._writing = self._written, None, set()
        if waiting is None:
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
            waiting.exception()  # not every caller is still there to hear it


def _chunks(names: list[str]) -> list[list[str]]:
    return [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
