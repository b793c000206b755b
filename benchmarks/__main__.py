"""Run the benchmark: ``python -m benchmarks``, or ``make bench``.

Each round starts every server anew, with a load of its own; then each operation is measured on one server after the
other, in another order than in the round before, so that what is compared was measured within seconds. All servers
share one core and all loads another, where there are two; only one pair has something to do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report
from benchmarks.load import OPERATIONS
from benchmarks.process import children_on, stolen_seconds
from benchmarks.servers import ROOT, Server, ServerError, all_servers, environment, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PASSES = 3
"""How often each round measures an operation: short and often, so that a moment's stall is one value of many."""
RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results.

    Returns:
        The exit status: 0 measured, 1 not. No number is too bad to be measured.
    """
    available = all_servers()
    options = _parser(list(available)).parse_args(arguments)
    servers = [available[name] for name in options.servers or available]
    if report.BASE not in available:
        print("Without Node: install Node and npm, and run npm ci in benchmarks/node, to have the ratio to it.\n")
    try:
        results = _measure(servers, options)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return 0


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--connections", type=int, default=500, help="clients that stay connected (500)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all servers are started anew (3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each operation runs (0.5)")
    parser.add_argument("--limit", type=float, default=240, help="seconds within which all rounds must end (240)")
    parser.add_argument("--servers", nargs="+", choices=names, help=f"which ({' '.join(names)})")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go, as JSON")
    return parser


def _measure(servers: Sequence[Server], options: argparse.Namespace) -> dict[str, Any]:
    _allow_many_files()
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    conditions = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": report.machine(),
        "servers": {server.name: server.about for server in servers},
        "connections": options.connections,
        "seconds": options.seconds,
        "pinned": server_core is not None,
    }
    print(report.conditions(conditions))
    busy_before, stolen_before = os.getloadavg()[0], stolen_seconds()
    measured: report.Measured = {server.name: {} for server in servers}
    loops: list[float] = []
    began, longest = time.monotonic(), 0.0
    while len(loops) < options.rounds and time.monotonic() - began + longest <= options.limit:
        round_began = time.monotonic()
        loops.append(report.loop_milliseconds())
        turn = len(loops) % len(servers)
        _round([*servers[turn:], *servers[:turn]], measured, server_core, load_core, options)
        longest = max(longest, time.monotonic() - round_began)
    took = time.monotonic() - began
    conditions |= {
        "rounds": len(loops),
        "took": took,
        "load_average": [busy_before, os.getloadavg()[0]],
        "stolen": (stolen_seconds() - stolen_before) / took / (os.cpu_count() or 1),
        "loop_ms": loops,
    }
    print(f"\n{report.table(measured)}\n\n{report.circumstances(conditions)}")
    if len(loops) < options.rounds:
        print(f"Another round might not have ended within {options.limit:.0f} s.")
    return {**conditions, "summary": report.summary(measured), "measured": measured}


def _round(
    servers: Sequence[Server],
    measured: report.Measured,
    server_core: int | None,
    load_core: int | None,
    options: argparse.Namespace,
) -> None:
    with ExitStack() as stack:
        loads = {}
        for server in servers:
            pid, port = stack.enter_context(running(server, server_core))
            loads[server.name] = stack.enter_context(_load(server, pid, port, load_core, options))
        for operation in OPERATIONS:
            print(operation, file=sys.stderr)
            for _ in range(1 if operation == "join" else PASSES):
                for name, measure in loads.items():
                    for what, row in measure(operation).items():
                        measured[name].setdefault(what, []).append(row)


@contextmanager
def _load(
    server: Server, pid: int, port: int, core: int | None, options: argparse.Namespace
) -> Iterator[Callable[[str], dict[str, report.Row]]]:
    """Start a load, give what makes it measure an operation, and end it."""
    numbers = {"server": pid, "port": port, "connections": options.connections, "seconds": options.seconds}
    command = [sys.executable, "-m", "benchmarks.load", *(f"--{name}={value}" for name, value in numbers.items())]
    if server.collects:
        command.append("--collect")
    pipe = subprocess.PIPE
    with children_on(core):
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    tell, hear = process.stdin.write, process.stdout.readline

    def measure(operation: str) -> dict[str, report.Row]:
        tell(f"{operation}\n")
        line = hear()
        if not line:
            raise ServerError(f"{operation} failed at {server.name}; the load says above how")
        results: dict[str, report.Row] = json.loads(line)
        return results

    try:
        yield measure
    finally:
        process.kill()
        process.communicate()


def _allow_many_files() -> None:
    """Each connection is a file in the server and in the load; they inherit this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
