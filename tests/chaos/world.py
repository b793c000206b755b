"""The world that is broken: a store of the suite's own, a proxy before it for each node, gateways, and clients."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
from conftest import ROOT, SECRET, SERVICE_KEY, require_program
from redis.exceptions import RedisError
from redis_servers import (
    ClusterServers,
    RedisServer,
    SentinelServers,
    _end_with_parent,
    free_port,
    redis_cluster,
    redis_sentinel,
    redis_server,
)

from chaos.clients import Clients
from chaos.proxy import Proxy
from chaos.truth import Harm, Impairment, Timing, Truth

TIMING = Timing(lease=3000, grace=1500)
VARIABLES = {
    "JWT_SECRET": SECRET,
    "SERVICE_API_KEYS": SERVICE_KEY,
    "NODE_LEASE": str(TIMING.lease / 1000),
    "PRESENCE_OFFLINE_GRACE": str(TIMING.grace / 1000),
    "PRESENCE_AWAY_AFTER": "86400",
    "PING_INTERVAL": "1",
    "PING_TIMEOUT": "2",
    "HANDSHAKE_TIMEOUT": "5",
    "LOG_FORMAT": "console",
}
START = 30.0
"""Seconds that a node may take until it serves, with the store there."""
Store = RedisServer | SentinelServers | ClusterServers


class Backend(StrEnum):
    """What the nodes share."""

    REDIS = "redis"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


def now() -> float:
    """Milliseconds of the machine's monotonic clock."""
    return time.monotonic_ns() / 1e6


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within: float = START) -> None:
    """Wait for something that a cluster comes to by itself; while it does, who is asked may drop the connection."""
    deadline = time.monotonic() + within
    while True:
        with suppress(OSError, RedisError):
            if await condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:.0f} s: {what}")
        await asyncio.sleep(0.05)


