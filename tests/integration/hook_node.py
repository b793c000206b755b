"""An application with hooks, as a process of its own: each call is a line of a file that all nodes share.

Arguments: the file; how many seconds a call takes between its two lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from aiohttp import web

from gateway import Gateway, Settings
from gateway.presence.model import Transition
from gateway.telemetry import configure_logs

path, pause = Path(sys.argv[1]), float(sys.argv[2])
configure_logs("console", "info")
gateway = Gateway(Settings())


def write(word: str, change: Transition) -> None:
    with path.open("a") as lines:
        lines.write(f"{word} {os.getpid()} {change.user_id} {change.now.version}\n")


@gateway.on("user-online", once=True, name="counts")
@gateway.on("user-offline", once=True, name="counts-too")
async def count(change: Transition) -> None:
    write("begun", change)
    await asyncio.sleep(pause)
    write("done", change)


@gateway.on("user-online", once=True, timeout=0.2)
async def hang(change: Transition) -> None:
    write("hung", change)
    await asyncio.Event().wait()


@gateway.on("user-online")
async def everywhere(change: Transition) -> None:
    write("everywhere", change)


async def main() -> None:
    app = web.Application()
    gateway.attach(app)
    runner = web.AppRunner(app, access_log=None, handle_signals=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)  # noqa: T201 - for who started it
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stop.set)
    await stop.wait()
    await runner.cleanup()


asyncio.run(main())
