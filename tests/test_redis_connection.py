"""`gateway.redis.connection`, against real servers: what each URL leads to, and what a client does when it breaks."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
import pytest_asyncio
from conftest import STEP
from redis import exceptions
from redis.asyncio import Redis
from redis_servers import (
    HOST,
    ClusterServers,
    RedisServer,
    SentinelServers,
    fresh_prefix,
    redis_cluster,
    redis_sentinel,
    redis_server,
)

from gateway.redis.connection import Client, NotServingError, check_url, connect, connection_errors, describe, pipeline

pytestmark = pytest.mark.xdist_group("redis-connection")  # whose tests share what takes seconds to start

TIMEOUT = 1.0
INCREASE = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def sentinel() -> AsyncIterator[SentinelServers]:
    async with redis_sentinel() as servers:
        yield servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clusters() -> AsyncIterator[list[ClusterServers]]:
    """One to share, one with TLS and a password, and two to spend; together they start in the time of one."""
    contexts = [redis_cluster(), redis_cluster(masters=1, tls=True, password="s3cret")]
    contexts += [redis_cluster(masters=1) for _ in range(2)]
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(context) for context in contexts))


@pytest.fixture
def cluster(clusters: list[ClusterServers]) -> ClusterServers:
    return clusters[0]


@pytest.fixture
async def client(closing: AsyncExitStack) -> Callable[..., Client]:
    """Make clients, which are closed after the test."""

    def make(url: str, *, timeout: float = TIMEOUT) -> Client:
        made = connect(url, timeout=timeout)
        closing.push_async_callback(made.aclose)
        return made

    return make


async def send(client: Client, *command: Any) -> Any:
    """Send one command; what it is refused with is raised."""
    [reply] = await pipeline(client, [command])
    if isinstance(reply, Exception):
        raise reply
    return reply


async def trouble(client: Client, *command: Any) -> Exception | None:
    """What becomes of a command: how it was refused or lost, None if it was done."""
    try:
        await send(client, *command)
    except Exception as error:
        return error
    return None


async def done_at_last(client: Client, *command: Any, within: float = 8) -> set[type[Exception]]:
    """Send a command until it is done; return how it failed before, all of which says to try again."""
    deadline = time.monotonic() + within
    seen: set[type[Exception]] = set()
    while error := await trouble(client, *command):
        assert isinstance(error, connection_errors), repr(error)
        assert time.monotonic() < deadline, seen
        seen.add(type(error))
        await asyncio.sleep(0.02)
    return seen


# --- URLs


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("redis://cache", "redis://cache:6379/0"),
        ("redis://:s3cret@cache:7000/3", "redis://cache:7000/3"),
        ("redis://user:s3cret%2F%3F%23%40@cache/", "redis://cache:6379/0"),
        ("redis://s3cret:s3cret@s3cret@cache", "redis://cache:6379/0"),
        ("redis://cache?db=4&password=s3cret&client_name=gateway&max_connections=7", "redis://cache:6379/4"),
        ("redis://[::1]:7000/0", "redis://[::1]:7000/0"),
        ("rediss://cache?ssl_cert_reqs=none&ssl_check_hostname=no", "rediss://cache:6379/0"),
        ("unix://user:s3cret@/run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock?password=s3cret", "unix:///run/redis.sock"),
        ("redis+sentinel://a,b:7000,[::1]/0/main", "redis+sentinel://a:26379,b:7000,[::1]:26379/0/main"),
        ("rediss+sentinel://:s3cret@a/2/main?sentinel_password=s3cret", "rediss+sentinel://a:26379/2/main"),
        ("redis+cluster://user:s3cret,s3cret@a,b:7000", "redis+cluster://a:6379,b:7000"),
        ("rediss+cluster://a/0?ssl_cert_reqs=none", "rediss+cluster://a:6379"),
    ],
)
def test_a_url_is_taken_and_described_without_its_secrets(url: str, described: str) -> None:
    check_url(url)
    assert describe(url) == described


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "begins otherwise"),
        ("cache:6379", "begins otherwise"),
        ("http://s3cret@cache", "begins otherwise"),
        ("redis+unix:///run/s3cret", "begins otherwise"),
        ("redis://", "lacks a host"),
        ("redis://:s3cret@/0", "lacks a host"),
        ("redis+cluster://a,,b", "lacks a host"),
        ("redis://cache:s3cret/0", "a port is a number"),
        ("redis://cache:65536", "a port is a number"),
        ("redis://[::1/0", "cannot be read"),
        ("redis://s3cret@ca\u2100che/0", "cannot be read"),  # which Python repeats in its own message
        ("redis://:s3/cret@cache/0", "write / as %2F"),
        ("redis://:s3?cret@cache/0", "write / as %2F"),
        ("redis://:s3#cret@cache/0", "write / as %2F"),
        ("redis://user:12/s3cret@cache/0", "write / as %2F"),
        ("redis://user:12#s3cret", "write / as %2F"),
        ("redis://cache/s3cret", "the database is a number"),
        ("redis://cache/0/main", "too little or too much"),
        ("redis://a,b/0", "several hosts"),
        ("redis+sentinel://a,b", "too little or too much"),
        ("redis+sentinel://a/main", "too little or too much"),
        ("redis+sentinel://a/main/0", "the database is a number"),
        ("redis+cluster://a/1", "no database but 0"),
        ("redis+cluster://a?db=1", "does not go with"),
        ("unix://", "no path"),
        ("unix://run/redis.sock", "or a host"),
        ("redis://cache?db=s3cret", "wrong value"),
        ("redis://cache?max_connections=-1", "does not go with"),
        ("redis://cache?s3cret", "cannot be read"),
        ("redis://cache?protocol=3", "not known, protocol"),  # callers rely on the replies of one
        ("redis://cache?socket_timeout=9", "not known, socket_timeout"),
        ("redis://cache?decode_responses=yes", "not known, decode_responses"),
        ("redis://cache?sentinel_password=s3cret", "not known, sentinel_password"),
        ("redis://cache?ssl_cert_reqs=none", "does not go with"),
        ("rediss://cache?ssl_cert_reqs=maybe", "does not go with"),
        ("rediss+cluster://cache?ssl_cert_reqs=maybe", "does not go with"),
        ("rediss+cluster://cache?ssl_ca_path=/certificates", "does not go with"),
        ("rediss://cache?ssl_ca_certs=/no/such/file", "No such file"),
        ("rediss+sentinel://cache/0/main?ssl_ca_certs=/no/such/file", "No such file"),
        ("rediss+cluster://cache?ssl_certfile=/no/such/file", "No such file"),
    ],
)
def test_a_url_is_refused_with_advice_and_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_url(url)
    assert said in str(caught.value)
    assert "No such file" in said or "takes redis://[user:password@]host:port/db" in str(caught.value)
    assert "s3" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "s3" not in describe(url)


def test_a_client_is_made_without_a_server_and_without_a_loop() -> None:
    for url in ("redis://cache", "rediss://cache", "redis+sentinel://cache/0/main", "redis+cluster://cache"):
        connect(url, timeout=TIMEOUT)


# --- what each URL leads to


async def test_it_reaches_a_server(redis_url: str, client: Callable[..., Client]) -> None:
    await check_it_works(client(redis_url))


async def test_it_reaches_a_database(server: RedisServer, client: Callable[..., Client]) -> None:
    key = fresh_prefix()
    await send(client(server.url.replace("/0", "/5")), "SET", key, "five")
    assert await send(client(server.url), "GET", key) is None
    assert await send(client(f"redis://{HOST}:{server.port}?db=5"), "GET", key) == b"five"


async def test_it_reaches_a_unix_socket(server: RedisServer, client: Callable[..., Client]) -> None:
    await check_it_works(client(f"unix://{server.socket_path}"))


async def test_it_reaches_a_server_by_password_and_tls(client: Callable[..., Client]) -> None:
    password = "s3/cr:et@"
    async with redis_server(tls=True, extra=["--requirepass", password]) as server:
        url = server.url.replace("rediss://", "rediss://:s3%2Fcr%3Aet%40@")
        check_url(url)
        await check_it_works(client(url))
        for wrong, said in ((server.url, "required"), (url.replace("s3", "s4"), "password")):
            error = await trouble(client(wrong), "PING")
            assert isinstance(error, exceptions.AuthenticationError)
            assert said in str(error)
        unverified = await trouble(client(url.partition("?")[0]), "PING")
        assert isinstance(unverified, exceptions.ConnectionError)
        assert "certificate verify failed" in str(unverified)


async def test_it_reaches_a_master_by_its_sentinels(sentinel: SentinelServers, client: Callable[..., Client]) -> None:
    await check_it_works(client(sentinel.url))
    # A sentinel that is not there costs nothing, wherever it stands.
    await check_it_works(client(sentinel.url.replace("://", f"://{HOST}:1,")))


async def test_it_reaches_a_cluster(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    await check_it_works(client(cluster.url))
    await check_it_works(client(f"redis+cluster://{HOST}:1,localhost:{cluster.nodes[2].port}/0"))


async def test_it_reaches_sentinels_and_clusters_by_password_and_tls(
    clusters: list[ClusterServers], client: Callable[..., Client]
) -> None:
    async with redis_sentinel(tls=True, password="s3cret") as watched:
        for url in (watched.url, clusters[1].url):
            check_url(url)
            await check_it_works(client(url))
            error = await trouble(client(url.replace("s3cret", "wrong")), "GET", "a")
            assert isinstance(error, exceptions.ConnectionError)
            assert "password" in str(error)


async def check_it_works(client: Client) -> None:
    """In order, each by itself, in bytes, whatever is behind it."""
    prefix = f"{{{fresh_prefix()}}}"
    number, text = f"{prefix}number", f"{prefix}text"
    replies = await pipeline(
        client,
        [
            ("EVAL", INCREASE, 1, number, 5),
            ("SET", text, "täxt"),
            ("LPUSH", text, "x"),
            ("EVALSHA", "0" * 40, 1, number),
            ("GET", text),
            ("EVAL", INCREASE, 1, text, 1),
            ("EVAL", INCREASE, 1, number, b"2"),
            ("XADD", f"{prefix}stream", "1-1", "body", b"\x00"),
            ("XREAD", "STREAMS", f"{prefix}stream", "0-0"),
            ("GET", f"{prefix}none"),
        ],
    )
    wrong_type, no_script, failed = replies.pop(2), replies.pop(2), replies.pop(3)
    stream = [[f"{prefix}stream".encode(), [(b"1-1", {b"body": b"\x00"})]]]
    assert replies == [5, True, "täxt".encode(), 7, b"1-1", stream, None]
    assert isinstance(no_script, exceptions.NoScriptError)
    for error, said in ((wrong_type, "WRONGTYPE"), (failed, "not an integer")):
        assert isinstance(error, exceptions.ResponseError)
        assert not isinstance(error, connection_errors)
        assert said in str(error)
    assert await client.get(text) == "täxt".encode()
    assert await send(client, "PING") is True
    assert await pipeline(client, []) == []


# --- what is said on the wire


@asynccontextmanager
async def fake_server() -> AsyncIterator[tuple[int, list[bytes], Callable[[], None]]]:
    """A server of its own cluster that answers OK; its port, what it heard, and how to reset all its connections."""
    heard: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(65536):
            heard.append(data)
            if b"SLOTS" in data:
                writer.write(
                    b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n%b\r\n:%d\r\n$1\r\nx\r\n" % (HOST.encode(), port)
                )
            else:
                writer.write(b"*0\r\n" if b"COMMAND" in data else b"+OK\r\n")

    def reset() -> None:
        for writer in writers:
            lingering = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
            writer.transport.abort()
        writers.clear()

    listener = await asyncio.start_server(answer, HOST, 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield port, heard, reset
    finally:
        listener.close()
        for writer in writers:
            writer.close()


async def test_nothing_goes_out_but_what_is_asked_for(client: Callable[..., Client]) -> None:
    async with fake_server() as (port, heard, _reset):
        there = client(f"redis://{HOST}:{port}")
        assert await send(there, "GET", "a") == b"OK"
        assert isinstance(there, Redis)
        [connection] = there.connection_pool._available_connections
        assert connection._writer is not None
        assert connection._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert heard == [b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"]


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_idle_connections_that_were_reset_go_unnoticed(scheme: str, loop: str) -> None:
    async def run() -> None:
        async with fake_server() as (port, _heard, reset):
            client = connect(f"{scheme}://{HOST}:{port}", timeout=TIMEOUT)
            for _ in range(3):
                assert await asyncio.gather(*(send(client, "GET", "a") for _ in range(5))) == [b"OK"] * 5
                reset()
                await asyncio.sleep(0.02)
            await client.aclose()

    with asyncio.Runner(loop_factory=pytest.importorskip(loop).new_event_loop) as runner:
        runner.run(run())


# --- a server that goes, and comes back


@dataclass
class Name:
    """An address that leads to a server, and may lead to another one later, as a name in DNS does."""

    port: int
    leads_to: int


@asynccontextmanager
async def name_of(server: RedisServer) -> AsyncIterator[Name]:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection(HOST, name.leads_to)
            await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
        writer.close()

    async with await asyncio.start_server(forward, HOST, 0) as listener:
        name = Name(listener.sockets[0].getsockname()[1], server.port)
        yield name


async def hold_connections(client: Client, key: str, count: int = 5) -> None:
    """Have this many connections in the pool."""
    await asyncio.gather(*(send(client, "BLPOP", key, 0.01) for _ in range(count)))


async def test_a_restart_between_commands_goes_unnoticed(client: Callable[..., Client]) -> None:
    async with redis_server(save=True) as server:
        there = client(server.url)
        await send(there, "SET", "a", "kept")
        await hold_connections(there, "none")
        await server.kill()
        error = await trouble(there, "GET", "a")
        assert isinstance(error, exceptions.ConnectionError)
        await server.start()
        assert await asyncio.gather(*(send(there, "GET", "a") for _ in range(5))) == [b"kept"] * 5


async def test_a_server_that_hangs_is_waited_for_once(client: Callable[..., Client]) -> None:
    async with redis_server() as server:
        there = client(server.url, timeout=0.3)
        await send(there, "PING")
        await server.pause()
        for asked in (there, client(server.url, timeout=0.3)):
            begin = time.monotonic()
            assert isinstance(await trouble(asked, "PING"), exceptions.TimeoutError)
            assert 0.25 < time.monotonic() - begin < 0.55
        await server.resume()
        assert await send(there, "PING") is True


async def test_a_read_that_blocks_has_a_connection_of_its_own(
    server: RedisServer, client: Callable[..., Client]
) -> None:
    there, key = client(server.url), fresh_prefix()
    reading = asyncio.create_task(send(there, "XREAD", "BLOCK", 500, "STREAMS", key, "0-0"))
    await hold_connections(there, f"{key}-none")
    assert not reading.done()
    await send(there, "XADD", key, "1-1", "body", "x")
    assert await reading == [[key.encode(), [(b"1-1", {b"body": b"x"})]]]
    assert await send(there, "XREAD", "BLOCK", 10, "STREAMS", key, "1-1") == []


async def test_a_read_that_is_cancelled_leaves_nothing_behind(
    server: RedisServer, client: Callable[..., Client]
) -> None:
    there, key = client(server.url), fresh_prefix()
    for _ in range(3):
        reading = asyncio.create_task(send(there, "XREAD", "BLOCK", 500, "STREAMS", key, "0-0"))
        await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.wait([reading])
        assert await send(there, "ECHO", key) == key.encode()


async def test_a_name_that_leads_to_another_master_is_followed(client: Callable[..., Client]) -> None:
    async with redis_server() as old, redis_server() as new, name_of(old) as name:
        there = client(f"redis://{HOST}:{name.port}")
        await hold_connections(there, "none")
        await old.cli("REPLICAOF", HOST, new.port)  # which leaves its connections open
        name.leads_to = new.port
        refused, done = await pipeline(there, [("SET", "a", 1), ("GET", "a")])
        assert isinstance(refused, exceptions.ReadOnlyError)
        assert done is None
        assert await asyncio.gather(*(send(there, "SET", f"{i}", 1) for i in range(5))) == [True] * 5


# --- sentinels


async def test_a_failover_is_followed(sentinel: SentinelServers, client: Callable[..., Client]) -> None:
    there, key = client(sentinel.url), fresh_prefix()
    await send(there, "SET", key, "before")
    await hold_connections(there, f"{key}-none")
    await sentinel.kill_master()
    failed = await done_at_last(there, "SET", key, "after")
    assert failed
    await sentinel.wait_for_new_master()
    assert await sentinel.master.cli("GET", key) == "after"
    assert await asyncio.gather(*(send(there, "GET", key) for _ in range(5))) == [b"after"] * 5


async def test_masters_may_change_places(sentinel: SentinelServers, client: Callable[..., Client]) -> None:
    there, key = client(sentinel.url), fresh_prefix()
    await hold_connections(there, f"{key}-none")
    switching = asyncio.create_task(sentinel.switch())
    while not switching.done():
        await done_at_last(there, "SET", key, "x")
        await asyncio.sleep(0.01)
    await switching
    # The old master takes writes, and loses them, until the sentinels have made it a replica and ended its connections.
    deadline = time.monotonic() + STEP
    while await sentinel.master.cli("GET", key) != "y":
        assert time.monotonic() < deadline
        await done_at_last(there, "SET", key, "y")


async def test_a_master_that_hangs_is_replaced(sentinel: SentinelServers, client: Callable[..., Client]) -> None:
    there, key = client(sentinel.url, timeout=0.3), fresh_prefix()
    await hold_connections(there, f"{key}-none")
    hanging = sentinel.master
    await hanging.pause()
    assert exceptions.TimeoutError in await done_at_last(there, "SET", key, "after")
    await sentinel.wait_for_new_master()
    assert await sentinel.master.cli("GET", key) == "after"
    await hanging.resume()


# --- clusters


async def another(cluster: ClusterServers, key: str) -> RedisServer:
    """A node that does not serve a key."""
    owner = await cluster.owner(key)
    return next(node for node in cluster.nodes if node is not owner)


async def test_a_slot_that_moved_is_followed(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there, key = client(cluster.url), fresh_prefix()
    await send(there, "EVAL", INCREASE, 1, key, 1)
    for expected in (3, 5):
        await cluster.move_slot(key, await another(cluster, key))
        increase = ("EVAL", INCREASE, 1, key, 1)
        first, wrong_type, second = await pipeline(there, [increase, ("LPUSH", key, "x"), increase])
        assert (first, second) == (expected - 1, expected)
        assert "WRONGTYPE" in str(wrong_type)


async def test_a_slot_that_is_moving_is_followed(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there, prefix = client(cluster.url), f"{{{fresh_prefix()}}}"
    await pipeline(there, [("SET", f"{prefix}{i}", i) for i in range(20)])
    await asyncio.gather(*(hold_connections(there, f"{i}") for i in range(6)))  # with every node, more than one

    async def halfway() -> None:
        async def one(i: int) -> None:
            key, new = f"{prefix}{i}", f"{prefix}new-{i}"
            replies = await pipeline(there, [("GET", key), ("SET", new, i), ("GET", new), ("INCR", key)])
            assert replies == [str(i).encode(), True, str(i).encode(), i + 1]

        for _round in range(2):
            await asyncio.gather(*(one(i) for i in range(20)))
            await pipeline(there, [("DECR", f"{prefix}{i}") for i in range(20)])

    await cluster.move_slot(prefix, await another(cluster, prefix), halfway=halfway)
    assert await pipeline(there, [("GET", f"{prefix}{i}") for i in range(20)]) == [str(i).encode() for i in range(20)]


async def test_keys_on_two_nodes_are_waited_for(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there, prefix = client(cluster.url, timeout=0.3), f"{{{fresh_prefix()}}}"
    keys = [f"{prefix}{i}" for i in range(4)]
    await send(there, "MSET", *(part for key in keys for part in (key, "x")))
    in_time: list[asyncio.Task[Any]] = []

    async def halfway() -> None:
        replies = await pipeline(there, [("MGET", *keys), ("SET", f"{prefix}alone", "y")])
        assert isinstance(replies[0], exceptions.TryAgainError)
        assert replies[1] is True
        in_time.append(asyncio.create_task(send(there, "MGET", *keys)))
        await asyncio.sleep(0.02)

    await cluster.move_slot(prefix, await another(cluster, prefix), halfway=halfway)
    assert await in_time[0] == [b"x"] * 4


async def test_a_read_that_blocks_follows_its_slot(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there, key = client(cluster.url, timeout=2), fresh_prefix()
    await send(there, "XADD", key, "1-1", "body", "x")
    reading = asyncio.create_task(send(there, "XREAD", "BLOCK", 1500, "STREAMS", key, "1-1"))
    await asyncio.sleep(0.05)
    await cluster.move_slot(key, await another(cluster, key))
    await send(there, "XADD", key, "1-2", "body", "y")
    assert await reading == [[key.encode(), [(b"1-2", {b"body": b"y"})]]]


async def test_a_node_that_goes_and_comes_back(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there, key = client(cluster.url, timeout=0.5), fresh_prefix()
    node = await cluster.owner(key)
    await hold_connections(there, f"{{{key}}}")
    await node.pause()
    begin = time.monotonic()
    assert isinstance(await trouble(there, "GET", key), exceptions.TimeoutError)
    assert time.monotonic() - begin < 0.9
    await node.resume()
    await done_at_last(there, "GET", key)

    await hold_connections(there, f"{{{key}}}")
    reading = asyncio.create_task(trouble(there, "XREAD", "BLOCK", 400, "STREAMS", key, "0-0"))
    await asyncio.sleep(0.02)
    await node.kill()
    assert isinstance(await reading, exceptions.ConnectionError)
    assert isinstance(await trouble(there, "GET", key), exceptions.ConnectionError)
    assert isinstance(await trouble(client(cluster.url), "GET", key), connection_errors)
    await node.start()
    await done_at_last(there, "SET", key, "x")  # it waits for seconds before it serves
    assert await asyncio.gather(*(send(there, "GET", key) for _ in range(5))) == [b"x"] * 5


@pytest.mark.parametrize("kind", ["server", "cluster"])
async def test_a_process_that_stood_still_takes_no_answer_for_late(
    kind: str, server: RedisServer, cluster: ClusterServers, client: Callable[..., Client]
) -> None:
    there = client(cluster.url if kind == "cluster" else server.url, timeout=0.3)
    key = fresh_prefix()
    await send(there, "SET", key, "x")
    asked = [asyncio.create_task(send(there, *command)) for command in (("GET", key), ("BLPOP", f"{{{key}}}list", 0.1))]
    await asyncio.sleep(0.02)
    time.sleep(0.6)  # noqa: ASYNC251 - as a process that was stopped, or a machine that was paused
    assert await asyncio.gather(*asked) == [b"x", None]


async def test_a_cluster_that_moved_is_found_by_its_name(
    clusters: list[ClusterServers], client: Callable[..., Client]
) -> None:
    _shared, _secured, old, new = clusters
    async with name_of(old.nodes[0]) as name:
        there = client(f"redis+cluster://{HOST}:{name.port}")
        await send(there, "SET", "a", "old")
        await old.nodes[0].kill()
        name.leads_to = new.nodes[0].port
        await done_at_last(there, "SET", "a", "new")
        assert await new.nodes[0].cli("GET", "a") == "new"


# --- what errors mean


def test_each_class_of_errors_is_named_once() -> None:
    assert [pair for pair in permutations(connection_errors, 2) if issubclass(*pair)] == []


SET, GET, EVAL = ("SET", "a", 1), ("GET", "a"), ("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "a")


@pytest.mark.parametrize(
    ("before", "commands", "error"),
    [
        ([("REPLICAOF", HOST, 1)], [SET, EVAL], exceptions.ReadOnlyError),
        (
            [("REPLICAOF", HOST, 1), ("CONFIG", "SET", "replica-serve-stale-data", "no")],
            [GET, EVAL],
            exceptions.MasterDownError,
        ),
        ([("CONFIG", "SET", "min-replicas-to-write", 1)], [SET, EVAL], NotServingError),
        ([("CONFIG", "SET", "maxmemory", 1)], [SET, EVAL], exceptions.OutOfMemoryError),
        ([("ACL", "SETUSER", "default", "-set")], [SET], exceptions.NoPermissionError),
        ([("ACL", "SETUSER", "default", "off")], [GET], exceptions.AuthenticationError),
        ([("CONFIG", "SET", "maxclients", 1)], [GET], exceptions.ConnectionError),
    ],
)
async def test_a_server_that_refuses_says_to_try_again(
    before: Sequence[Sequence[Any]],
    commands: Sequence[Sequence[Any]],
    error: type[Exception],
    client: Callable[..., Client],
) -> None:
    async with redis_server() as server, Redis(port=server.port) as keeper:
        await keeper.ping()
        for command in before:
            await server.cli(*command)
        for command in commands:
            caught = await trouble(client(server.url), *command)
            assert type(caught) is error
            assert isinstance(caught, connection_errors)


async def test_a_server_that_cannot_save_says_to_try_again(client: Callable[..., Client]) -> None:
    async with redis_server(extra=["--save", "3600 1000"]) as server:
        (server.directory / "dump.rdb").mkdir()  # where the file should go
        await server.cli("BGSAVE")
        there = client(server.url)
        await eventually_failing(there, SET)
        for command in (SET, EVAL):
            assert isinstance(await trouble(there, *command), NotServingError)


async def eventually_failing(there: Client, command: Sequence[Any]) -> None:
    deadline = time.monotonic() + STEP
    while not await trouble(there, *command):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_server_that_is_busy_says_to_try_again(client: Callable[..., Client]) -> None:
    async with redis_server(extra=["--lua-time-limit", "20"]) as server:
        there = client(server.url)
        endless = asyncio.create_task(trouble(there, "EVAL", "while true do end", 0))
        await asyncio.sleep(0.1)
        assert isinstance(await trouble(there, *GET), NotServingError)
        await server.cli("SCRIPT", "KILL")
        assert not isinstance(await endless, connection_errors)


async def test_a_server_that_loads_says_to_try_again(client: Callable[..., Client]) -> None:
    async with redis_server(save=True, extra=["--key-load-delay", "100"]) as server:
        there = client(server.url)
        await pipeline(there, [("SET", str(i), "x") for i in range(3000)])  # it answers after each 1024 of them
        await server.kill()
        server.launch()
        assert exceptions.BusyLoadingError in await done_at_last(there, "GET", "2999")


async def test_a_read_that_blocks_on_a_master_that_is_one_no_more(client: Callable[..., Client]) -> None:
    async with redis_server() as server:
        reading = asyncio.create_task(trouble(client(server.url), "XREAD", "BLOCK", 700, "STREAMS", "a", "0-0"))
        await asyncio.sleep(0.05)
        await server.cli("REPLICAOF", HOST, 1)
        assert isinstance(await reading, NotServingError)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://{HOST}:1", "connecting to"),
        ("redis://no.such.name.invalid", "connecting to"),
        ("unix:///no/such.sock", "No such file"),
        (f"redis+sentinel://{HOST}:1/0/main", "No master found"),
        (f"redis+cluster://{HOST}:1", "cannot be connected"),
        ("redis://server/99", "DB index is out of range"),
        ("redis+sentinel://server/0/main", "unknown command"),
        ("redis+cluster://server", "Cluster mode is not enabled"),
        ("redis://stranger", "Protocol error"),
        ("redis+sentinel://stranger/0/main", "Protocol error"),
        ("redis+cluster://stranger", "Protocol error"),
        ("rediss://stranger", "SSL"),
    ],
)
async def test_what_cannot_be_reached_says_to_try_again(
    url: str, said: str, server: RedisServer, client: Callable[..., Client]
) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(stranger, HOST, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        url = url.replace("server", f"{HOST}:{server.port}").replace("stranger", f"{HOST}:{port}")
        check_url(url)
        caught = await trouble(client(url), *GET)
    assert isinstance(caught, connection_errors)
    assert said in str(caught)


async def test_a_mistake_of_ours_does_not(cluster: ClusterServers, client: Callable[..., Client]) -> None:
    there = client(cluster.url)
    for command in (("MGET", "a", "b"), ("NO-SUCH-COMMAND", "a"), ("SET", "a"), ("EVAL", "syntax", 1, "a")):
        caught = await trouble(there, *command)
        assert isinstance(caught, exceptions.ResponseError)
        assert not isinstance(caught, connection_errors)


async def test_nothing_stays_open(
    server: RedisServer, sentinel: SentinelServers, cluster: ClusterServers, client: Callable[..., Client]
) -> None:
    everyone = [server, sentinel.master, *sentinel.sentinels, *cluster.nodes]

    async def named() -> int:
        lines = [line for each in everyone for line in (await each.cli("CLIENT", "LIST")).splitlines()]
        return sum("cmd=blpop" in line or "cmd=sentinel|masters" in line for line in lines)

    made = [client(each.url, timeout=0.3) for each in (server, sentinel, cluster)]
    for each in made:
        await hold_connections(each, fresh_prefix())
    assert await named() > 3 * 5
    node = await cluster.owner("a")
    await node.pause()
    with pytest.raises(exceptions.TimeoutError):  # after which redis-py itself would leave connections open
        await made[2].get("a")
    await node.resume()
    for each in made:
        await each.aclose()
    deadline = time.monotonic() + STEP
    while await named():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_redis_that_asks_for_a_password_says_so() -> None:
    async with redis_server(password="secret") as server:
        client = connect(f"redis://{HOST}:{server.port}", timeout=STEP)
        try:
            [answer] = await pipeline(client, [["EVALSHA", "0" * 40, 0, *("x" * 100,) * 50]])
        except connection_errors as error:
            answer = error
        assert isinstance(answer, connection_errors)
        await client.aclose()
