"""Laravel Echo, pusher-js and Pusher's library for Python in one presence channel, over three nodes; one dies."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import STEP, Process, eventually, make_token
from pusher import Pusher
from redis_servers import fresh_prefix
from test_js_client import Heard, node
from test_js_pusher import APP, ENGINES, KEY, PUSHER_SECRET

Spawn = Callable[..., Awaitable[Process]]

KINDS = ("echo", "pusher")
NODES = 3
GRACE = 1


class Room:
    """The pages of one process of Node, and what each has heard."""

    def __init__(self, process: asyncio.subprocess.Process, urls: list[str]) -> None:
        self.heard = Heard(process)
        self.urls = urls
        self.pages: list[str] = []
        """Those that are looked at."""
        assert process.stdin is not None
        self._input = process.stdin

    async def open(self, user: str, kind: str, at: int) -> str:
        """Open a page of a user's at a node, and wait until it knows who is there."""
        page = f"{user} by {kind} at {at}"
        said = {"open": page, "kind": kind, "url": self.urls[at], "token": make_token(user, name=user)}
        self._input.write(json.dumps(said).encode() + b"\n")
        await eventually(lambda: self.of(page, "here"), within=2 * STEP)
        return page

    def close(self, page: str) -> None:
        self._input.write(json.dumps({"close": page}).encode() + b"\n")

    def of(self, page: str, event: str) -> list[Any]:
        """The data of each event of a name that a page has heard."""
        return [data for name, (what, data) in self.heard.lines if name == page and what == event]

    async def all_hear(self, event: str, *expected: object) -> None:
        """Wait until each page that is looked at has heard what is expected, each once, and nothing else."""

        def heard() -> dict[str, Counter[str]]:
            return {page: Counter(map(json.dumps, self.of(page, event))) for page in self.pages}

        right = Counter(map(json.dumps, expected))
        try:
            await eventually(lambda: all(each == right for each in heard().values()), within=3 * STEP)
        except AssertionError:
            assert heard() == dict.fromkeys(self.pages, right)
            raise

    def forget(self) -> None:
        """Look only at what comes from now on."""
        self.heard.lines.clear()


async def backend(url: str, name: str, *arguments: object) -> Any:
    """Call a node as a backend does that has Pusher's library."""
    host, _, port = url.removeprefix("http://").partition(":")
    pusher = Pusher(app_id="1", key=KEY, secret=PUSHER_SECRET, ssl=False, host=host, port=int(port))
    try:
        return await asyncio.to_thread(getattr(pusher, name), *arguments)
    finally:
        for client in (pusher._pusher_client, pusher._authentication_client):
            client.http.session.close()


USERS = [f"{kind}-{at}" for at in range(NODES) for kind in KINDS]


async def come(room: Room) -> None:
    """One by one they come: each finds who is there, and is told of whoever comes later."""
    for number, user in enumerate(USERS):
        kind, _, at = user.partition("-")
        page = await room.open(user, kind, int(at))
        assert room.of(page, "here") == [sorted(USERS[: number + 1])]
        room.pages.append(page)
    later = [USERS[number + 1 :] for number in range(len(USERS))]
    await eventually(lambda: [room.of(page, "joining") for page in room.pages] == later)


async def be_everywhere(room: Room) -> None:
    """A user with a page of each kind at each node comes once, and goes once with the last of them."""
    room.forget()
    tabs = [await room.open("everywhere", kind, at) for at in range(NODES) for kind in KINDS]
    assert all(room.of(tab, "here") == [sorted([*USERS, "everywhere"])] for tab in tabs)
    await room.all_hear("joining", "everywhere")
    for tab in tabs[:-1]:
        room.close(tab)
    await asyncio.sleep(1.5 * GRACE)
    await backend(room.urls[0], "trigger", "presence-room", "said", "still there")
    await room.all_hear("said", "still there")
    await room.all_hear("leaving")
    room.close(tabs[-1])
    await room.all_hear("leaving", "everywhere")


async def talk(room: Room) -> None:
    """What is triggered at any node reaches the pages of all, once, in one order."""
    room.forget()
    said = [{"number": number} for number in range(4 * NODES)]
    for each in said:
        await backend(room.urls[each["number"] % NODES], "trigger", "presence-room", "said", each)
    await room.all_hear("said", *said)
    assert all(room.of(page, "said") == said for page in room.pages)
    for url in room.urls:
        found = await backend(url, "users_info", "presence-room")
        assert [each["id"] for each in found["users"]] == sorted(USERS)


async def lose_the_last(room: Room, gateway: Process) -> None:
    """A node is killed: whoever was there by it alone goes once, everywhere, and whoever is elsewhere too stays."""
    for at, kind in ((0, "pusher"), (NODES - 1, "echo")):
        await room.open("both", kind, at)
    await room.all_hear("joining", "both")
    room.forget()
    await gateway.stop(signal.SIGKILL)
    room.pages = [page for page in room.pages if not page.endswith(f"at {NODES - 1}")]
    gone = [user for user in USERS if user.endswith(f"-{NODES - 1}")]
    left = sorted([*(user for user in USERS if user not in gone), "both"])
    await room.all_hear("leaving", *gone)
    for at, url in enumerate(room.urls[:-1]):
        found = await backend(url, "users_info", "presence-room")
        assert [each["id"] for each in found["users"]] == left
        await backend(url, "trigger", "presence-room", "said", at)
    await room.all_hear("said", *range(NODES - 1))
    await room.all_hear("leaving", *gone)
    await room.all_hear("joining")
    page = await room.open("late", "pusher", 1)
    assert room.of(page, "here") == [sorted([*left, "late"])]


@pytest.mark.parametrize("engine", ENGINES)
async def test_three_nodes_are_one_room_and_one_that_is_killed_takes_its_members_with_it_once(
    spawn: Spawn, engine: str, redis_url: str
) -> None:
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "PRESENCE_OFFLINE_GRACE": str(GRACE)}
    options = {"GATEWAY_ENGINE": engine, "NODE_LEASE": "2", **shared, **APP}
    gateways = [await spawn(**options) for _ in range(NODES)]
    urls = [gateway.url for gateway in gateways]
    async with node("pages.mjs", url=urls[0], transports="websocket", PUSHER_KEY=KEY, ROOM="room") as process:
        room = Room(process, urls)
        await come(room)
        await be_everywhere(room)
        await talk(room)
        await lose_the_last(room, gateways[-1])
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), STEP) == 0
        await room.heard.reading
    assert not any("Traceback" in gateway.log for gateway in gateways)
