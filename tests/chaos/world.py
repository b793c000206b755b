"""The world that is broken: a store of the suite's own, a proxy before it for each node, gateways, and clients."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import random
import re
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
from urllib.parse import urlencode

import aiohttp
from conftest import ROOT, SECRET, SERVICE_KEY, make_token, require_program
from receivers import HOOK_SECRET, Receiver
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

from chaos.channels import Spoken
from chaos.clients import PUSHER, Clients
from chaos.promises import Sent
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
    "VISIBILITY_TTL": "5",
    "LOG_FORMAT": "console",
    **PUSHER,
}
EXPORTS = "presence.db"
"""The database of an export, in the folder of a run."""
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
        module: what is run: the gateway's command, or the like.
    """

    def __init__(self, index: int, variables: Mapping[str, str], log: Path, module: str) -> None:
        self.index = index
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._variables = variables
        self._module = module
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
                *("-m", self._module, "serve", "--port", str(self.port)),
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
        self.revoked: dict[str, float] = {}
        """When a node had said of a user that the tokens are revoked."""
        self.sent: list[Sent] = []
        """The notifications that nodes took."""
        self.spoken: list[Spoken] = []
        """The messages that nodes took."""
        self.wipes: list[Impairment] = []
        """When the store was away that came back without its data."""
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
        hook: Receiver | None = None,
        ruled: bool = False,
    ) -> AsyncIterator[World]:
        """Start all of it, until the end.

        Args:
            backend: what the nodes share.
            users: all whom the clients know of.
            folder: where logs go.
            count: how many nodes.
            skew: a node, and how many seconds its clock is ahead.
            hook: where all nodes send webhooks, and then export to `exports` in the folder; None for neither.
            ruled: whether they have a rule about who may see whom.
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
                if hook is not None:
                    # One at a time, so that there is always one under way.
                    variables |= {"PRESENCE_WEBHOOK_URL": hook.url, "PRESENCE_WEBHOOK_SECRET": HOOK_SECRET}
                    variables["WEBHOOK_CONCURRENCY"] = "1"
                    variables["EXPORT_DATABASE_URL"] = f"sqlite:///{folder / EXPORTS}"
                if skew is not None and skew[0] == index:
                    world.skewed = index
                    variables |= faketime(skew[1])
                node = Node(index, variables, folder / f"node-{index}.log", "tests.chaos.node" if ruled else "gateway")
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

    async def on_duty(self, duty: str) -> int:
        """Which node does now what one does for all."""
        assert isinstance(self.store, RedisServer)
        server, found = self.store, list[int]()

        async def known() -> bool:
            name = await server.cli("GET", f"{{{self.prefix}}}:duty:{duty}")
            begun = [f"node={name}" if name else "nobody", "presence is shared in Redis"]
            for node in self.nodes:
                lines = re.sub(r"\x1b\[[0-9;]*m", "", node.log.read_text(errors="replace")).splitlines()
                if any(all(word in line for word in begun) for line in lines):
                    found.append(node.index)
            return bool(found)

        await until(known, f"a node has the duty {duty}")
        return found[-1]

    def lost_before(self) -> float:
        """Until when the store may have lost what it had said yes to."""
        return max((each.end for each in self.losses()), default=0.0)

    def losses(self) -> list[Impairment]:
        """When the store may have lost what it had said yes to; a replica may lack it that takes over."""
        if self.backend is Backend.REDIS:
            return self.wipes
        return [each for each in self.impairments if each.harm is Harm.STORE_AWAY]

    async def revoke(self, user: str, chance: random.Random) -> None:
        """Revoke a user's tokens by one node or another; asked again where it is not known whether they are."""
        async with aiohttp.ClientSession(
            headers={"X-API-Key": SERVICE_KEY}, timeout=aiohttp.ClientTimeout(total=5)
        ) as session:
            while user not in self.revoked:
                with suppress(OSError, aiohttp.ClientError, TimeoutError):
                    url = f"{chance.choice(self.nodes).url}/api/tokens/revoke"
                    async with session.post(url, json={"userId": user}) as response:
                        if response.status == 200:
                            self.revoked[user] = now()
                            return
                await asyncio.sleep(0.2)

    async def notify(self, users: Sequence[str], chance: random.Random) -> None:
        """Send one notification after the other to one or another user, by one or another node, until cancelled."""
        async with aiohttp.ClientSession(
            headers={"X-API-Key": SERVICE_KEY}, timeout=aiohttp.ClientTimeout(total=5)
        ) as session:
            for number in itertools.count():
                node, user = chance.choice(self.nodes), chance.choice(users)
                body = {"userId": user, "event": "notification", "data": {"number": number}}
                with suppress(OSError, aiohttp.ClientError, TimeoutError):
                    async with session.post(f"{node.url}/api/notifications", json=body) as response:
                        if response.status == 200:
                            method = (await response.json())["method"]
                            self.sent.append(Sent(now(), user, number, method, node.index))
                await asyncio.sleep(chance.uniform(0.2, 0.6))

    async def speak(self, speaker: str, channels: Sequence[str], numbers: Iterator[int], chance: random.Random) -> None:
        """Say one message after the other in one or another channel, until cancelled.

        Each is sent until a node takes it, and now and then once more.
        """
        headers = {"Authorization": f"Bearer {make_token(speaker, ttl=24 * 3600)}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=5)) as session:
            for number in numbers:
                begun, channel = now(), chance.choice(channels)
                body = {"channel": channel, "content": str(number), "clientId": str(number)}
                times = 2 if chance.random() < 0.2 else 1
                while times:
                    with suppress(OSError, aiohttp.ClientError, TimeoutError):
                        async with session.post(f"{chance.choice(self.nodes).url}/api/messages", json=body) as response:
                            times -= response.status == 200
                    await asyncio.sleep(chance.uniform(0.05, 0.2))
                self.spoken.append(Spoken(begun, now(), channel, number))
                await asyncio.sleep(chance.uniform(0.1, 0.4))

    async def members(self, channel: str) -> dict[int, list[str]]:
        """Who is in a presence channel, by what each node says to Pusher's libraries."""
        told = {node.index: await _ask_pusher(node.url, f"channels/{channel}/users") for node in self.nodes}
        return {node: [user["id"] for user in each["users"]] for node, each in told.items()}

    async def occupied(self) -> dict[int, list[str]]:
        """The channels that anybody is in, by what each node says to Pusher's libraries."""
        return {node.index: sorted((await _ask_pusher(node.url, "channels"))["channels"]) for node in self.nodes}

    async def ready(self) -> None:
        """Wait until every node that is not down itself has the store."""

        async def all_ready() -> bool:
            nodes = [node for node in self.nodes if not self.away(node.index)]
            return all(await asyncio.gather(*(node.healthy("ready") for node in nodes)))

        await until(all_ready, "every node has the store")

    async def somebody_knows(self) -> None:
        """Wait until a node that is not away itself has the store."""

        async def knows() -> bool:
            nodes = [node for node in self.nodes if not self.away(node.index)]
            return any(await asyncio.gather(*(node.healthy("ready") for node in nodes)))

        await until(knows, "a node has the store")

    # The truth at the end

    async def truth(self, users: Sequence[str], moody: frozenset[str]) -> Truth:
        """Ask every node's view, and the store; of the moody, whom it tells the truth of, what others were told."""
        async with aiohttp.ClientSession(
            headers={"X-API-Key": SERVICE_KEY}, timeout=aiohttp.ClientTimeout(total=10)
        ) as session:
            views = {node.index: await _view(session, node.url, users) for node in self.nodes}
            store, ledger, past, there = {}, {}, {}, {}
            for user in users:
                told = await _get(session, f"{self.nodes[0].url}/api/users/{user}/explain")
                store[user] = _status(told["transitions"][-1] if user in moody else told["status"])
                ledger[user] = list(_since_restored(told["transitions"]))
                there[user] = told["status"]["online"]
                kept = await _get(session, f"{self.nodes[0].url}/api/users/{user}/sessions")
                past[user] = [(each["from"], each["to"]) for each in kept["sessions"]]
            return Truth(now(), views, store, ledger, past, there)


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


async def _ask_pusher(url: str, what: str) -> Any:
    path = f"/apps/{PUSHER['PUSHER_APP_ID']}/{what}"
    query = {
        "auth_key": PUSHER["PUSHER_APP_KEY"],
        "auth_timestamp": str(int(time.time())),
        "auth_version": "1.0",
    }
    text = "\n".join(("GET", path, urlencode(query)))
    query["auth_signature"] = hmac.digest(PUSHER["PUSHER_APP_SECRET"].encode(), text.encode(), "sha256").hex()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        return await _get(session, f"{url}{path}", **query)


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
