"""Every node is restarted, one after the other, under 300 real clients behind HAProxy: nobody is seen to leave."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest
from balancers import HAPROXY, Balancer, balancing
from conftest import ROOT, Process, eventually, make_token, require_program
from redis_servers import free_port, fresh_prefix

Spawn = Callable[..., Awaitable[Process]]

NODES = 3
KINDS = {"websocket": 230, "upgrading": 30, "polling": 20, "plain": 20}
"""How many clients of each kind there are, and so users."""
PRESENCE = {"user-online", "user-offline", "user-status-changed"}
WATCHED = 40
"""How many others every tenth client watches, and hears of nobody else; all others hear of everyone."""
PATIENCE = 40.0
"""Seconds that all clients together may take for one step, on a slow and busy machine."""


class Clients:
    """The real clients of one process of Node, and what has happened to them since `settle`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.kinds = {
            name: kind for kind, number in KINDS.items() for name in (f"{kind}-{each}" for each in range(number))
        }
        self.up: set[str] = set()
        """Those that are connected now."""
        self.said: list[tuple[str, str, Any]] = []
        self._process = process
        self._asked = 0

    @classmethod
    @asynccontextmanager
    async def run(cls, url: str) -> AsyncIterator[Clients]:
        assert (ROOT / "node_modules" / "socket.io-client").is_dir(), "socket.io-client is not installed: npm ci"
        process = await asyncio.create_subprocess_exec(
            require_program("node"),
            str(ROOT / "tests" / "js" / "rolling.mjs"),
            env={"PATH": os.environ["PATH"], "GATEWAY_URL": url},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        clients = cls(process)
        reading = asyncio.create_task(clients._read())
        try:
            yield clients
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    async def start(self) -> None:
        """Connect all, a few at a time, and wait until they are."""
        names = list(self.kinds)
        for start in range(0, len(names), 50):
            some = names[start : start + 50]
            self.tell("start", [[name, make_token(name), self.kinds[name], self.watched(name)] for name in some])
            await self.all_up(some)

    def watched(self, name: str) -> list[str]:
        """Whom a client watches; nobody in particular for one that hears of everyone."""
        names = list(self.kinds)
        place = names.index(name)
        if place % 10 or self.kinds[name] == "plain":
            return []
        return [names[(place + each) % len(names)] for each in range(1, WATCHED + 1)]

    async def all_up(self, names: Iterable[str]) -> None:
        missing = set(names)
        try:
            await eventually(lambda: missing <= self.up, within=PATIENCE)
        except AssertionError:
            raise AssertionError(f"not connected: {sorted(missing - self.up)}; {self.said[-20:]}") from None

    def settle(self) -> None:
        """Forget what has happened, and hear of everything from now on."""
        self.said.clear()
        self.tell("settled")

    def what(self, event: str) -> list[tuple[str, Any]]:
        return [(name, payload) for name, said, payload in self.said if said == event]

    async def ask(self, name: str, users: list[str]) -> dict[str, tuple[bool, int]]:
        """Whether users are online as a client is told, and by which version of each."""
        self._asked += 1
        answer = f"answer {self._asked}"
        self.tell("ask", self._asked, name, users)
        await eventually(lambda: self.what(answer), within=PATIENCE)
        ((_, data),) = self.what(answer)
        return {each["userId"]: (each["online"], each["version"]) for each in data["statuses"]}

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            name, said, payload = json.loads(line)
            if said == "up":
                self.up.add(name)
            elif said == "down":
                self.up.discard(name)
            self.said.append((name, said, payload))


def is_up(balancer: Balancer, node: int, *, times: int) -> Callable[[], bool]:
    """Whether HAProxy has found a node healthy again so many times."""
    return lambda: balancer.logs.count(f"Server presence/node{node + 1} is UP") >= times


@pytest.mark.timeout(240)
async def test_all_nodes_are_restarted_and_nobody_goes_offline(spawn: Spawn, redis_url: str) -> None:
    variables = {
        "REDIS_URL": redis_url,
        "REDIS_PREFIX": fresh_prefix(),
        "SHUTDOWN_TIMEOUT": "30",
        "DRAIN_DELAY": "1.5",
        "DRAIN_RATE": "100/s",
        # Nothing but a restart may change anything here, however slow the machine.
        "PRESENCE_AWAY_AFTER": "600",
        "PRESENCE_TTL": "600",
        "PING_TIMEOUT": "60",
        "LOG_FORMAT": "json",
    }
    ports = [free_port() for _ in range(NODES)]
    nodes = list(await asyncio.gather(*(spawn("--port", str(port), **variables) for port in ports)))
    addresses = [urlsplit(node.url).netloc for node in nodes]
    third = {
        f"server node2 {addresses[1]}": f"server node2 {addresses[1]}\n    server node3 {addresses[2]}",
        "inter 1s": "inter 250ms",
    }
    async with AsyncExitStack() as closing:
        directory = Path(closing.enter_context(TemporaryDirectory(prefix="balancer-")))
        urls = [node.url for node in nodes]
        balancer = await closing.enter_async_context(balancing(HAPROXY, directory, urls, others=third))
        clients = await closing.enter_async_context(Clients.run(balancer.url))
        await clients.start()
        everyone = list(clients.kinds)
        assert len(everyone) == 300
        before = await clients.ask("websocket-0", everyone)
        assert {online for online, _ in before.values()} == {True}
        clients.settle()

        for number, port in enumerate(ports):
            gone = nodes[number]
            assert await gone.stop(within=PATIENCE + 30) == 0
            assert [entry["connections"] > 30 for entry in entries(gone, "draining")] == [True]
            assert "cut off" not in gone.log
            nodes[number] = await spawn("--port", str(port), **variables)
            await eventually(is_up(balancer, number, times=1), within=PATIENCE)
            await clients.all_up(everyone)

        # Everyone had to move, and did so as one who goes on: nothing had been missed, nobody was seen to go or come.
        moves = Counter(name for name, _ in clients.what("up"))
        assert set(moves) == set(everyone)
        assert {name for name, _ in clients.what("server-draining")} == set(everyone)
        anew = [name for name, up in clients.what("up") if clients.kinds[name] != "plain" and not up["recovered"]]
        assert anew == []
        assert [words for words in clients.said if words[1] in PRESENCE] == []
        assert await clients.ask("websocket-1", everyone) == before

        # And whoever does go is seen to: the others were listening.
        clients.tell("leave", "websocket-7")
        await eventually(
            lambda: len([1 for _, data in clients.what("user-offline") if data["userId"] == "websocket-7"]) > 250,
            within=PATIENCE,
        )


def entries(node: Process, event: str) -> list[Any]:
    return [entry for line in node.lines if (entry := json.loads(line))["event"] == event]
