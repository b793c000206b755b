"""What a program in Node says: a line of JSON for each event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from conftest import STEP


class Told:
    """What one hears."""

    def __init__(self, output: asyncio.StreamReader) -> None:
        self._output = output
        self.heard: list[list[Any]] = []

    async def hears(self, event: str, is_so: Callable[[list[Any]], bool] = lambda _args: True) -> list[Any]:
        """Wait for an event, and return what it brought."""
        async with asyncio.timeout(6 * STEP):
            while line := await self._output.readline():
                name: str
                args: list[Any]
                name, *args = json.loads(line)
                self.heard.append([name, *args])
                if name == event and is_so(args):
                    return args
        raise AssertionError(self.heard)
