"""Who is let in to Socket.IO's Admin UI, with time passed in."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from conftest import make_settings
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway.access.origins import Origins
from gateway.connections.counts import Counts
from gateway.doors.adminui import SESSION, AdminUIDoor

PASSWORD = "a password of the tests, which is long"


class World:
    """A door, and the time."""

    def __init__(self, password: str = PASSWORD) -> None:
        self.now = 1_000_000_000
        nodes: Any = None  # nobody looks
        clock: Any = self._clock
        settings = make_settings(admin_ui_password=password)
        self.door = AdminUIDoor(settings, Origins((), dev=False), nodes, Counts({}), clock)

    def _clock(self) -> int:
        return self.now

    async def lets_in(self, **auth: object) -> bool:
        try:
            await self.door.on_connect("sid", make_mocked_request("GET", "/socket.io/"), auth)
        except Refusal:
            return False
        return True


async def test_a_session_stands_for_the_password_until_it_is_over() -> None:
    world = World()
    session = world.door._new_session()
    assert await world.lets_in(username="admin", password=PASSWORD)
    assert await world.lets_in(sessionId=session)
    world.now += (SESSION - 1) * 1000
    assert await world.lets_in(sessionId=session)
    world.now += 1000
    assert not await world.lets_in(sessionId=session)
    assert await World().lets_in(sessionId=session), "on another node, at that time"


async def test_another_password_ends_every_session() -> None:
    assert not await World("another password of the tests").lets_in(sessionId=World().door._new_session())


@pytest.mark.parametrize("given", [None, "", ".", "9999999999999.", "9999999999999.00", 1, ["x"], "é.\ud800", {}])
async def test_what_is_no_session_is_refused(given: object) -> None:
    assert not await World().lets_in(sessionId=given)
