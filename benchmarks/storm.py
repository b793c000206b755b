"""All clients at once: how long until the last one is in, and what becomes of those who were there before.

``python -m benchmarks.storm --help``. The clients behave as socket.io-client does: a handshake that fails, or takes
longer than its time-out, is tried again after a back-off with jitter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import jwt
import uvloop

from benchmarks.client import Client, ClientError, request_frame, text_frame
from benchmarks.servers import SECRET, all_servers, running

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT = 20.0
"""Seconds that a client waits to be let in: socket.io-client's."""

DELAY, DELAY_MAX, RANDOMIZATION = 1.0, 5.0, 0.5
"""How socket.io-client backs off: seconds before the second try, at the most, and the part that is left to chance."""

ASK_EVERY = 0.05
"""Seconds between the questions of the one who was there before."""

_BUSY = b"HTTP/1.1 503"
_PING, _PONG = b"\x81\x012", text_frame("3")


class BusyError(ClientError):
    """The server asks the client to come back.

    Args:
        retry_after: in how many seconds.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"503; come back in {retry_after:g} s")
        self.retry_after = retry_after


class StormClient(Client):
    """A client that understands that it is asked to come back, and once it is in reads nothing but pings."""

    def data_received(self, data: bytes) -> None:
        """Take frames apart while it is let in; see the base class."""
        if self.ready.done():
            if _PING in data:
                self.send(_PONG)
        elif (self._buffer + data).startswith(_BUSY):
            self._buffer += data
            with contextlib.suppress(ValueError):  # not whole yet
                told = json.loads(self._buffer.partition(b"\r\n\r\n")[2])
                self.ready.set_exception(BusyError(told["retryAfter"]))
                self._transport.close()
        else:
            super().data_received(data)


@dataclass
class Storm:
    """What became of all clients."""

    settled: list[float] = field(default_factory=list)
    """Seconds from the storm's beginning until each was in."""
    longest_handshake: float = 0.0
    """Seconds, of those that came to an end."""
    refusals: int = 0
    longest_retry_after: float = 0.0
    timeouts: int = 0
    failures: int = 0
    """Handshakes that ended otherwise."""
    answers: list[float] = field(default_factory=list)
    """Seconds that each question took, of one who was there before."""
    clients: list[Client] = field(default_factory=list)


def token(user: str, tenant: str | None = None, secret: str = SECRET) -> str:
    """A JWT for a user of the storm."""
    claims = {"sub": user, "exp": int(time.time()) + 3600} | ({} if tenant is None else {"tenant": tenant})
    return jwt.encode(claims, secret, algorithm="HS256")


def backoff(attempt: int) -> float:
    """Seconds until a client tries again, which has failed so many times before: as socket.io-client has it."""
    delay = DELAY * 2 ** min(attempt, 10)
    deviation = random.random() * RANDOMIZATION * delay  # noqa: S311 - chance, no secret
    return float(min(delay + random.choice((-1, 1)) * deviation, DELAY_MAX))  # noqa: S311 - chance, no secret


async def come(storm: Storm, port: int, bearer: str, began: float, *, obedient: bool) -> None:
    """Connect until it succeeds.

    Args:
        storm: what to write it into.
        port: where the server listens.
        bearer: who it is.
        began: when the storm began, on the clock of `time.perf_counter`.
        obedient: go by ``retryAfter`` instead of a back-off.
    """
    attempt = 0
    while True:
        asked, wait = time.perf_counter(), backoff(attempt)
        try:
            async with asyncio.timeout(TIMEOUT):
                client = await StormClient.open(port, bearer, _ignore_answer, _ignore_event)
        except TimeoutError:
            storm.timeouts += 1
        except BusyError as error:
            storm.refusals += 1
            storm.longest_retry_after = max(storm.longest_retry_after, error.retry_after)
            wait = error.retry_after if obedient else wait
        except (ClientError, OSError):
            storm.failures += 1
        else:
            now = time.perf_counter()
            storm.settled.append(now - began)
            storm.longest_handshake = max(storm.longest_handshake, now - asked)
            storm.clients.append(client)
            return
        attempt += 1
        await asyncio.sleep(wait)


def _ignore_answer(_client: Client, _text: bytes) -> None:
    pass


def _ignore_event(_text: bytes) -> None:
    pass


