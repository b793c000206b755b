"""The load on one server: one process, all clients. It reads what an operation costs the server, and prints it.

Requests are sent in bursts: all clients send theirs, and again when all have their answers. So every server always
has as much to do at once as every other, and a load that is slower than its server gives it no rest to pay for. What
is measured is not the time that it takes but the server's CPU time, until the server rests again, so that work which
it puts off counts too.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
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

ALONE, ENTER, LEAVE = "connect", "join", "rejoin"
STEADY = ("heartbeat", "check-user-status", "check-users-status-50", "check-users-status-1000", "broadcast")
"""What is measured, in the order in which it must be: `ALONE` while nobody is there, `ENTER` once, these, `LEAVE`."""

SETTLE, IDLE, VISIT, BEAT = "settle", "idle", "visit", "beat"
"""What is measured where a server is compared with itself, holding more connections: two once, then the others."""

_ANSWERS = {"heartbeat": "heartbeat-ack", "check-user-status": "user-status", "check-users-status": "users-status"}
_GUEST = "guest"
_GUESTS_FROM = "127.0.0.2"
"""Where guests come from beside thousands of others: from the same address, each would search long for a free port."""
_JOINING_AT_ONCE = 50
_BURST_STATUSES = 20_000
"""Statuses that one burst asks for at most: one of all clients would last for seconds where each asks for 1,000."""
_DIFFERENT_QUESTIONS = 50
_NEIGHBOURS = 10
"""Users who hear of each other where a server's idle connections are many, and to hear of all would take hours."""
_VISITS_PER_SECOND = 1_000
"""How many guests visit for each second that an operation is to run: always as many, whatever they cost."""
_BEATING = 100
"""How many clients send heartbeats where all others idle."""
_WARM_UP, _WARM_AGAIN = 0.5, 0.2
"""Seconds that an operation runs uncounted, the first time and each time after that: compilers and caches are as they
will stay, and the others, which were measured since, have left nothing in them."""
_HOUR = 3600
_REST = 0.1
"""Seconds of which a resting server uses next to none."""
_GATHERING = 0.3
"""Seconds; longer than any server gathers what it has to tell."""
_RESTING_SHARE = 0.03
_IDLE = 1.0
"""Seconds over which a server's upkeep of idle connections is read."""
_PATIENCE = 30.0
"""Seconds for the server to come to rest, or for all to hear of a guest."""
_LONGEST = 600.0
"""Seconds for one operation, after which the server is given up."""


