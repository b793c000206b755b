"""How long news takes from one node to another: from a user's CONNECT packet on A to ``user-online`` at a client of B.

One process is the client of both nodes of every system, so that one clock tells all times. Users come one at a time,
in turn at each system, after pauses of random length: no node's own rhythm is met more often than it would be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from typing import TYPE_CHECKING

import uvloop

from benchmarks.client import Client, ClientError, event_start
from benchmarks.load import make_token

if TYPE_CHECKING:
    from collections.abc import Sequence

_WARM_UP = 20
"""Users who come first, uncounted."""
_PAUSE = 0.03
"""Seconds between one user and the next, at most."""
_PATIENCE = 10.0
"""Seconds for news to arrive, or for a node to let the first client in."""


class Watcher:
    """A client of node B, and how to have a user come and go on node A.

    Args:
        port_a: where users come.
        port_b: where they are heard of.
    """

    def __init__(self, port_a: int, port_b: int) -> None:
        self._port_a, self._port_b = port_a, port_b
        self._awaited = b""
        self._user = b""
        self._heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Let the watcher in, which a node that has just started may refuse at first."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                async with asyncio.timeout(1):
                    self._client = await Client.open(self._port_b, make_token("watcher"), _ignore, self._told)
            except (ClientError, OSError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def come_and_go(self, user: str) -> float:
        """Let a user come to A and leave again.

        Returns:
            Milliseconds until B's client heard that it came.
        """
        hearing = self._hears(user, "user-online")
        guest = await Client.open(self._port_a, make_token(user), _ignore, _ignore_event)
        heard_at = await asyncio.wait_for(hearing, _PATIENCE)
        hearing = self._hears(user, "user-offline")
        await guest.say_goodbye()
        await asyncio.wait_for(hearing, _PATIENCE)
        assert guest.asked_at is not None
        return (heard_at - guest.asked_at) * 1000

    def _hears(self, user: str, event: str) -> asyncio.Future[float]:
        self._awaited, self._user = event_start(event), f'"{user}"'.encode()
        self._heard = asyncio.get_running_loop().create_future()
        return self._heard

    def _told(self, text: bytes) -> None:
        if text.startswith(self._awaited) and self._user in text and not self._heard.done():
            self._heard.set_result(time.perf_counter())


async def measure(systems: dict[str, tuple[int, int]], count: int) -> dict[str, list[float]]:
    """Measure every system in turn.

    Args:
        systems: the ports of nodes A and B, by the system's name.
        count: how many users come to each.

    Returns:
        Milliseconds of each, by the system's name.
    """
    watchers = {name: Watcher(*ports) for name, ports in systems.items()}
    for watcher in watchers.values():
        await watcher.start()
    took: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(-_WARM_UP, count):
        for name, watcher in watchers.items():
            await asyncio.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - nobody is to be kept from guessing it
            milliseconds = await watcher.come_and_go(f"guest-{number}")
            if number >= 0:
                took[name].append(milliseconds)
    return took


def _ignore(_client: Client, _text: bytes) -> None:
    pass


def _ignore_event(_text: bytes) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the milliseconds as JSON."""
    parser = argparse.ArgumentParser(description="Started by python -m benchmarks.")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("systems", nargs="+", help="NAME:PORT_A:PORT_B")
    options = parser.parse_args(arguments)
    systems = {}
    for system in options.systems:
        name, port_a, port_b = system.split(":")
        systems[name] = (int(port_a), int(port_b))
    print(json.dumps(uvloop.run(measure(systems, options.count))))


if __name__ == "__main__":
    main()
