"""The proxy does what it is told: a fault that breaks nothing proves nothing."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from chaos.proxy import Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy.start(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def link(proxy: Proxy, closing: AsyncExitStack) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    closing.callback(writer.close)
    assert await ask((reader, writer)) == b"hello\n"
    return reader, writer


async def ask(streams: Streams, within: float = 5) -> bytes:
    reader, writer = streams
    writer.write(b"hello\n")
    return await asyncio.wait_for(reader.readline(), within)


async def test_cut(proxy: Proxy, closing: AsyncExitStack) -> None:
    streams = await link(proxy, closing)
    await proxy.cut()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await streams[0].read() == b""
    await proxy.listen()
    await link(proxy, closing)


@pytest.mark.parametrize("turns", range(8))
async def test_nothing_stays_open_of_who_comes_as_it_is_cut(proxy: Proxy, turns: int) -> None:
    coming = [asyncio.create_task(asyncio.open_connection("127.0.0.1", proxy.port)) for _ in range(3)]
    for _ in range(turns):  # from before they are accepted until they are links
        await asyncio.sleep(0)
    await proxy.cut()
    for one in coming:
        with suppress(OSError):
            reader, writer = await one
            async with asyncio.timeout(5):
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
    gc.collect()  # what was left open is an error then


async def test_reset(proxy: Proxy, closing: AsyncExitStack) -> None:
    streams = await link(proxy, closing)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await streams[0].read()
    await link(proxy, closing)


async def test_swallow(proxy: Proxy, closing: AsyncExitStack) -> None:
    streams = await link(proxy, closing)
    proxy.swallow()
    with pytest.raises(TimeoutError):
        await ask(streams, within=0.3)
    proxy.flow()
    assert await asyncio.wait_for(streams[0].readline(), 5) == b"hello\n"  # late, but not lost


async def test_slow(proxy: Proxy, closing: AsyncExitStack) -> None:
    streams = await link(proxy, closing)
    proxy.slow(delay=0.1)
    began = time.monotonic()
    assert await ask(streams) == b"hello\n"
    assert time.monotonic() - began >= 0.2
    proxy.slow()
    began = time.monotonic()
    await ask(streams)
    assert time.monotonic() - began < 0.1