class Load:
    """The clients, and what they can be put to.

    Args:
        server: the server's process id.
        port: where it listens on loopback.
        connections: how many clients stay.
        seconds: how long each operation runs.
        collect: whether the server collects its garbage at SIGUSR2.
        quiet: whether the server is asked to tell nobody of who joins, and joining is not measured.
        browsers: whether clients say that they are browsers.
    """

    def __init__(
        self,
        server: int,
        port: int,
        connections: int,
        seconds: float,
        *,
        collect: bool = False,
        quiet: bool = False,
        browsers: bool = False,
    ) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._results: dict[str, dict[str, float]] = {}
        self._warm: set[str] = set()
        self._guest_costs = 0.0
        self._idle_share = 0.0
        self._server = server
        self._collect = collect
        self._quiet = quiet
        self._browsers = browsers
        self._port = port
        self._names = [f"user-{number}" for number in range(connections)]
        self._seconds = seconds
        self._clients: list[Client] = []
        self._vanishing = False
        self._questions: dict[str, list[tuple[Client, bytes]]] = {}
        self._asking: list[tuple[Client, bytes]] = []
        self._burst = self._next = 0
        self._answer = self._event = b""
        self._statuses: int | None = None
        self._awaited = self._heard = 0
        self._done = asyncio.get_running_loop().create_future()

    async def run(self, operation: str) -> dict[str, dict[str, float]]:
        """Measure one of the operations above.

        Returns:
            What it cost, by its name: CPU microseconds of the server as ``value``, and how busy server and load were.
            Joining also tells the memory that a connection takes, in KiB; idling, milliseconds of CPU a second.
        """
        match operation:
            case "connect":
                await self._measure(operation, self._connect_and_leave)
                self._guest_costs = self._results["connect"]["value"]
            case "join":
                await self._enter()
            case "broadcast":
                await self._measure(operation, self._broadcast)
                # A guest's own part, measured when nobody heard of it, is no part of a delivery.
                hearings = 2 * len(self._clients)
                self._results["broadcast"]["value"] -= self._guest_costs / hearings
                self._results["broadcast"]["frame_bytes"] = self._clients[0].frame_bytes
                broadcasts = self._results["broadcast"]["operations"] / len(self._clients)
                self._results["broadcast"]["apart"] = self._results["broadcast"]["seconds"] / broadcasts
            case "rejoin":
                await self._measure(operation, self._rejoin, warm_up=False)
            case "settle":
                await self._join(0, neighbours=_NEIGHBOURS)
            case "idle":
                await self._idle()
            case "visit":
                await self._measure(operation, self._visit, warm_up=False)
            case "beat":
                await self._request("heartbeat", self._of_whole_tenants(_BEATING))
                self._results["beat"] = self._results.pop("heartbeat")
            case _:
                await self._request(operation)
        results, self._results = self._results, {}
        return results

    # Measuring

    async def _measure(self, name: str, operation: Operation, *, warm_up: bool = True) -> None:
        if warm_up:
            await operation(time.monotonic() + (_WARM_AGAIN if name in self._warm else _WARM_UP))
            self._warm.add(name)
        await self._rest()
        server, own, wall = cpu_seconds(self._server), time.process_time(), time.monotonic()
        count = await operation(time.monotonic() + self._seconds)
        began, busy = wall, cpu_seconds(self._server) - server
        own, wall = time.process_time() - own, time.monotonic() - wall
        await self._rest()
        used = cpu_seconds(self._server) - server - self._idle_share * (time.monotonic() - began)
        self._results[name] = {
            "value": used / count * 1e6,
            "operations": count,
            "seconds": wall,
            "server_share": busy / wall,
            "load_share": own / wall,
        }

    async def _rest(self) -> None:
        """Wait until the server has nothing left to do."""
        async with asyncio.timeout(_PATIENCE):
            share = 1.0
            while share >= _RESTING_SHARE + 2 * self._idle_share:
                share = await self._share(_REST)

    async def _idle(self) -> None:
        """Take note of what the server does for connections that idle: it is no part of what others cost."""
        self._idle_share = await self._share(_IDLE)
        self._results["idle"] = {"value": self._idle_share * 1000}

    async def _share(self, seconds: float) -> float:
        """The share of a core that the server uses now, over so long."""
        before, began = cpu_seconds(self._server), time.monotonic()
        await asyncio.sleep(seconds)
        return (cpu_seconds(self._server) - before) / (time.monotonic() - began)

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

    async def _visit(self, _until: float) -> int:
        """The same, a set number of times, in a tenant of their own: the others are there and hear nothing."""
        visits = round(self._seconds * _VISITS_PER_SECOND)
        for _ in range(visits):
            token = make_token(_GUEST, tenant="guests")
            guest = await Client.open(
                self._port, token, self._answered, self._told, source=_GUESTS_FROM, browser=self._browsers
            )
            await guest.say_goodbye()
        return visits

    async def _enter(self) -> None:
        """Let all clients in, as a storm where it is measured, and read what memory they take."""
        before = await self._memory()
        if self._quiet:
            await self._join(0)
            await self._rest()
        else:
            await self._measure("join", self._join, warm_up=False)
            # Of two who joined, the one who was there must have heard of the other.
            least = len(self._clients) * (len(self._clients) - 1) // 2
            if self._heard < least:
                raise ClientError(f"the clients should have heard of each other {least} times; it was {self._heard}")
        after = await self._memory()
        self._results["memory"] = {"value": (after - before) / 1024 / len(self._clients)}

    async def _join(self, _until: float, neighbours: int | None = None) -> int:
        """Let all clients in, each hearing of those after it.

        Args:
            neighbours: how many share a tenant; None puts all into one, and waits until all have heard of all.
        """
        gate = asyncio.Semaphore(_JOINING_AT_ONCE)
        self._event, self._heard = event_start("user-online"), 0

        async def enter(number: int, name: str) -> Client:
            claims = {} if neighbours is None else {"tenant": f"tenant-{number // neighbours}"}
            async with gate:
                client = await self._open(name, **claims, **({"quiet": True} if self._quiet else {}))
                client.closed.add_done_callback(self._lost)
                return client

        self._clients = list(await asyncio.gather(*(enter(*each) for each in enumerate(self._names))))
        if neighbours is None:
            await asyncio.sleep(_GATHERING)
            await self._rest()
        self._event = b""
        gc.freeze()  # thousands of clients that stay: to look through them again and again would slow the load
        return len(self._clients)

    async def _rejoin(self, until: float) -> int:
        """Let all clients vanish at once, and come back at once."""
        self._vanishing = True
        for client in self._clients:
            client.vanish()
        await asyncio.wait([client.closed for client in self._clients])
        self._vanishing = False
        self._questions.clear()
        return await self._join(until)

    def _of_whole_tenants(self, count: int) -> list[Client]:
        """So many clients, of tenants in which nobody idles: as where there are no others. These are strewn evenly."""
        tenants = max(1, min(count, len(self._clients)) // _NEIGHBOURS)
        apart = len(self._clients) // _NEIGHBOURS // tenants * _NEIGHBOURS
        return [each for tenant in range(tenants) for each in self._clients[tenant * apart :][:_NEIGHBOURS]]

    async def _request(self, operation: str, asking: Sequence[Client] | None = None) -> None:
        """Let clients send a request again and again, each with its own arguments.

        Args:
            operation: the request, with how many statuses it asks for where that is part of its name.
            asking: who sends it, while the others idle; None for all.
        """
        event, _, size = operation.rpartition("-") if operation[-1].isdigit() else (operation, "", "1")
        width = int(size)
        if operation not in self._questions:
            names = [*self._names, *(f"stranger-{number}" for number in range(width))]
            frames = []
            for number in range(min(_DIFFERENT_QUESTIONS, len(self._clients))):
                asked = [*names[number:], *names[:number]][:width]
                arguments: dict[str, list[object]] = {
                    "heartbeat": [],
                    "check-user-status": [{"userId": asked[0]}],
                    "check-users-status": [{"userIds": asked}],
                }
                frames.append(request_frame(event, *arguments[event]))
            self._questions[operation] = [
                (client, frames[number % len(frames)])
                for number, client in enumerate(self._clients if asking is None else asking)
            ]
        self._event = b""
        self._asking = self._questions[operation]
        self._burst = max(1, min(len(self._asking), _BURST_STATUSES // width))
        self._next = 0
        self._answer = f'"{_ANSWERS[event]}"'.encode()
        self._statuses = None if event == "heartbeat" else width
        await self._measure(operation, self._ask)

    async def _ask(self, until: float) -> int:
        count = 0
        while time.monotonic() < until:
            asking = self._asking[self._next : self._next + self._burst]
            self._next = self._next + self._burst if self._next + self._burst < len(self._asking) else 0
            self._awaited = len(asking)
            self._done = asyncio.get_running_loop().create_future()
            for client, frame in asking:
                client.send(frame)
            await self._done
            count += len(asking)
        return count

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

    async def _open(self, name: str, **claims: object) -> Client:
        # Always a new token, as a cache of verified ones would see it.
        token = make_token(name, **claims)
        return await Client.open(self._port, token, self._answered, self._told, browser=self._browsers)

    def _all_hear(self, event: str) -> asyncio.Future[Any]:
        self._event = event_start(event)
        self._awaited = len(self._clients)
        self._done = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(asyncio.wait_for(self._done, _PATIENCE))

    def _answered(self, _client: Client, text: bytes) -> None:
        if self._answer not in text:
            raise ClientError(text.decode())
        if self._statuses is not None:  # of each measurement, the first answer must have all that was asked
            asked, self._statuses = self._statuses, None
            if text.count(b'"userId"') != asked:
                raise ClientError(f"{asked} statuses were asked for: {text.decode()}")
        self._one_less()

    def _told(self, text: bytes) -> None:
        if self._event and text.startswith(self._event):
            self._heard += 1
            self._one_less()

    def _one_less(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            self._done.set_result(None)

    def _lost(self, _closed: asyncio.Future[None]) -> None:
        if not self._vanishing:
            self._fail(ClientError("a client was cut off"))

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def fail_on_errors(self) -> None:
        """End with the first error that a client's callback raises."""

        def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self._fail(context.get("exception") or ClientError(context["message"]))

        asyncio.get_running_loop().set_exception_handler(handle)


def make_token(name: str, **claims: object) -> str:
    """Sign a token that no server has seen before."""
    claims |= {"sub": name, "exp": int(time.time()) + _HOUR, "jti": os.urandom(8).hex()}
    return jwt.encode(claims, os.environ["JWT_SECRET"])


async def serve(load: Load) -> None:
    """Measure what stdin names, a line each, and print what it cost as JSON."""
    load.fail_on_errors()
    loop = asyncio.get_running_loop()
    while operation := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        async with asyncio.timeout(_LONGEST):
            run: asyncio.Future[Any] = asyncio.ensure_future(load.run(operation))
            await asyncio.wait([run, load.failed], return_when=asyncio.FIRST_COMPLETED)
        if load.failed.done():
            load.failed.result()
        print(json.dumps(run.result()), flush=True)


async def _main(options: argparse.Namespace) -> None:
    numbers = (options.server, options.port, options.connections, options.seconds)
    await serve(Load(*numbers, collect=options.collect, quiet=options.quiet, browsers=options.browsers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Started by python -m benchmarks, which says what to measure on stdin."
    )
    parser.add_argument("--server", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--browsers", action="store_true")
    uvloop.run(_main(parser.parse_args()))
