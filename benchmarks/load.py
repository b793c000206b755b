"""The load on one server: one process, all clients. It reads what an operation costs the server, and prints it.

Each operation runs for a set time as fast as its clients go: they send the next request when they have the answer
to the last. What is measured is not that time but the server's CPU time, until the server rests again, so that work
which it puts off counts too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import jwt
import uvloop

from benchmarks.client import Client, ClientError, event_start, request_frame
from benchmarks.process import cpu_seconds, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Operation = Callable[[float], Awaitable[int]]
    """Goes on until a time of the monotonic clock, and returns how often it did what is counted."""

OPERATIONS = ("connect", "join", "heartbeat", "check-user-status", "check-users-status", "broadcast")
"""What is measured, in the order in which it must be: the first while nobody is there, the others after joining."""

ASKED_AT_ONCE = 50
"""How many users one check-users-status asks for."""

_GUEST = "guest"
_JOINING_AT_ONCE = 50
_WARM_UP = 0.5
"""Seconds that an operation first runs uncounted: compilers and caches are as they will stay."""
_HOUR = 3600
_REST = 0.1
"""Seconds of which a resting server uses next to none."""
_RESTING_SHARE = 0.03
_PATIENCE = 30.0
"""Seconds for the server to come to rest, or for all to hear of a guest."""
_LONGEST = 90.0
"""Seconds for one operation, after which the server is given up."""


class Load:
    """The clients, and what they can be put to.

    Args:
        server: the server's process id.
        port: where it listens on loopback.
        connections: how many clients stay.
        seconds: how long each operation runs.
        collect: whether the server collects its garbage at SIGUSR2.
    """

    def __init__(self, server: int, port: int, connections: int, seconds: float, *, collect: bool) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._results: dict[str, dict[str, float]] = {}
        self._warm: set[str] = set()
        self._guest_costs = 0.0
        self._server = server
        self._collect = collect
        self._port = port
        self._names = [f"user-{number}" for number in range(connections)]
        self._seconds = seconds
        self._clients: list[Client] = []
        self._frames: dict[Client, bytes] = {}
        self._until = 0.0
        self._answer = self._event = b""
        self._sent = self._awaited = 0
        self._done = asyncio.get_running_loop().create_future()

    async def run(self, operation: str) -> dict[str, dict[str, float]]:
        """Measure one of `OPERATIONS`.

        Returns:
            What it cost, by its name; joining also tells the memory that a connection takes.
        """
        ids = [[*self._names[number:], *self._names][:ASKED_AT_ONCE] for number in range(len(self._names))]
        match operation:
            case "connect":
                await self._measure(operation, self._connect_and_leave)
                self._guest_costs = self._results["connect"]["value"]
            case "join":
                before = await self._memory()
                await self._measure(operation, self._join, warm_up=False)
                after = await self._memory()
                self._results["memory"] = {"value": (after - before) / 1024 / len(self._clients)}
            case "heartbeat":
                await self._request(operation, "heartbeat-ack", [[]] * len(ids))
            case "check-user-status":
                await self._request(operation, "user-status", [[{"userId": some[-1]}] for some in ids])
            case "check-users-status":
                await self._request(operation, "users-status", [[{"userIds": some}] for some in ids])
            case "broadcast":
                await self._measure(operation, self._broadcast)
                # A guest's own part, measured when nobody heard of it, is no part of a delivery.
                hearings = 2 * len(self._clients)
                self._results["broadcast"]["value"] -= self._guest_costs / hearings
        results, self._results = self._results, {}
        return results

    # Measuring

    async def _measure(self, name: str, operation: Operation, *, warm_up: bool = True) -> None:
        if warm_up and name not in self._warm:
            self._warm.add(name)
            await operation(time.monotonic() + _WARM_UP)
        await self._rest()
        server, own, wall = cpu_seconds(self._server), time.process_time(), time.monotonic()
        count = await operation(time.monotonic() + self._seconds)
        busy = cpu_seconds(self._server) - server
        own, wall = time.process_time() - own, time.monotonic() - wall
        await self._rest()
        self._results[name] = {
            "value": (cpu_seconds(self._server) - server) / count * 1e6,
            "operations": count,
            "server_share": busy / wall,
            "load_share": own / wall,
        }

    async def _rest(self) -> None:
        """Wait until the server has nothing left to do."""
        async with asyncio.timeout(_PATIENCE):
            used = _REST
            while used >= _REST * _RESTING_SHARE:
                before = cpu_seconds(self._server)
                await asyncio.sleep(_REST)
                used = cpu_seconds(self._server) - before

    async def _memory(self) -> int:
        if self._collect:
            os.kill(self._server, signal.SIGUSR2)
            await asyncio.sleep(_REST)
            await self._rest()
        return resident_bytes(self._server)

    # Operations

    async def _connect_and_leave(self, until: float) -> int:
        """Let guests come and go, one by one, while nobody is there to hear of them."""
        count = 0
        while time.monotonic() < until:
            guest = await self._open(_GUEST)
            await guest.say_goodbye()
            count += 1
        return count

    async def _join(self, _until: float) -> int:
        """Let all clients in, each hearing of those after it."""
        gate = asyncio.Semaphore(_JOINING_AT_ONCE)

        async def enter(name: str) -> Client:
            async with gate:
                client = await self._open(name)
                client.closed.add_done_callback(lambda _: self._fail(ClientError("a client was cut off")))
                return client

        self._clients = await asyncio.gather(*(enter(name) for name in self._names))
        return len(self._clients)

    async def _request(self, event: str, answer: str, arguments: Sequence[Sequence[object]]) -> None:
        """Let all clients send a request again and again, each with its own arguments."""
        self._frames = {
            client: request_frame(event, *its) for client, its in zip(self._clients, arguments, strict=True)
        }
        self._answer = f'"{answer}"'.encode()
        await self._measure(event, self._ask)

    async def _ask(self, until: float) -> int:
        self._until = until
        self._sent = self._awaited = len(self._clients)
        self._done = asyncio.get_running_loop().create_future()
        for client, frame in self._frames.items():
            client.send(frame)
        await self._done
        return self._sent

    async def _broadcast(self, until: float) -> int:
        """Let guests come and go, one by one, and all clients hear of it; what is counted is each hearing."""
        count = 0
        while time.monotonic() < until:
            hearing = self._all_hear("user-online")
            guest = await self._open(_GUEST)
            await hearing
            hearing = self._all_hear("user-offline")
            await guest.say_goodbye()
            await hearing
            count += 2 * len(self._clients)
        return count

    # One step each

    async def _open(self, name: str) -> Client:
        # Always a new token, as a cache of verified ones would see it.
        claims = {"sub": name, "exp": int(time.time()) + _HOUR, "jti": os.urandom(8).hex()}
        token = jwt.encode(claims, os.environ["JWT_SECRET"])
        return await Client.open(self._port, token, self._answered, self._told)

    def _all_hear(self, event: str) -> asyncio.Future[Any]:
        self._event = event_start(event)
        self._awaited = len(self._clients)
        self._done = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(asyncio.wait_for(self._done, _PATIENCE))

    def _answered(self, client: Client, text: bytes) -> None:
        if self._answer not in text:
            raise ClientError(text.decode())
        if time.monotonic() < self._until:
            self._sent += 1
            client.send(self._frames[client])
        else:
            self._one_less()

    def _told(self, text: bytes) -> None:
        if self._event and text.startswith(self._event):
            self._one_less()

    def _one_less(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def fail_on_errors(self) -> None:
        """End with the first error that a client's callback raises."""

        def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self._fail(context.get("exception") or ClientError(context["message"]))

        asyncio.get_running_loop().set_exception_handler(handle)


async def _main(options: argparse.Namespace) -> None:
    load = Load(options.server, options.port, options.connections, options.seconds, collect=options.collect)
    load.fail_on_errors()
    loop = asyncio.get_running_loop()
    while operation := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        async with asyncio.timeout(_LONGEST):
            run: asyncio.Future[Any] = asyncio.ensure_future(load.run(operation))
            await asyncio.wait([run, load.failed], return_when=asyncio.FIRST_COMPLETED)
        if load.failed.done():
            load.failed.result()
        print(json.dumps(run.result()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Started by python -m benchmarks, which says what to measure on stdin."
    )
    parser.add_argument("--server", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--collect", action="store_true")
    uvloop.run(_main(parser.parse_args()))
