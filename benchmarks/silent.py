"""What a server holds for clients that read nothing while a megabyte a second comes for each.

The traffic is what they ask for: statuses of a hundred users, again and again. A client beside them hears when the
server has given one up; then that one reads what is left, to learn what it was closed with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

from benchmarks.client import Client, event_start, request_frame
from benchmarks.load import make_token
from benchmarks.process import resident_bytes

_ASKED = 100
"""Users whose statuses one request asks for: an answer is small beside the buffer, which is full to within one."""
_TOO_SLOW = 4008
_RECEIVE_BUFFER = 4_096
"""Bytes that the system takes for each of them: what it takes is no burden to the server."""
_STEP = 0.01
"""Seconds from one reading of the server's memory to the next."""
_WARM_UP = 3.0
"""Seconds of the same traffic, which they read: what the server needs for the work itself, it has then."""
_PATIENCE = 10.0
"""Seconds after the last request for the rest to arrive."""


class Silent:
    """The clients that do not read, and what became of them.

    Args:
        server: the server's process id.
        port: where it listens on loopback.
        clients: how many there are.
        rate: bytes a second that each asks for.
    """

    def __init__(self, server: int, port: int, clients: int, rate: float) -> None:
        self._server, self._port, self._rate = server, port, rate
        self._names = [f"silent-{number}" for number in range(clients)]
        self._clients: dict[str, Client] = {}
        self._gone: set[str] = set()
        self._answer_bytes = 0
        self._answered = asyncio.Event()
        self._frame = request_frame("check-users-status", {"userIds": [f"user-{number}" for number in range(_ASKED)]})

    async def measure(self, seconds: float) -> dict[str, float]:
        """Let them ask for so long, and read nothing.

        Returns:
            KiB for each client as ``value``: the most that the server had resident, less the most that it had for the
            same traffic while they read it. Also how many ``clients`` there were, how many of them the server
            ``closed`` with 4008 (too slow), and how many KiB a second each asked for.
        """
        await Client.open(self._port, make_token("beside"), self._on_answer, self._on_event)
        for name in self._names:
            self._clients[name] = await Client.open(
                self._port, make_token(name), self._on_answer, self._on_event, receive_buffer=_RECEIVE_BUFFER
            )
        self._clients[self._names[0]].send(self._frame)
        await asyncio.wait_for(self._answered.wait(), _PATIENCE)
        before = await self._ask(_WARM_UP)
        await asyncio.sleep(1)
        for client in self._clients.values():
            client.stop_reading()
        peak = await self._ask(seconds)
        await asyncio.wait([client.closed for client in self._clients.values()], timeout=_PATIENCE)
        return {
            "value": max(peak - before, 0) / 1024 / len(self._names),
            "clients": len(self._names),
            "closed": sum(client.close_code == _TOO_SLOW for client in self._clients.values()),
            "kib_per_second": self._rate / 1024,
        }

    async def _ask(self, seconds: float) -> int:
        """Send requests at the rate.

        Returns:
            The most bytes that the server had resident meanwhile.
        """
        began = time.monotonic()
        asked = peak = 0
        while (passed := time.monotonic() - began) < seconds:
            while asked * self._answer_bytes < passed * self._rate:
                asked += 1
                for name, client in self._clients.items():
                    if name not in self._gone:
                        client.send(self._frame)
            peak = max(peak, resident_bytes(self._server))
            await asyncio.sleep(_STEP)
        return peak

    def _on_answer(self, client: Client, _text: bytes) -> None:
        self._answer_bytes = client.frame_bytes
        self._answered.set()

    def _on_event(self, text: bytes) -> None:
        if text.startswith(event_start("user-offline")):
            for name in self._names:
                if f'"{name}"'.encode() in text and name not in self._gone:
                    self._gone.add(name)
                    self._clients[name].read_again()


async def _main(options: argparse.Namespace) -> None:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    result = await Silent(options.server, options.port, options.clients, options.rate).measure(options.seconds)
    if errors:
        raise RuntimeError(errors[0])
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Started by python -m benchmarks.")
    parser.add_argument("--server", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    uvloop.run(_main(parser.parse_args()))
