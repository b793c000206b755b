"""Socket.IO's own Admin UI, as npm has it, in Chromium: against two gateways on one Redis, and real clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from chromium import browser  # noqa: F401 - a fixture
from conftest import ROOT, SERVICE_KEY, STEP, Process, gateway_process, make_token, require_program
from playwright.async_api import Browser, Locator, Page, Route, expect
from redis_servers import fresh_prefix
from told import Told

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "a password of the tests, which is long"
CHANNEL = "the-room-of-the-test"
OUTPUT = ROOT / "tests" / "output"
DIST = ROOT / "node_modules" / "@socket.io" / "admin-ui" / "ui" / "dist"

expect.set_options(timeout=4 * STEP * 1000)


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """Serve the UI's page, and give its origin."""
    assert (DIST / "index.html").is_file(), "@socket.io/admin-ui is not installed: npm ci"
    app = web.Application()
    app.router.add_static("/", DIST)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class AdminUI:
    """The page, in a profile of its own."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    async def open(self) -> None:
        async def only_ours(route: Route) -> None:
            if route.request.url.startswith("http://127.0.0.1:"):
                await route.continue_()
            else:
                await route.abort()  # its fonts

        await self.page.route("**/*", only_ours)
        await self.page.goto(f"{self.origin}/index.html")

    @property
    def asking(self) -> Locator:
        """What asks for the password."""
        return self.page.locator(".v-dialog")

    async def log_in(self, url: str, password: str) -> None:
        await self.asking.get_by_label("Server URL").fill(url)
        await self.asking.get_by_label("Username").fill("admin")
        await self.asking.get_by_label("Password").fill(password)
        await self.asking.get_by_role("button", name="Connect").click()

    async def go(self, where: str) -> None:
        await self.page.evaluate("where => { location.hash = where }", f"#/{where}")

    def row(self, text: str) -> Locator:
        return self.page.locator("tbody tr").filter(has_text=text)


@pytest_asyncio.fixture(loop_scope="module")
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Site:
    """Two gateways, and the UI."""

    def __init__(self, nodes: list[Process], ui: AdminUI) -> None:
        self.nodes = nodes
        self.ui = ui


@asynccontextmanager
async def site(browser: Browser, redis_url: str, mode: str) -> AsyncIterator[Site]:  # noqa: F811 - a fixture
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(served())
        variables = {
            "REDIS_URL": redis_url,
            "REDIS_PREFIX": fresh_prefix(),
            "ADMIN_UI_PASSWORD": PASSWORD,
            "ADMIN_UI_ORIGIN": origin,
            "ADMIN_UI_MODE": mode,
        }
        nodes = [await stack.enter_async_context(gateway_process(**variables)) for _ in range(2)]
        context = await stack.enter_async_context(
            await browser.new_context(locale="en", viewport={"width": 1280, "height": 900})
        )
        ui = AdminUI(await context.new_page(), origin)
        await ui.open()
        yield Site(nodes, ui)
        assert ui.problems == []


async def come(closing: AsyncExitStack, process: Process, user: str) -> Told:
    """Connect a real client in Node."""
    variables = {"GATEWAY_URL": process.url, "TRANSPORTS": "websocket", "TOKEN": make_token(user), "CHANNEL": CHANNEL}
    client = await asyncio.create_subprocess_exec(
        require_program("node"),
        str(ROOT / "tests" / "js" / "seen.mjs"),
        env={"PATH": os.environ["PATH"]} | variables,
        stdout=asyncio.subprocess.PIPE,
    )
    closing.push_async_callback(client.wait)
    closing.callback(client.kill)
    assert client.stdout is not None
    told = Told(client.stdout)
    await told.hears("connected")
    return told


async def test_it_asks_until_the_password_is_right_and_then_shows_every_server(
    browser: Browser,  # noqa: F811 - a fixture
    redis_url: str,
    closing: AsyncExitStack,
) -> None:
    async with site(browser, redis_url, "production") as there:
        ui, nodes = there.ui, there.nodes
        await ui.log_in(nodes[0].url, "wrong")
        await expect(ui.asking).to_contain_text("Invalid credentials")
        await ui.log_in(nodes[0].url, PASSWORD)
        await expect(ui.asking).to_be_hidden()
        await come(closing, nodes[1], "alice")
        await expect(ui.row("/ws/messages").first).to_contain_text("1")
        await ui.go("servers")
        for each in nodes:
            await expect(ui.row(str(each.process.pid))).to_contain_text("Healthy")
        await expect(ui.page.get_by_role("navigation")).not_to_contain_text("Sockets")  # its development mode
        await ui.page.reload()
        await expect(ui.row(str(nodes[1].process.pid))).to_have_count(1)  # and the password is not asked for again
        await expect(ui.asking).to_be_hidden()


async def test_in_development_mode_it_shows_clients_and_their_rooms_and_disconnects_one(
    browser: Browser,  # noqa: F811 - a fixture
    redis_url: str,
    closing: AsyncExitStack,
) -> None:
    async with site(browser, redis_url, "development") as there:
        ui, nodes = there.ui, there.nodes
        alice = await come(closing, nodes[0], "alice")
        await ui.log_in(nodes[0].url, PASSWORD)
        await expect(ui.asking).to_be_hidden()
        await ui.go("sockets")
        await expect(ui.page.locator("tbody tr")).to_have_count(1)
        bob = await come(closing, nodes[1], "bob")  # of whom the UI hears by way of the first
        await expect(ui.page.locator("tbody tr")).to_have_count(2)
        await expect(ui.page.locator("tbody tr").first).to_contain_text("WebSocket")

        ids = {}
        for user, process in (("alice", nodes[0]), ("bob", nodes[1])):
            url = f"{process.url}/api/users/{user}/explain"
            async with aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as session, session.get(url) as said:
                [connection] = (await said.json())["connections"]
            ids[user] = connection["id"]
        await ui.row(ids["bob"]).click()
        await expect(ui.page.locator("pre")).to_contain_text('"userId": "bob"')
        await expect(ui.page.get_by_text(CHANNEL)).to_be_visible()
        OUTPUT.mkdir(parents=True, exist_ok=True)
        await ui.page.screenshot(path=OUTPUT / "socketio-admin-ui-client.png", animations="disabled")

        await ui.go("rooms")
        await expect(ui.row(CHANNEL)).to_have_count(1)
        await expect(ui.row(f"default/{CHANNEL}")).to_contain_text("2")
        await ui.go("sockets")
        await expect(ui.row(ids["alice"])).to_have_count(1)
        await ui.page.screenshot(path=OUTPUT / "socketio-admin-ui.png", animations="disabled")
        await ui.row(ids["bob"]).get_by_role("button").click()
        assert await bob.hears("disconnect") == ["io server disconnect"]
        await expect(ui.page.get_by_text("Disconnected").first).to_be_visible()  # the click shows the client, too
        await ui.go("sockets")
        await expect(ui.row(ids["bob"])).to_have_count(0)
        await expect(ui.row(ids["alice"])).to_have_count(1)
        assert await alice.hears("status") == ["online"]
        await ui.go("events")
        await expect(ui.row(ids["bob"]).filter(has_text="disconnection")).to_have_count(1)
