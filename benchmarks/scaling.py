"""What presence costs in Redis and in a node: commands, bytes and CPU for each change, and memory for each user.

``python -m benchmarks.scaling`` starts a Redis of its own, and prints the tables of ``docs/design/scaling.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.process import resident_bytes
from benchmarks.report import machine
from gateway.presence.model import Beat, Connection, Ending, Profile, Timing
from gateway.presence.store_redis import RedisStore
from gateway.presence.view import View
from gateway.redis.connection import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.presence.store import Store

TIMING = Timing(away_after=90_000, ttl=120_000, grace=5_000, lease=600_000)
PORT = 29_379
NODE = "bench"
PROFILE = Profile(name="Alice Example", avatar="https://cdn.example/avatars/1234567.png", role="member")


@dataclass
class Cost:
    """What one operation cost, on average."""

    name: str
    node_us: float
    redis_us: float
    commands: float
    bytes_in: float
    bytes_out: float
    per_second: float


@asynccontextmanager
async def redis_server() -> AsyncIterator[str]:
    """A Redis without persistence, ended with the context."""
    with tempfile.TemporaryDirectory() as directory:
        process = await asyncio.create_subprocess_exec(
            *("redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", "", "--dir", directory),
            stdout=asyncio.subprocess.DEVNULL,
        )
        url = f"redis://127.0.0.1:{PORT}/0"
        try:
            async with Redis.from_url(url) as client:
                for _ in range(100):
                    try:
                        await client.ping()
                        break
                    except RedisError:
                        await asyncio.sleep(0.05)
            yield url
        finally:
            process.terminate()
            await process.wait()


class Meter:
    """Reads Redis's and this process's counters around some work."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def _read(self) -> tuple[float, float, float, float, float]:
        info: dict[str, Any] = await self._client.info("everything")
        scripts = info.get("cmdstat_evalsha", {}).get("calls", 0)
        return (
            info["used_cpu_user"] + info["used_cpu_sys"],
            scripts + info.get("cmdstat_xread", {}).get("calls", 0),
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            time.process_time(),
        )

    async def measure(self, name: str, count: int, work: Callable[[], Awaitable[object]]) -> Cost:
        """Do the work, which is `count` operations."""
        gc.collect()
        before, started = await self._read(), time.perf_counter()
        await work()
        took, after = time.perf_counter() - started, await self._read()
        redis, commands, bytes_in, bytes_out, node = (b - a for a, b in zip(before, after, strict=True))
        micro = 1e6 / count
        return Cost(
            name, node * micro, redis * micro, commands / count, bytes_in / count, bytes_out / count, count / took
        )


def tab(number: int, name: str = "tab") -> Connection:
    """A connection as a browser's is."""
    return Connection(
        tenant="default",
        user_id=f"user-{number}",
        id=f"{name}-{number}-aaaaaaaaaaaa",
        node=NODE,
        door="socketio",
        connected_at=1_763_700_000_000,
        profile=PROFILE,
        user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
    )


