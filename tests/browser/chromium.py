"""The browser that pages are tried in."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from conftest import ROOT, require_program
from playwright.async_api import Browser, async_playwright

CLIENT = ROOT / "node_modules" / "socket.io-client" / "dist" / "socket.io.min.js"
PICTURES = ROOT / "docs" / "images" if os.environ.get("UPDATE_PICTURES") else ROOT / "tests" / "output"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    program = require_program("chromium")
    if not CLIENT.is_file():
        message = "socket.io-client is not installed: npm ci"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGUMENTS) as browser,
    ):
        yield browser
