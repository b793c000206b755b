"""Run the benchmark: ``python -m benchmarks``, or ``make bench``.

Each round starts every server anew, with a load of its own; then each operation is measured on one server after the
other, in another order than in the round before, so that what is compared was measured within seconds. All servers
share one core and all loads another, where there are two; only one pair has something to do. After the rounds the
gateway is compared with itself. ``benchmarks/limits.py`` has what is compared, and the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import load as operations
from benchmarks import plot, report
from benchmarks.csend import AT_ONCE, Rhythm, compiled, send_microseconds
from benchmarks.limits import (
    BOUND,
    GATEWAY,
    IDLE_FEW,
    IDLE_MANY,
    IDLE_SOME,
    NODE,
    ROW_AT_ONCE,
    ROW_FEW,
    ROW_MANY,
    ROW_SOME,
    C,
    comparisons,
)
from benchmarks.process import children_on, stolen_seconds
from benchmarks.servers import ROOT, Server, ServerError, all_servers, environment, redis_server, running
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SILENT_RATE = 1_000_000
"""Bytes a second for each client that reads nothing."""
RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"
QUICK = {
    "servers": [GATEWAY, NODE],
    "connections": 200,
    "rounds": 1,
    "passes": 2,
    "seconds": 0.1,
    "across": 30,
    "idle": 1_500,
    "settled_after": 1.0,
    "silent_seconds": 8,
}
PARTS = ("operations", "across", "itself", "silent")
"""Every operation on all servers; from node to node; the gateway against itself; clients that read nothing."""

_SELF_SETTINGS = {"PING_INTERVAL": "3600"}
"""Pings cost what connections cost that idle, and are no part of what others do beside them."""
_SILENT_SETTINGS = {"PRESENCE_OFFLINE_GRACE": "0"}
"""So that one beside them hears at once when one is given up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results.

    Returns:
        The exit status: 0 where no limit is missed, 1 where one is, 2 where it could not be measured.
    """
    available = all_servers()
    parser = _parser(list(available))
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    usual = [name for name, server in available.items() if not server.optional]
    servers = [available[name] for name in options.servers or usual if name in available]
    if NODE not in available:
        print("WITHOUT NODE: install Node and npm, and run make bench, to have the ratios to it.\n")
    results, status = Benchmark(servers, options).run()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"\nWritten to {options.output} and {options.output.with_suffix('.svg').name}.")
    return status


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--connections", type=int, default=2_000, help="clients that stay connected (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all servers are started anew (3)")
    parser.add_argument("--passes", type=int, default=3, help="how often each round measures an operation (3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each operation runs (0.5)")
    parser.add_argument("--across", type=int, default=200, help="users per round who come to one node of two (200)")
    parser.add_argument("--idle", type=int, default=IDLE_MANY, help=f"the most the gateway holds ({IDLE_MANY})")
    # By then the gateway has forgotten that connections are new: its timers of their handshakes are over.
    parser.add_argument("--settled-after", type=float, default=12, help="seconds from filling to measuring it (12)")
    parser.add_argument("--silent", type=int, default=16, help="clients that read nothing (16)")
    parser.add_argument("--silent-seconds", type=float, default=12, help="how long they ask (12)")
    parser.add_argument("--servers", nargs="+", choices=names, help=f"which of {' '.join(names)} (not gateway-stock)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help=f"which of {' '.join(PARTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="a look within a minute: fewer of everything, one round")
    parser.add_argument("--no-storms", dest="storms", action="store_false", help="neither join nor rejoin storm")
    parser.add_argument("--browsers", action="store_true", help="clients say that they are, and can recover")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="measure only; exit with 0")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go, as JSON, and beside it SVG")
    return parser


class Benchmark:
    """One run of everything that was asked for.

    Args:
        servers: which are measured, the gateway among them or not.
        options: the command line's.
    """

    def __init__(self, servers: Sequence[Server], options: argparse.Namespace) -> None:
        self._servers = servers
        self._options = options
        self._measured: report.Measured = {server.name: {} for server in servers}
        self._raw: dict[str, Any] = {"across": []}
        self._notes: list[str] = []
        self._all_closed = True
        self._failed = False
        cores = sorted(os.sched_getaffinity(0))
        self._cores: tuple[int | None, int | None] = (cores[0], cores[1]) if len(cores) > 1 else (None, None)

    def run(self) -> tuple[dict[str, Any], int]:
        """Measure and print.

        Returns:
            The results for JSON, and the exit status: 0 where no limit is missed, 1 where one is, 2 where something
            could not be measured.
        """
        _allow_many_files()
        options = self._options
        conditions: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": report.machine(),
            "servers": {server.name: server.about for server in self._servers},
            "connections": options.connections,
            "seconds": options.seconds,
            "pinned": self._cores[0] is not None,
        }
        print(report.conditions(conditions))
        busy_before, stolen_before, began = os.getloadavg()[0], stolen_seconds(), time.monotonic()
        loops = self._all_rounds()
        if GATEWAY in self._measured:
            for part, measure in (("itself", self._itself), ("silent", self._silent)):
                if part in options.only:
                    self._try(measure)
        took = time.monotonic() - began
        conditions |= {
            "rounds": len(loops),
            "took": took,
            "load_average": [busy_before, os.getloadavg()[0]],
            "stolen": (stolen_seconds() - stolen_before) / took / (os.cpu_count() or 1),
            "loop_ms": loops or [report.loop_milliseconds()],
        }
        rows = report.results(self._measured, comparisons(options.idle))
        verdict, held = report.verdict(rows)
        missed = not (held and self._all_closed) and options.limits
        print(f"\n{report.table(rows)}\n\n{report.circumstances(conditions)}\n\n{report.busy(self._measured)}\n")
        self._notes += report.sending(self._measured)
        print("\n".join([*self._notes, verdict]))
        picture = plot.draw(rows, f"{conditions['machine']['cpu']}, {options.connections:,} connections")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".svg").write_text(picture)
        notes = {"notes": self._notes, "summary": report.summary(rows)}
        return {**conditions, **notes, "measured": self._measured, **self._raw}, 2 if self._failed else int(missed)

    # All servers, round by round

    def _all_rounds(self) -> list[float]:
        """Measure all rounds, and return how long a fixed loop took before each, in milliseconds."""
        loops: list[float] = []
        with compiled() as program:
            if program is None:
                self._notes.append("NO C COMPILER (cc): what send() costs was not measured. Install one to know.")
            for _ in range(self._options.rounds):
                loops.append(report.loop_milliseconds())
                turn = len(loops) % len(self._servers)
                in_turn = [*self._servers[turn:], *self._servers[:turn]]
                if "operations" in self._options.only:
                    self._try(partial(self._round, in_turn, program))
                if "across" in self._options.only:
                    self._try(self._across)
        return loops

    def _try(self, part: Callable[[], None]) -> None:
        """Measure a part; where it fails, the others are measured all the same."""
        try:
            part()
        except ServerError as error:
            self._failed = True
            self._notes.append(f"FAILED: {error}")

    def _round(self, servers: Sequence[Server], program: Path | None) -> None:
        options = self._options
        with ExitStack() as stack:
            loads = []
            for server in servers:
                pid, port = stack.enter_context(running(server, self._cores[0]))
                quiet = not (server.storms and options.storms)
                arguments = ["--collect"] * server.collects + ["--quiet"] * quiet
                arguments += ["--browsers"] * self._options.browsers
                load = _load(server.name, pid, port, self._cores[1], options.connections, options.seconds, arguments)
                loads.append((server, stack.enter_context(load)))
            for operation in (operations.ALONE, operations.ENTER, *operations.STEADY, operations.LEAVE):
                storm = operation in {operations.ENTER, operations.LEAVE}
                _say(operation)
                for _ in range(1 if storm else options.passes):
                    for server, measure in loads:
                        if operation != operations.LEAVE or (server.storms and options.storms):
                            self._keep(server.name, measure(operation))
                    if operation == operations.STEADY[-1] and program is not None:
                        self._send(program)

    def _send(self, program: Path) -> None:
        """Measure C's ``send()`` beside the gateway's broadcast: of as many bytes, as often, and read as slowly."""
        rows = self._measured.get(GATEWAY, {}).get("broadcast")
        if rows:
            options, last = self._options, rows[-1]
            size = int(last["frame_bytes"])
            same = Rhythm(last["apart"], last["load_share"] * last["seconds"] / last["operations"])
            for row, rhythm in (("broadcast", same), (ROW_AT_ONCE, AT_ONCE)):
                value = send_microseconds(program, options.connections, size, options.seconds, rhythm, self._cores)
                self._keep(C, {row: {"value": value, "frame_bytes": size, **asdict(rhythm)}})

    def _across(self) -> None:
        """Measure from node to node, with a Redis that all systems share and no two use at once."""
        _say("across")
        server_core, load_core = self._cores
        systems = [server for server in self._servers if server.program_of_nodes]
        with ExitStack() as stack:
            try:
                redis_url = stack.enter_context(redis_server(load_core))
            except ServerError as error:
                note = f"NO REDIS ({error}): nothing was measured from node to node."
                self._notes += [note] * (note not in self._notes)
                return
            arguments = [f"--count={self._options.across}"]
            for server in systems:
                ports = [
                    str(stack.enter_context(running(server, server_core, redis_url=redis_url))[1]) for _ in range(2)
                ]
                arguments.append(":".join((server.name, *ports)))
            took: dict[str, list[float]] = json.loads(_run("benchmarks.across", arguments, load_core))
        self._raw["across"].append(took)
        for name, milliseconds in took.items():
            p99 = statistics.quantiles(milliseconds, n=100, method="inclusive")[-1]
            median = statistics.median(milliseconds)
            self._keep(name, {"across-median": {"value": median}, "across-p99": {"value": p99}})

    # The gateway by itself

    def _itself(self) -> None:
        """Measure connecting and heartbeats beside few, some and many connections, in turn."""
        gateway = next(server for server in self._servers if server.name == GATEWAY)
        few, some, many = IDLE_FEW, IDLE_SOME, self._options.idle
        with ExitStack() as stack:
            loads = {}
            for idle in (few, some, many):
                _say(f"settle {idle}")
                pid, port = stack.enter_context(running(gateway, self._cores[0], _SELF_SETTINGS))
                name = f"the gateway with {idle} connections"
                seconds = self._options.seconds
                loads[idle] = stack.enter_context(_load(name, pid, port, self._cores[1], idle, seconds))
                loads[idle](operations.SETTLE)
            time.sleep(self._options.settled_after)
            for row, idle in ((ROW_FEW, few), (ROW_SOME, some), (ROW_MANY, many)):
                upkeep = loads[idle](operations.IDLE)[operations.IDLE]
                self._keep(GATEWAY, {f"{operations.IDLE}-{row}": upkeep})
                self._notes.append(f"{idle:,} idle connections took {upkeep['value']:.1f} ms of CPU a second.")
            pairs = {
                operations.VISIT: {ROW_SOME: loads[some], ROW_MANY: loads[many]},
                operations.BEAT: {ROW_FEW: loads[few], ROW_MANY: loads[many]},
            }
            for operation, compared in pairs.items():
                _say(operation)
                for number in range(-1, self._options.rounds * self._options.passes):  # the first is not counted
                    turn = list(compared.items())
                    for row, measure in turn if number % 2 else reversed(turn):
                        result = measure(operation)[operation]
                        if number >= 0:
                            self._keep(GATEWAY, {f"{operation}-{row}": result})

    def _silent(self) -> None:
        """Measure what the gateway holds for clients that read nothing."""
        _say("silent")
        gateway = next(server for server in self._servers if server.name == GATEWAY)
        server_core, load_core = self._cores
        options = self._options
        with running(gateway, server_core, _SILENT_SETTINGS) as (pid, port):
            numbers = {
                "server": pid,
                "port": port,
                "clients": options.silent,
                "rate": SILENT_RATE,
                "seconds": options.silent_seconds,
            }
            arguments = [f"--{name}={value}" for name, value in numbers.items()]
            row: report.Row = json.loads(_run("benchmarks.silent", arguments, load_core))
        bound = Settings.model_fields["max_send_buffer"].default / 1024
        self._keep(GATEWAY, {"silent": row})
        self._keep(BOUND, {"silent": {"value": bound}})
        closed, clients = int(row["closed"]), int(row["clients"])
        self._all_closed = closed == clients
        said = f"of {clients} clients that read nothing, {closed} were closed with 4008 (too slow)."
        self._notes.append(said.capitalize() if self._all_closed else f"MISSED: {said}")

    def _keep(self, whose: str, rows: dict[str, report.Row]) -> None:
        for what, row in rows.items():
            self._measured.setdefault(whose, {}).setdefault(what, []).append(row)


@contextmanager
def _load(
    name: str,
    pid: int,
    port: int,
    core: int | None,
    connections: int,
    seconds: float,
    arguments: Sequence[str] = (),
) -> Iterator[Callable[[str], dict[str, report.Row]]]:
    """Start a load, give what makes it measure an operation, and end it."""
    numbers = {"server": pid, "port": port, "connections": connections, "seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.load", *(f"--{key}={value}" for key, value in numbers.items())]
    pipe = subprocess.PIPE
    with children_on(core):
        process = subprocess.Popen(
            [*command, *arguments], env=environment(), cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1
        )
    assert process.stdin is not None
    assert process.stdout is not None
    tell, hear = process.stdin.write, process.stdout.readline

    def measure(operation: str) -> dict[str, report.Row]:
        tell(f"{operation}\n")
        line = hear()
        if not line:
            raise ServerError(f"{operation} failed at {name}; the load says above how")
        results: dict[str, report.Row] = json.loads(line)
        return results

    try:
        yield measure
    finally:
        process.kill()
        process.communicate()


def _run(module: str, arguments: Sequence[str], core: int | None) -> str:
    """Run a module to its end on a core, and return what it printed."""
    with children_on(core):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
    said, _ = process.communicate()
    if process.returncode:
        raise ServerError(f"{module} failed; it says above how")
    return said


def _say(what: str) -> None:
    """Tell whoever waits what is being measured; the results are on stdout."""
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def _allow_many_files() -> None:
    """Each connection is a file in the server and in the load; they inherit this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
