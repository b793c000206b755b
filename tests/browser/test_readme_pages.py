"""The pages of README.md, as they stand there, in Chromium: plain, and in what `npm create vite` makes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from chromium import PICTURES, browser  # noqa: F401 - a fixture
from conftest import ROOT, STEP, Process, eventually, gateway_process, require_program
from documents import block
from playwright.async_api import Browser, Page, expect

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

expect.set_options(timeout=2 * STEP * 1000)

GATEWAY = "http://127.0.0.1:3000"
GRACE = 1.0

REACT = {
    "index.html": '<!doctype html><div id="root"></div><script type="module" src="/src/main.jsx"></script>',
    "vite.config.js": """
        import { defineConfig } from 'vite'
        import react from '@vitejs/plugin-react'
        export default defineConfig({ plugins: [react()] })
    """,
    "src/main.jsx": """
        import { StrictMode } from 'react'
        import { createRoot } from 'react-dom/client'
        import App from './App.jsx'
        createRoot(document.getElementById('root')).render(<StrictMode><App /></StrictMode>)
    """,
}
VUE = {
    "index.html": '<!doctype html><div id="app"></div><script type="module" src="/src/main.js"></script>',
    "vite.config.js": """
        import { defineConfig } from 'vite'
        import vue from '@vitejs/plugin-vue'
        export default defineConfig({ plugins: [vue()] })
    """,
    "src/main.js": """
        import { createApp } from 'vue'
        import App from './App.vue'
        createApp(App).mount('#app')
    """,
}
"""What `npm create vite` makes around the one file that README.md replaces, without its styles."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Process]:
    async with gateway_process("--dev", PRESENCE_OFFLINE_GRACE=str(GRACE)) as process:
        yield process


def of_readme(heading: str, language: str, gateway: Process) -> str:
    """A page's block, as it stands there but for where the gateway is."""
    code = block("README.md", mark="run by tests/browser/test_readme_pages.py", under=heading, language=language)
    assert GATEWAY in code
    return code.replace(GATEWAY, gateway.url)


async def built(folder: Path, files: dict[str, str]) -> Path:
    """Build an application as it is for `npm run dev`, where React runs each effect twice."""
    for name, text in {"package.json": '{"type": "module"}', **files}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    vite = await asyncio.create_subprocess_exec(
        *(require_program("node"), "node_modules/vite/bin/vite.js", "build", "--mode", "development"),
        cwd=folder,
        env={**os.environ, "NODE_ENV": "development"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(vite.communicate(), 90)
    assert vite.returncode == 0, said.decode()
    return folder / "dist"


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[str]:
    """Serve a folder whose page is `index.html`, as a local server does, and give its address."""

    async def index(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / "index.html")

    async def no_icon(_request: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/favicon.ico", no_icon)
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()


class Visitors:
    """Users of one page, each in a browser of their own."""

    def __init__(self, browser: Browser, stack: AsyncExitStack, address: str) -> None:  # noqa: F811 - an argument
        self._browser = browser
        self._stack = stack
        self._address = address
        self.problems: list[str] = []

    async def come(self, user: str) -> Page:
        context = await self._stack.enter_async_context(await self._browser.new_context())
        page = await context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        await page.goto(f"{self._address}?user={user}")
        return page


async def come_and_go(visitors: Visitors, gateway: Process, picture: str) -> None:
    """Two users of a page: each sees the other come, the one sees the other busy, and go."""
    alice = await visitors.come("alice")
    await expect(alice.locator("li")).to_have_text(["alice: online"])
    bob = await visitors.come("bob")
    await expect(alice.locator("li")).to_have_text(["alice: online", "bob: online"])
    await expect(bob.locator("li")).to_have_count(2)
    async with aiohttp.ClientSession(gateway.url) as session:
        async with session.get("/dev/token?user=bob") as answer:
            bearer = {"Authorization": f"Bearer {(await answer.json())['token']}"}
        async with session.put("/presence/status", json={"status": "busy"}, headers=bearer) as answer:
            assert answer.status == 200
        await expect(alice.locator("li")).to_have_text(["alice: online", "bob: busy"])
        await alice.screenshot(path=PICTURES / f"readme-{picture}.png")
        async with session.put("/presence/status", json={"status": "online"}, headers=bearer) as answer:
            assert answer.status == 200
    await bob.reload()
    await expect(bob.locator("li")).to_have_count(2)
    await expect(alice.locator("li")).to_have_text(["alice: online", "bob: online"])
    await bob.close()
    await expect(alice.locator("li")).to_have_text(["alice: online"], timeout=(GRACE + 2 * STEP) * 1000)
    again = await visitors.come("bob")
    await expect(alice.locator("li")).to_have_count(2)
    await alice.close()
    await expect(again.locator("li")).to_have_text(["bob: online"], timeout=(GRACE + 2 * STEP) * 1000)
    await again.close()
    assert visitors.problems == []


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nobody_is_left(gateway: Process) -> AsyncIterator[None]:
    """The next page begins with nobody there."""
    yield
    async with aiohttp.ClientSession(gateway.url) as session:
        async with session.get("/dev/token?user=nobody") as answer:
            bearer = {"Authorization": f"Bearer {(await answer.json())['token']}"}
        async with asyncio.timeout(GRACE + 2 * STEP):
            while True:
                async with session.get("/api/users/online", headers=bearer) as answer:
                    if not (await answer.json())["count"]:
                        return
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("opened", ["from the disk", "from a server"])
async def test_the_plain_page(browser: Browser, gateway: Process, tmp_path: Path, opened: str) -> None:  # noqa: F811
    page = tmp_path / "index.html"
    page.write_text(of_readme("Plain JavaScript", "html", gateway))
    async with AsyncExitStack() as stack:
        disk = opened == "from the disk"
        address = page.as_uri() if disk else await stack.enter_async_context(served(tmp_path))
        await come_and_go(Visitors(browser, stack, address), gateway, "plain")


@pytest.mark.parametrize(
    ("name", "language", "file", "around"),
    [
        ("React", "jsx", "src/App.jsx", REACT),
        ("Vue", "vue", "src/App.vue", VUE),
    ],
)
async def test_the_page_of_a_framework(
    browser: Browser,  # noqa: F811
    gateway: Process,
    tmp_path: Path,
    name: str,
    language: str,
    file: str,
    around: dict[str, str],
) -> None:
    dist = await built(tmp_path, {**around, file: of_readme(name, language, gateway)})
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(dist))
        await come_and_go(Visitors(browser, stack, address), gateway, language)


async def test_the_client_for_pages(browser: Browser, gateway: Process, tmp_path: Path) -> None:  # noqa: F811
    """Alice's page says of bob what his, which is the plain one, is doing."""
    (tmp_path / "index.html").write_text(of_readme("A client for pages", "html", gateway))
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "index.html").write_text(of_readme("Plain JavaScript", "html", gateway))
    async with AsyncExitStack() as stack:
        alice = Visitors(browser, stack, await stack.enter_async_context(served(tmp_path)))
        others = Visitors(browser, stack, await stack.enter_async_context(served(plain)))
        page = await alice.come("alice")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))

        async def says(words: str) -> None:
            await eventually(lambda: words in said, within=GRACE + 2 * STEP)

        bob = await others.come("bob")
        await expect(bob.locator("li")).to_have_count(2)
        await says("bob online")
        await bob.close()
        said.clear()
        await says("bob offline")
        assert set(said) <= {"bob offline", "carol offline"}
        assert [alice.problems, others.problems] == [[], []]
