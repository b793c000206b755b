"""A receiver of webhooks: a real HTTP server, which verifies each as the convention's own package does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from standardwebhooks.webhooks import Webhook

HOOK_SECRET = "whsec_dGhlIHRlc3RzJyBvd24gc2VjcmV0LCB3aGljaCBpcyBsb25n"


class Call(msgspec.Struct, frozen=True):
    """One request."""

    id: str
    type: str
    user: str
    version: int
    data: dict[str, Any]
    taken: bool
    """Whether it was answered with 2xx."""


Answers = Callable[[Call], Awaitable[web.Response | None]]
"""What to answer; None for 204. An exception closes the connection."""


async def take_all(_call: Call) -> None:
    """Answer everything with 204."""


class Receiver:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.refused: list[str] = []
        """Why requests were none of the convention's."""
        self.answers: Answers = take_all

    def taken(self) -> list[tuple[str, str, int]]:
        """Type, user and version of each event, as it was taken for the first time."""
        return list({each.id: (each.type, each.user, each.version) for each in self.calls if each.taken}.values())

    def violations(self) -> list[str]:
        """What breaks the promise: a version by two ids, an id of two versions, a version before an earlier one."""
        found = list(self.refused)
        ids: dict[tuple[str, int], set[str]] = defaultdict(set)
        meant: dict[str, set[tuple[str, int]]] = defaultdict(set)
        last: dict[str, int] = defaultdict(int)
        known: set[str] = set()
        for each in self.calls:
            ids[each.user, each.version].add(each.id)
            meant[each.id].add((each.user, each.version))
            if each.taken and each.id not in known:
                known.add(each.id)
                if each.version < last[each.user]:
                    found.append(f"{each.user}: {each.version} was taken after {last[each.user]}")
                last[each.user] = max(last[each.user], each.version)
        found += [
            f"{user} {version} came as {sorted(names)}" for (user, version), names in ids.items() if len(names) > 1
        ]
        return found + [f"{name} meant {sorted(what)}" for name, what in meant.items() if len(what) > 1]

    def missing(self, user: str, version: int) -> set[int]:
        """Which versions of a user, up to one, never were taken."""
        return set(range(1, version + 1)) - {number for _type, whose, number in self.taken() if whose == user}

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            payload = Webhook(HOOK_SECRET).verify(body, dict(request.headers))
            assert payload["id"] == request.headers["webhook-id"], "the body has another id"
            assert request.content_type == "application/json"
        except Exception as error:
            self.refused.append(repr(error))
            return web.Response(status=400)
        data = payload["data"]
        # A member's versions are the channel's.
        whose = " in ".join(data[name] for name in ("userId", "channel") if name in data)
        call = Call(payload["id"], payload["type"], whose, data["version"], data, taken=True)
        place = len(self.calls)
        self.calls.append(msgspec.structs.replace(call, taken=False))
        response = await self.answers(call) or web.Response(status=204)
        # What it took it has, whether or not anybody is left to hear so.
        self.calls[place] = msgspec.structs.replace(call, taken=response.status < 300)
        return response


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens until the end."""
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made._handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}/hook"
        yield made
    finally:
        async with asyncio.timeout(5):
            await runner.cleanup()
