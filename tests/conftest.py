"""What every test can ask for: a clock that jumps, a gateway in this process, a gateway in its own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import jwt
import pytest
from accepting import close_what_comes_too_late
from aiohttp import web
from postgres_servers import make_database, shared_postgres  # noqa: F401 - fixtures for every test
from redis_servers import redis_url, shared_redis  # noqa: F401 - fixtures for every test

ROOT = Path(__file__).resolve().parent.parent


def interpreted(folder: str) -> FileFinder:
    """Find the gateway's modules past what they were compiled to."""
    if not Path(folder).is_relative_to(ROOT / "gateway"):
        raise ImportError(folder)
    return FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))


if os.environ.get("GATEWAY_COMPILE") == "never":  # in this process: as where there is no compiler
    sys.path_hooks.insert(0, interpreted)
    sys.path_importer_cache.clear()

close_what_comes_too_late()

from gateway import Gateway, Settings
from gateway.app import create_app
from gateway.presence.model import Timing

SECRET = "a secret of the tests, long enough for HS256"
SERVICE_KEY = "service-key-of-the-tests"
TIMING = Timing(away_after=90_000, ttl=120_000, grace=5_000, lease=10_000)
STEP = 5.0
"""Seconds that a real process may take for what takes milliseconds, on a busy machine."""


class Clock:
    """A clock that tests jump. Starts at a time that is easy to read."""

    def __init__(self, now: int = 1_000_000) -> None:
        self.now = now

    offset = 0

    def __call__(self) -> int:
        return self.now

    def monotonic(self) -> int:
        return self.now * 1_000_000

    def set_by(self, theirs: int, asked_at: int) -> None:
        """This clock is the test's."""

    def advance(self, *, ms: int = 0, s: float = 0) -> int:
        self.now += ms + round(s * 1000)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_token(user: str | int = "alice", *, secret: str = SECRET, ttl: float = 3600, **claims: Any) -> str:
    """A JWT as an application's backend would sign it; a claim that is None is left out."""
    payload = {"sub": user, "exp": int(time.time() + ttl), **claims}
    return jwt.encode({name: value for name, value in payload.items() if value is not None}, secret, algorithm="HS256")


def make_settings(**values: Any) -> Settings:
    defaults: dict[str, Any] = {"jwt_secret": SECRET, "service_api_keys": SERVICE_KEY, "presence_offline_grace": 0.3}
    return Settings(_env_file=None, **(defaults | values))  # type: ignore[call-arg]  # pydantic-settings' own argument


def require_program(name: str) -> str:
    """The path of a program that a test needs; in CI it is a failure to lack it, elsewhere a reason to skip."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed: .ci/run shows how"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


async def eventually(condition: Callable[[], Any], *, within: float = STEP) -> Any:
    """Wait until `condition()` is true, and return what it returned."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within} s: {condition}")
        await asyncio.sleep(0.01)
    return result


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test opened, in the opposite order. Ask for it after `serve`, to be done before that stops."""
    async with AsyncExitStack() as stack:
        yield stack


@dataclass
class Running:
    """A gateway that serves in this process, on a real port."""

    gateway: Gateway
    url: str
    runner: web.AppRunner

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Start gateways in this process; a call takes settings, and visibility rules. They are stopped after the test."""
    started: list[Running] = []

    async def start(app: web.Application | None = None, **settings: Any) -> Running:
        rules = {
            name: settings.pop(name)
            for name in ("visibility", "visibility_of", "can_message", "channel_auth")
            if name in settings
        }
        gateway = Gateway(make_settings(**settings), **rules)
        options: dict[str, Any] = {"access_log": None, "shutdown_timeout": 1}
        if app is None:
            runner = gateway.runner(create_app(gateway), **options)
        else:
            gateway.attach(app)
            runner = web.AppRunner(app, **options)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        started.append(Running(gateway, f"http://{host}:{port}", runner))
        return started[-1]

    yield start
    for running in started:
        await running.runner.cleanup()


@dataclass
class Process:
    """A gateway in a process of its own, and every line it has logged."""

    process: asyncio.subprocess.Process
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    async def logged(self, pattern: str, *, within: float = 2 * STEP) -> re.Match[str]:
        """Wait until a line of the log matches."""
        await eventually(lambda: re.search(pattern, self.log) or self.process.returncode is not None, within=within)
        found = re.search(pattern, self.log)
        assert found is not None, f"it has ended, and logged no {pattern}: {self.log}"
        return found

    async def stop(self, sent: signal.Signals = signal.SIGTERM, *, within: float = 15) -> int:
        """Send a signal, and return the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(sent)
        return await asyncio.wait_for(self.process.wait(), within)


@asynccontextmanager
async def gateway_process(*arguments: str, **variables: str) -> AsyncIterator[Process]:
    """``python -m gateway serve`` in a process of its own, with arguments, and variables by name."""
    inherited = {
        name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "GATEWAY_ENGINE"}
    }
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway", "serve", "--port", "0", *arguments),
            cwd=ROOT,
            env=inherited | {"JWT_SECRET": SECRET, "SERVICE_API_KEYS": SERVICE_KEY} | variables,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    reader = asyncio.create_task(_collect(process))
    try:
        process.url = (await process.logged(r"(http://[\d.]+:\d+)", within=6 * STEP))[1]
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
            await process.process.wait()
        await reader


@pytest.fixture
async def spawn() -> AsyncIterator[Callable[..., Awaitable[Process]]]:
    """Start gateways in processes of their own, as `gateway_process` does; they end with the test."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, **variables: str) -> Process:
            return await stack.enter_async_context(gateway_process(*arguments, **variables))

        yield start


async def _collect(process: Process) -> None:
    assert process.process.stderr is not None
    async for line in process.process.stderr:
        process.lines.append(line.decode().rstrip())
