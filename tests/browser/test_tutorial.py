"""docs/tutorial.md, done as it says: its application, its page in Chromium, its curl line, its second node."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from chromium import browser  # noqa: F401 - a fixture
from conftest import ROOT, SECRET, STEP
from documents import block
from playwright.async_api import Browser, Page, expect
from redis_servers import free_port, fresh_prefix

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

PAGE = "docs/tutorial.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one has after the sixth step."""
    made = tmp_path_factory.mktemp("who")
    app, last = block(PAGE, mark="file: app.py"), 'if __name__ == "__main__":'
    assert app.count(last) == 1
    (made / "app.py").write_text(app.replace(last, f"{block(PAGE, mark='added to app.py')}\n\n{last}"))
    (made / "who.html").write_text(block(PAGE, mark="file: who.html"))
    return made


@asynccontextmanager
async def application(folder: Path, **variables: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The tutorial's application in a process of its own: its address, and the process."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "GATEWAY_ENGINE"}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "app.py"),
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "JWT_SECRET": SECRET, "PORT": str(port)} | variables,
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(4 * STEP), aiohttp.ClientSession() as session:
            while not await _answers(session, url):
                assert process.returncode is None, "it has ended"
                await asyncio.sleep(0.05)
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@pytest_asyncio.fixture(loop_scope="module")
async def windows(browser: Browser) -> AsyncIterator[AsyncExitStack]:  # noqa: F811 - the fixture
    async with AsyncExitStack() as stack:
        yield stack


async def opened(browser: Browser, windows: AsyncExitStack, url: str, user: str) -> Page:  # noqa: F811 - an argument
    context = await browser.new_context()
    windows.push_async_callback(context.close)
    page = await context.new_page()
    await page.goto(f"{url}/?user={user}")
    return page


async def test_one_node(browser: Browser, windows: AsyncExitStack, folder: Path) -> None:  # noqa: F811 - the fixture
    async with application(folder) as (url, _process):
        alice = await opened(browser, windows, url, "alice")
        await expect(alice.locator("li")).to_have_text(["Alice: online"], timeout=2 * STEP * 1000)
        bob = await opened(browser, windows, url, "bob")
        for page in (alice, bob):
            await expect(page.locator("li")).to_have_count(2, timeout=2 * STEP * 1000)
        await expect(alice.locator("#said")).to_have_text("bob is here", timeout=2 * STEP * 1000)

        second = await bob.context.new_page()
        await second.goto(f"{url}/?user=bob")
        await expect(second.locator("li")).to_have_count(2, timeout=2 * STEP * 1000)
        await second.close()
        await bob.reload()
        await expect(bob.locator("li")).to_have_count(2, timeout=2 * STEP * 1000)
        await expect(alice.locator("li")).to_have_count(2)

        curl = block(PAGE, mark="run by").replace("http://127.0.0.1:8000", url)
        done = await asyncio.create_subprocess_exec("bash", "-euc", curl, stdout=asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(done.communicate(), 30)
        assert json.loads(output) == [{"id": "alice", "online": True}, {"id": "carol", "online": False}]

        await bob.close()
        await expect(alice.locator("li")).to_have_text(["Alice: online"], timeout=(5 + 4 * STEP) * 1000)


async def test_two_nodes(browser: Browser, windows: AsyncExitStack, folder: Path, redis_url: str) -> None:  # noqa: F811 - the fixture
    # A short lease, so that the test need not wait for the usual one.
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "NODE_LEASE": "2", "PRESENCE_OFFLINE_GRACE": "1"}
    async with application(folder, **shared) as (here, _), application(folder, **shared) as (there, other):
        alice = await opened(browser, windows, here, "alice")
        bob = await opened(browser, windows, there, "bob")
        for page in (alice, bob):
            await expect(page.locator("li")).to_have_count(2, timeout=4 * STEP * 1000)
        other.kill()
        await expect(alice.locator("li")).to_have_text(["Alice: online"], timeout=4 * STEP * 1000)
