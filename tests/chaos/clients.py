"""The harness' end of ``clients.mjs``: gives commands, and keeps the trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from conftest import make_token, require_program

from chaos.trace import AnyRecord, Left, Lost, Record, Up

PROGRAM = Path(__file__).with_suffix(".mjs")
PUSHER = {"PUSHER_APP_ID": "chaos", "PUSHER_APP_KEY": "chaos-key", "PUSHER_APP_SECRET": "chaos-secret"}
"""The application whose backend signs what Pusher's clients enter."""
MAX_LINE = 16 * 1024 * 1024

_decode = msgspec.json.Decoder(AnyRecord).decode


class Client(msgspec.Struct, frozen=True):
    """One client: whose it is and where it goes."""

    name: str
    user: str
    node: int
    """Which gateway it tries first."""
    pinned: bool = False
    """True for one that tries no other."""
    polling: bool = False
    """True for one that begins with long-polling, as a browser does by default."""
    watches: tuple[str, ...] = ()
    """The users that it watches; none for one that hears of everyone."""
    channels: tuple[str, ...] = ()
    """The channels that it is in while it is connected."""
    door: str = "native"
    """Or ``echo``, or ``pusher``: these hear of channels alone."""


class Clients:
    """Every client of one run.

    Args:
        process: what hosts them.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.records: list[Record] = []
        self.up: dict[str, int] = {}
        """The clients that are connected now, and to which node."""
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, gateways: Sequence[str], users: Sequence[str]) -> AsyncIterator[Clients]:
        """Start the process. `users` are all whom the clients know of, and ask for."""
        process = await asyncio.create_subprocess_exec(
            require_program("node"),
            str(PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
        )
        clients = cls(process)
        reader = asyncio.create_task(clients._read())
        try:
            application = {"key": PUSHER["PUSHER_APP_KEY"], "secret": PUSHER["PUSHER_APP_SECRET"]}
            clients.tell("world", gateways=gateways, users=users, application=application)
            yield clients
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reader

    def open(self, client: Client) -> None:
        """Connect, and stay connected."""
        self.tell(
            "open",
            client=client.name,
            token=make_token(client.user, ttl=24 * 3600),
            node=client.node,
            pinned=client.pinned,
            transports=["polling", "websocket"] if client.polling else ["websocket"],
            watches=client.watches,
            user=client.user,
            channels=client.channels,
            door=client.door,
        )

    def tell(self, command: str, **options: Any) -> None:
        """Give one of the commands at the end of ``clients.mjs``."""
        assert self._process.stdin is not None
        assert self._process.returncode is None, "the clients' process has ended; its error is above"
        self._process.stdin.write(msgspec.json.encode({"command": command, **options}) + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):  # it was ended while it wrote
                break
            record: Record = _decode(line)
            self.records.append(record)
            match record:
                case Up():
                    self.up[record.client] = record.node
                case Left() | Lost():
                    self.up.pop(record.client, None)
                case _:
                    pass
