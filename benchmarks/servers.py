"""The servers that are compared, and how each is started as a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

from benchmarks.limits import GATEWAY, NODE
from benchmarks.process import children_on
from gateway.version import COMPILED, __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
NODE_MODULES = ROOT / "benchmarks" / "node" / "node_modules"
SECRET = secrets.token_hex(32)
START_TIMEOUT = 20.0

_GATEWAY_SETTINGS = {
    "RATE_LIMIT_EVENTS": "1000000/s",
    "CONNECT_RATE": "1000000/s",
    "LOG_LEVEL": "warning",
    # No other server here knows of users who turn away, and those that idle would while another server is measured.
    "PRESENCE_AWAY_AFTER": "86400",
    "PRESENCE_TTL": "86400",
}


class ServerError(Exception):
    """A server cannot be measured; the message says why, with what the server said."""


@dataclass(frozen=True)
class Server:
    """One of those compared."""

    name: str
    command: Sequence[str]
    about: str
    environment: Mapping[str, str] = field(default_factory=dict)
    collects: bool = False
    """Whether it collects its garbage at SIGUSR2, which it is sent before its memory is read."""
    storms: bool = True
    """Whether storms are measured; without, it is asked to tell nobody of who joins."""
    optional: bool = False
    """Whether it takes part only where it is asked for by name."""
    program_of_nodes: Sequence[str] = ()
    """What runs instead of the command where the server is one of several, with ``REDIS_URL``; empty: nothing does."""


def all_servers() -> dict[str, Server]:
    """Those that can run here, by name, the gateway first."""
    python_side = f"python-socketio {version('python-socketio')}, aiohttp {version('aiohttp')}"
    gateway = [sys.executable, "-m", "gateway", "serve"]
    servers = [
        Server(
            GATEWAY,
            gateway,
            f"presence-gateway {__version__} ({python_side}, uvloop {version('uvloop')}; "
            f"{'' if COMPILED else 'not '}compiled); rate limits raised, one log"
            " line per connect and disconnect switched off, nobody turns away",
            _GATEWAY_SETTINGS,
            program_of_nodes=gateway,
        ),
        Server(
            "gateway-stock",
            gateway,
            "the same, with GATEWAY_ENGINE=stock",
            {**_GATEWAY_SETTINGS, "GATEWAY_ENGINE": "stock"},
            optional=True,
        ),
    ]
    node = shutil.which("node")
    if node is not None and NODE_MODULES.is_dir():
        about = (
            f"Node {_said_by(node, '--version')}, socket.io {_npm_version('socket.io')}, ws {_npm_version('ws')},"
            f" @socket.io/redis-adapter {_npm_version('@socket.io/redis-adapter')}, redis {_npm_version('redis')}"
        )
        programs = NODE_MODULES.parent
        servers.append(
            Server(
                NODE,
                [node, "--expose-gc", str(programs / "server.mjs")],
                about,
                collects=True,
                program_of_nodes=[node, str(programs / "nodes.mjs")],
            )
        )
    servers.append(
        Server(
            "stock",
            [sys.executable, "-m", "benchmarks.stock"],
            f"{python_side}, asyncio's loop, standard json; no storms, which take it minutes",
            storms=False,
        )
    )
    return {server.name: server for server in servers}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the processes of a benchmark see of the environment: nothing that could set them differently."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JWT_SECRET": SECRET, **(extra or {})}


@contextmanager
def running(
    server: Server, core: int | None, settings: Mapping[str, str] | None = None, redis_url: str | None = None
) -> Iterator[tuple[int, int]]:
    """Start a server, give its process id and port, and end it.

    Args:
        server: which.
        core: where it stays; None leaves it where it likes.
        settings: of its environment, what is otherwise than usual.
        redis_url: what makes it a node of several; None runs it alone.

    Raises:
        ServerError: it does not come up.
    """
    port = _free_port()
    own = environment({"HOST": "127.0.0.1", "PORT": str(port), **server.environment, **(settings or {})})
    command = server.command
    if redis_url is not None:
        command, own["REDIS_URL"] = server.program_of_nodes, redis_url
    # A directory of its own: a .env file of whoever runs this must not configure the gateway.
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as output:
        with children_on(core):
            process = subprocess.Popen(command, cwd=directory, env=own, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_open(process, port, server.name, output)
            yield process.pid, port
        finally:
            # Killed: stopped, it would tell each client of the end of all others, which nobody measures.
            process.kill()
            process.wait()


@contextmanager
def redis_server(core: int | None) -> Iterator[str]:
    """Start a Redis without persistence on a free port, give its URL, and end it.

    Raises:
        ServerError: there is none, or it does not come up.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise ServerError("redis-server is not installed")
    port = _free_port()
    arguments = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as output:
        with children_on(core):
            process = subprocess.Popen(arguments, cwd=directory, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_open(process, port, "redis-server", output)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int, name: str, output: IO[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    output.seek(0)
    raise ServerError(f"{name} did not start:\n{output.read()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _said_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _npm_version(package: str) -> str:
    return str(json.loads((NODE_MODULES / package / "package.json").read_text())["version"])
