"""A TCP proxy between one node and the store, which cuts, resets, slows and swallows."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

CHUNK = 65536


class Proxy:
    """Forwards connections from a port of its own to another port of this machine.

    Args:
        upstream: the other port.
    """

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._rate = float("inf")

    @classmethod
    @asynccontextmanager
    async def start(cls, upstream: int) -> AsyncIterator[Self]:
        """Listen on a free port, until the end."""
        proxy = cls(upstream)
        await proxy.listen()
        try:
            yield proxy
        finally:
            await proxy.cut()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def listen(self) -> None:
        """Take connections, again if they were cut."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse new connections, and close those there are."""
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def reset(self) -> None:
        """End every connection with an RST, as a firewall that forgot them does. New ones are taken."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with suppress(OSError):  # closed meanwhile
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for link in list(self._links):
            link.cancel()

    def slow(self, delay: float = 0.0, rate: float = float("inf")) -> None:
        """Hold each chunk up for `delay` seconds, and let `rate` bytes a second through; called bare, end that."""
        self._delay, self._rate = delay, rate

    def swallow(self) -> None:
        """Let nothing through and refuse nothing. What was on its way arrives when `flow` is called, however late."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything through again."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():
            writer.transport.abort()  # cut after it was accepted, and before it was among the links
            return
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        writers = [writer]
        self._writers.add(writer)
        try:
            await self._flowing.wait()
            back, forth = await asyncio.open_connection("127.0.0.1", self._upstream)
            writers.append(forth)
            self._writers.add(forth)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, forth))
                pumps.create_task(self._pump(back, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side has gone, or the link was cut; a cancelled handler would be logged as an error
        finally:
            self._links.discard(link)
            self._writers.difference_update(writers)
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            if self._delay or self._rate != float("inf"):
                await asyncio.sleep(self._delay + len(chunk) / self._rate)
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # one side has closed: so does the link