class Node:
    """One gateway, at a port that it keeps over restarts.

    Args:
        index: which one.
        variables: its environment.
        log: the file that it writes.
    """

    def __init__(self, index: int, variables: Mapping[str, str], log: Path) -> None:
        self.index = index
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._variables = variables
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it as a supervisor does: again if it ends, until it serves."""

        async def serves() -> bool:
            if self._process is None or self._process.returncode is not None:
                await self._spawn()
                await asyncio.sleep(0.5)
            return await self.healthy("live")

        try:
            await until(serves, f"node {self.index} serves")
        except TimeoutError as error:
            last = self.log.read_text(errors="replace").splitlines()[-3:]
            raise TimeoutError("\n".join([str(error), *last])) from None

    async def _spawn(self) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "GATEWAY_ENGINE"}
        }
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway", "serve", "--port", str(self.port)),
                cwd=ROOT,
                env=inherited | VARIABLES | dict(self._variables),
                stdin=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=_end_with_parent,
            )

    async def healthy(self, what: str) -> bool:
        """What ``/health/live`` or ``/health/ready`` says."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{self.url}/health/{what}") as response,
            ):
                return response.status == 200
        except (OSError, aiohttp.ClientError, TimeoutError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """End it without a word."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
            forget_faketime(self._process.pid)


class World:
    """One cluster, its clients, and what was done to it."""

    def __init__(self, backend: Backend, store: Store, prefix: str) -> None:
        self.backend = backend
        self.store = store
        self.prefix = prefix
        self.nodes: list[Node] = []
        self.proxies: list[Proxy] = []
        self.impairments: list[Impairment] = []
        self.clients: Clients
        self.skewed: int | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        backend: Backend,
        users: Sequence[str],
        folder: Path,
        *,
        count: int = 3,
        skew: tuple[int, float] | None = None,
    ) -> AsyncIterator[World]:
        """Start all of it, until the end.

        Args:
            backend: what the nodes share.
            users: all whom the clients know of.
            folder: where logs go.
            count: how many nodes.
            skew: a node, and how many seconds its clock is ahead.
        """
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(_servers(backend))
            world = cls(backend, store, f"chaos-{secrets.token_hex(4)}")
            for index in range(count):
                url = store.url
                if isinstance(store, RedisServer):
                    proxy = await stack.enter_async_context(Proxy.start(store.port))
                    world.proxies.append(proxy)
                    url = proxy.url
                variables = {"REDIS_URL": url, "REDIS_PREFIX": world.prefix}
                if skew is not None and skew[0] == index:
                    world.skewed = index
                    variables |= faketime(skew[1])
                node = Node(index, variables, folder / f"node-{index}.log")
                world.nodes.append(node)
                stack.push_async_callback(node.kill)
            await asyncio.gather(*(node.start() for node in world.nodes))
            world.clients = await stack.enter_async_context(Clients.start([node.url for node in world.nodes], users))
            yield world

    @contextmanager
    def impaired(self, harm: Harm, node: int | None = None) -> Iterator[None]:
        """Note that a node, or the store, cannot do its work meanwhile."""
        begin = now()
        place = len(self.impairments)
        self.impairments.append(Impairment(harm, begin, node=node))
        try:
            yield
        finally:
            self.impairments[place] = Impairment(harm, begin, now(), node)

    def away(self, node: int) -> bool:
        """Whether a node is down or cut off now."""
        return any(
            each.node == node and each.end == float("inf") and each.harm is not Harm.SLOWED for each in self.impairments
        )

    async def ready(self) -> None:
        """Wait until every node that is not down itself has the store."""

        async def all_ready() -> bool:
            nodes = [node for node in self.nodes if not self.away(node.index)]
            return all(await asyncio.gather(*(node.healthy("ready") for node in nodes)))

        await until(all_ready, "every node has the store")

    # The truth at the end

    async def truth(self, users: Sequence[str]) -> Truth:
        """Ask every node's view, and the store."""
        async with aiohttp.ClientSession(
            headers={"X-API-Key": SERVICE_KEY}, timeout=aiohttp.ClientTimeout(total=10)
        ) as session:
            views = {node.index: await _view(session, node.url, users) for node in self.nodes}
            store, ledger = {}, {}
            for user in users:
                told = await _get(session, f"{self.nodes[0].url}/api/users/{user}/explain")
                store[user] = _status(told["status"])
                ledger[user] = list(_since_restored(told["transitions"]))
            return Truth(now(), views, store, ledger)


def _since_restored(transitions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, str]]:
    """What the store committed by itself since it was last given back what it had lost."""
    restored = [place for place, each in enumerate(transitions) if each["reason"] == "restored"]
    for each in transitions[restored[-1] + 1 if restored else 0 :]:
        yield each["version"], each["was"], each["status"]


async def _view(session: aiohttp.ClientSession, url: str, users: Sequence[str]) -> dict[str, tuple[int, str]]:
    view: dict[str, tuple[int, str]] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = await _get(session, f"{url}/api/users/online", **({"cursor": cursor} if cursor else {}))
        view |= {told["userId"]: _status(told) for told in page["users"]}
        cursor = page["nextCursor"]
    for user in users:
        if user not in view:
            view[user] = _status(await _get(session, f"{url}/api/users/{user}/online-status"))
    return view


def _status(told: Mapping[str, Any]) -> tuple[int, str]:
    return told["version"], told["status"]


async def _get(session: aiohttp.ClientSession, url: str, **query: str) -> Any:
    async with session.get(url, params=query) as response:
        response.raise_for_status()
        return await response.json()


def _servers(backend: Backend) -> AbstractAsyncContextManager[Store]:
    match backend:
        case Backend.REDIS:
            return redis_server(save=True)
        case Backend.SENTINEL:
            return redis_sentinel()
        case Backend.CLUSTER:
            return redis_cluster()


def faketime(seconds: float) -> dict[str, str]:
    """The environment in which a process's wall clock is ahead, and its monotonic one is not."""
    command = [require_program("faketime"), "--exclude-monotonic", "-f", f"{seconds:+g}s", "env", "-0"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    variables = dict(line.split("=", 1) for line in shown.split("\0") if "=" in line)
    # What the wrapper shares with its own child ends with it.
    wanted = {"LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"}
    return {name: value for name, value in variables.items() if name in wanted}


def forget_faketime(pid: int) -> None:
    """Remove what libfaketime shared for a process that was killed: it would fail the next one of that number."""
    for left in Path("/dev/shm").glob(f"*faketime_s*_{pid}"):
        left.unlink(missing_ok=True)
