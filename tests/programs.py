"""Lines of a shell, as pages of the documentation tell them, and the programs that go on running by them."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from conftest import ROOT, STEP, require_program

KEPT = {"HOME", "LANG", "GATEWAY_ENGINE", "GATEWAY_COMPILE"}


@dataclass
class Shell:
    """A shell at work, and what it has printed."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def serves(self, url: str) -> None:
        """Wait until a gateway that it started lets people in."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(6 * STEP):
            while not await _ready(session, url):
                assert self.process.returncode is None, "\n".join(self.lines)
                await asyncio.sleep(0.05)


@asynccontextmanager
async def shell(lines: str, folder: Path, **variables: str) -> AsyncIterator[Shell]:
    """Run them in an empty folder as in a checkout where `make` has set up; all that they started ends with the block.

    `make` has this interpreter for its own, and takes what it would set up for set up.
    """
    tools, here = folder / "tools", Path(sys.executable).parent
    tools.mkdir()
    (folder / ".venv").symlink_to(here.parent)
    settled = f"-C {shlex.quote(str(ROOT))} -o .venv/runtime -o .venv/development -o node_modules/.stamp"
    (tools / "make").write_text(f'#!/bin/sh\nexec {require_program("make")} {settled} BIN={here} "$@"\n')
    (tools / "make").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    process = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-c", f"{lines}\nwait"),
        cwd=folder,
        env=kept | {"PATH": f"{tools}:{here}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    started = Shell(process)
    reader = asyncio.create_task(_read(started))
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reader


async def _ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def _read(started: Shell) -> None:
    assert started.process.stdout is not None
    async for line in started.process.stdout:
        started.lines.append(line.decode().rstrip())
