"""The JavaScript of docs/reference, as it stands there."""

from __future__ import annotations

import json

from documents import block
from test_js_client import Spawn, run_tests

PAGES = ("notifications.md", "messages.md", "watching.md", "recovery.md", "sessions.md", "echo.md", "pusher.md")
APPLICATION = {"PUSHER_APP_ID": "1", "PUSHER_APP_KEY": "APP_KEY", "PUSHER_APP_SECRET": "secret"}


async def test_what_a_page_is_told_to_do_does_what_is_said_of_it(spawn: Spawn) -> None:
    gateway = await spawn(PRESENCE_OFFLINE_GRACE="1", **APPLICATION)
    blocks = {page: block(f"docs/reference/{page}", language="js") for page in PAGES}
    await run_tests(gateway, "reference.test.mjs", "websocket", BLOCKS=json.dumps(blocks))
