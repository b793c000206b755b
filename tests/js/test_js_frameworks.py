"""The modules for React and Vue, with the real frameworks and the real client, against the gateway."""

from __future__ import annotations

import pytest
from test_js_client import Spawn, run_tests


@pytest.mark.parametrize("file", ["react.test.mjs", "vue.test.mjs", "server.test.mjs"])
async def test_a_page_knows_who_is_online(spawn: Spawn, file: str) -> None:
    await run_tests(await spawn(PRESENCE_OFFLINE_GRACE="0.2"), file, "websocket")