async def each(width: int, count: int, command: Callable[[int], Awaitable[object]]) -> None:
    """Run a command for each number, `width` at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await command(number)

    await asyncio.gather(*(worker() for _ in range(width)))


async def costs(url: str, count: int) -> list[Cost]:
    """Each operation, alone and with many at a time."""
    store: Store = RedisStore(connect(url, timeout=30), "costs", TIMING)
    now = 1_763_700_000_000
    await store.renew(NODE, now)
    found = []
    async with Redis.from_url(url) as client:
        meter = Meter(client)
        for width in (1, 50, 500):
            few = count if width > 1 else count // 5
            label = "one at a time" if width == 1 else f"{width} at a time"
            now += 100_000

            def beat(n: int, now: int = now) -> Awaitable[object]:
                return store.beat(NODE, [Beat(tenant="default", user_id=f"user-{n}", at=now + 5_000)])

            def come(n: int, now: int = now) -> Awaitable[object]:
                return store.connect(tab(n), now)

            def go(n: int, now: int = now) -> Awaitable[object]:
                return store.disconnect(tab(n), Ending.GOODBYE, now + 10_000)

            for name, command in (("connect", come), ("heartbeat", beat), ("goodbye", go)):
                cost = await meter.measure(f"{name}, {label}", few, lambda c=command, w=width, f=few: each(w, f, c))  # type: ignore[misc]
                found.append(cost)
        start = (await store.snapshot()).position
        await each(500, count, lambda n: store.connect(tab(n), now + 20_000))

        async def follow() -> None:
            view, position = View(), start
            while entries := await store.read(position, wait=False):
                view.apply(entries)
                position = entries[-1].position

        found.append(await meter.measure("following the log, each node", count, follow))
        for _ in range(20):  # what is due by now
            await store.sweep(now)
        idle = await meter.measure("a node that is idle, each second", 10, lambda: _ticks(store, now))
        found.append(idle)
    await store.close()
    return found


async def _ticks(store: Store, now: int) -> None:
    """What a tracker does in ten seconds of nothing: four ticks a second."""
    for _ in range(40):
        await store.renew(NODE, now)
        await store.sweep(now)


async def latency(url: str, count: int) -> list[float]:
    """Milliseconds from a command's start on one node to its transition in another's hands."""
    one = RedisStore(connect(url, timeout=30), "latency", TIMING)
    other = RedisStore(connect(url, timeout=30), "latency", TIMING)
    await one.renew(NODE, 0)
    position, took = 0, []
    for number in range(count):
        reading = asyncio.create_task(other.read(position, wait=True))
        await asyncio.sleep(0.002)
        started = time.perf_counter()
        await one.connect(tab(number), 1)
        position = (await reading)[-1].position
        took.append((time.perf_counter() - started) * 1000)
    await one.close()
    await other.close()
    return took


async def memory(url: str, users: int) -> list[tuple[str, str]]:
    """What many users take, in Redis and in a view."""
    store = RedisStore(connect(url, timeout=60), "memory", TIMING)
    await store.renew(NODE, 0)
    async with Redis.from_url(url) as client:
        before = (await client.info("memory"))["used_memory"]
        await each(500, users, lambda n: store.connect(tab(n), 1))
        used = (await client.info("memory"))["used_memory"] - before
        log = await client.memory_usage("{memory}:log", samples=0) or 0
        length = await client.xlen("{memory}:log")
    started, cpu = time.perf_counter(), time.process_time()
    snapshot = await store.snapshot()
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    gc.collect()
    before_view = resident_bytes(os.getpid())
    view = View()
    view.load(snapshot)
    statuses = [view.status(status.tenant, status.user_id) for status in snapshot.statuses]
    assert len(statuses) == users
    gc.collect()
    index = resident_bytes(os.getpid()) - before_view
    del snapshot, statuses
    gc.collect()
    empty = View()
    del view
    gc.collect()
    before_all = resident_bytes(os.getpid())
    empty.load(await store.snapshot())
    gc.collect()
    whole = resident_bytes(os.getpid()) - before_all
    await store.close()
    return [
        ("Redis, per online user with one connection", f"{(used - log) / users:.0f} bytes"),
        ("Redis, per entry of the log", f"{log / length:.0f} bytes"),
        ("a node's view, per user", f"{max(whole, index) / users:.0f} bytes"),
        (f"a snapshot of {users:,} users", f"{took:.1f} s, {cpu:.1f} s of the node's CPU"),
    ]


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=100_000)
    options = parser.parse_args()
    print("{cpu}, {cores} cores; {kernel}; {python}\n".format(**machine()))
    async with redis_server() as url:
        print("| | node's CPU, µs | Redis's CPU, µs | commands | bytes to Redis | bytes from Redis | a second |")
        print("|---|---|---|---|---|---|---|")
        for cost in await costs(url, options.operations):
            print(
                f"| {cost.name} | {cost.node_us:.0f} | {cost.redis_us:.0f} | {cost.commands:.2f}"
                f" | {cost.bytes_in:.0f} | {cost.bytes_out:.0f} | {cost.per_second:,.0f} |"
            )
        took = sorted(await latency(url, 1_000))
        print(f"\nconnect on one node to the entry on another: median {statistics.median(took):.2f} ms,", end=" ")
        print(f"p99 {took[int(len(took) * 0.99)]:.2f} ms\n\n| | |\n|---|---|")
        for name, figure in await memory(url, options.users):
            print(f"| {name} | {figure} |")


if __name__ == "__main__":
    asyncio.run(main())