async def ask(storm: Storm, port: int, bearer: str, there: asyncio.Event) -> None:
    """Be there, and ask for a user's status again and again, until cancelled; `there` is set after the first answer."""
    answered = asyncio.Event()
    client = await Client.open(port, bearer, lambda _client, _text: answered.set(), _ignore_event)
    question = request_frame("check-user-status", {"userId": "u0"})
    while True:
        answered.clear()
        asked = time.perf_counter()
        client.send(question)
        await answered.wait()
        if there.is_set():
            storm.answers.append(time.perf_counter() - asked)
        there.set()
        await asyncio.sleep(ASK_EVERY)


async def blow(
    port: int, bearers: Sequence[str], bystander: str, *, limit: float, obedient: bool = False
) -> tuple[Storm, float]:
    """Let all clients come at once.

    Args:
        port: where the server listens.
        bearers: the token of each client.
        bystander: that of one who is there before, and is answered meanwhile.
        limit: seconds after which it is over, whoever is still outside.
        obedient: whether clients go by ``retryAfter``; otherwise by socket.io-client's back-off.

    Returns:
        What became of them, and how many seconds it took.
    """
    storm = Storm()
    there = asyncio.Event()
    asking = asyncio.create_task(ask(storm, port, bystander, there))
    await asyncio.wait_for(there.wait(), TIMEOUT)
    began = time.perf_counter()
    comers = [asyncio.create_task(come(storm, port, bearer, began, obedient=obedient)) for bearer in bearers]
    await asyncio.wait(comers, timeout=limit)
    took = time.perf_counter() - began
    for task in (*comers, asking):
        task.cancel()
    results = await asyncio.gather(*comers, asking, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return storm, took


def disperse(storm: Storm) -> None:
    """Let everybody be gone without a goodbye."""
    for client in storm.clients:
        client.vanish()
    storm.clients.clear()


def report(storm: Storm, count: int, took: float) -> str:
    """What happened, as lines for people."""
    settled = sorted(storm.settled) or [float("nan")]
    answers = sorted(storm.answers) or [float("nan")]
    half, median, late = (
        settled[len(settled) // 2],
        answers[len(answers) // 2] * 1000,
        answers[int(len(answers) * 0.99)] * 1000,
    )
    lines = [
        f"settled             {len(storm.settled):,} of {count:,} within {took:.1f} s, half within {half:.1f} s",
        f"longest handshake   {storm.longest_handshake:.2f} s",
        f"refusals            {storm.refusals:,}, retryAfter up to {storm.longest_retry_after:.1f} s",
        f"time-outs           {storm.timeouts:,}, other failures {storm.failures:,}",
        (
            f"requests meanwhile  {len(answers):,}, answered in {median:.1f} ms (median), {late:.0f} ms (p99),"
            f" {answers[-1] * 1000:.0f} ms (longest)"
        ),
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it.

    Returns:
        The exit status: 0 where everybody was let in and nobody timed out.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rate", default="300/s", help="CONNECT_RATE (default: 300/s)")
    parser.add_argument("--tenants", type=int, default=1, help="so many, who do not hear of each other (default: 1)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that it may take (default: 120)")
    parser.add_argument("--obedient", action="store_true", help="clients go by retryAfter, not by their back-off")
    parser.add_argument("--again", action="store_true", help="measure them coming back within the grace, too")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bearers = [token(f"u{n}", f"t{n % options.tenants}") for n in range(options.clients)]
    gateway = all_servers()["gateway"]
    server = replace(
        gateway, environment={**gateway.environment, "CONNECT_RATE": options.rate, "PRESENCE_OFFLINE_GRACE": "300"}
    )
    with running(server, None) as (_, port), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(f"{options.clients:,} clients in {options.tenants:,} tenants, CONNECT_RATE {options.rate}")
        well = True
        for label in ("all of them new", "all of them back within the grace")[: 1 + options.again]:
            storm, took = runner.run(
                blow(port, bearers, token("bystander", "t0"), limit=options.limit, obedient=options.obedient)
            )
            print(f"\n{label}\n{report(storm, options.clients, took)}", flush=True)
            well = well and len(storm.settled) == options.clients and not storm.timeouts
            disperse(storm)
            runner.run(asyncio.sleep(2))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
