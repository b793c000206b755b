"""The client for browsers and `<presence-dot>`, in Chromium: real tabs, and a real gateway."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from chromium import PICTURES, browser  # noqa: F401 - a fixture
from conftest import SERVICE_KEY, STEP, Process, eventually, gateway_process, make_token
from documents import block
from playwright.async_api import Browser, BrowserContext, FloatRect, Locator, Page, expect
from redis_servers import free_port

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

GRACE = 3.0
AWAY_AFTER = 6.0
PATIENCE = 4 * STEP
DOTS: FloatRect = {"x": 0, "y": 90, "width": 380, "height": 270}
"""Where the page has them."""
HERE = Path(__file__).resolve().parent

expect.set_options(timeout=PATIENCE * 1000)

HIDING = """
    let state = 'visible';
    Object.defineProperty(document, 'visibilityState', { get: () => state });
    window.look = (visible) => {
        state = visible ? 'visible' : 'hidden';
        document.dispatchEvent(new Event('visibilitychange'));
    };
"""
"""A browser without a window shows all of its tabs at once; this one is told which are hidden."""


class Tab:
    """One tab with a client in it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type in {"error", "warning"} else None)

    async def load(self) -> None:
        await self.page.goto(self.address)

    async def is_connected(self) -> None:
        await expect(self.page.locator("#state")).to_have_text("connected")

    async def shows(self, user: str, status: str) -> None:
        await expect(self.dot(user)).to_have_attribute("status", status)

    def dot(self, user: str) -> Locator:
        return self.page.locator(f'presence-dot[user-id="{user}"]')

    async def heard(self, what: str) -> list[Any]:
        heard: list[Any] = await self.page.evaluate("what => window.heard[what]", what)
        return heard

    async def look(self, *, visible: bool) -> None:
        await self.page.evaluate("visible => window.look(visible)", visible)

    async def set_status(self, status: str, text: str | None = None) -> None:
        await self.page.evaluate("([status, text]) => window.presence.setStatus(status, { text })", [status, text])


class Browsing:
    """One person's browser, whose tabs are of one profile."""

    def __init__(self, context: BrowserContext, home: str) -> None:
        self.context = context
        self.ttl = 3600.0
        self.tokens: list[str] = []
        self._home = home

    async def open(self, user: str, *watched: str, **query: Any) -> Tab:
        parameters = [("user", user), *(("watch", each) for each in watched), *query.items()]
        tab = Tab(await self.context.new_page(), f"{self._home}?{urlencode(parameters)}")
        await tab.load()
        return tab

    async def make_token(self, user: str) -> str:
        self.tokens.append(make_token(user, ttl=self.ttl))
        return self.tokens[-1]


Browse = Callable[..., Awaitable[Browsing]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Process]:
    async with gateway_process(PRESENCE_OFFLINE_GRACE=str(GRACE), CORS_ALLOWED_ORIGINS="*") as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[str]:
    """Serve the page of an application, which is of another origin than the gateway, and give its address."""

    async def page(request: web.Request) -> web.Response:
        text = (HERE / "presence.html").read_text().replace("GATEWAY", request.match_info["gateway"])
        return web.Response(text=text, content_type="text/html")

    async with served(page, "/{gateway:.+}/page") as address:
        yield address


async def no_icon(_request: web.Request) -> web.Response:
    return web.Response(status=204)


@asynccontextmanager
async def served(page: Callable[[web.Request], Awaitable[web.Response]], path: str) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(path, page)
    app.router.add_get("/favicon.ico", no_icon)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def browse(browser: Browser, shared: Process, site: str) -> AsyncIterator[Browse]:  # noqa: F811 - a fixture
    """Start somebody's browser; a call takes the gateway's address."""
    async with AsyncExitStack() as stack:

        async def start(gateway: str = shared.url) -> Browsing:
            context = await stack.enter_async_context(await browser.new_context(viewport={"width": 640, "height": 480}))
            browsing = Browsing(context, f"{site}/{gateway}/page")
            await context.expose_function("getTestToken", browsing.make_token)
            await context.add_init_script(HIDING)
            return browsing

        yield start


T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until the answer is true, and return it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if answer := await condition():
                return answer
            await asyncio.sleep(0.02)


class Backend:
    """What a backend sees, and one who watches everyone of interest."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.events: list[tuple[str, str, str]] = []

    async def connections(self, user: str) -> list[str]:
        async with self.session.get(f"/api/users/{quote(user)}/explain") as response:
            assert response.status == 200
            return [each["id"] for each in (await response.json())["connections"]]

    async def has_connections(self, user: str, count: int, other_than: str = "") -> list[str]:
        """Wait until a user has so many, and return their names."""

        async def found() -> list[str] | None:
            names = await self.connections(user)
            return names if len(names) == count and other_than not in names else None

        return await until(found)

    async def watched(self) -> float:
        """How many names are on the watch lists of all connections."""
        async with self.session.get("/metrics") as response:
            return float(re.findall(r"^presence_watch_list_names (\S+)$", await response.text(), re.MULTILINE)[0])

    async def watch_nobody(self) -> bool:
        return await self.watched() == 0

    def of(self, user: str) -> list[str]:
        return [status for _event, each, status in self.events if each == user]

    async def grace_is_over(self) -> None:
        """Wait until whoever was lost up to now is offline: somebody who is lost now is."""
        user = f"lost-{len(self.events)}"
        socket = await self.session.ws_connect("/ws", params={"token": make_token(user)})
        await eventually(lambda: self.of(user), within=PATIENCE)
        assert socket._response.connection is not None
        assert socket._response.connection.transport is not None
        socket._response.connection.transport.abort()
        await eventually(lambda: self.of(user)[1:], within=PATIENCE)
        await socket.close()

    async def listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            event = message.json()
            if event["event"].startswith("user-"):
                self.events.append((event["event"], event["data"]["userId"], event["data"]["status"]))


@asynccontextmanager
async def backend_of(gateway: Process) -> AsyncIterator[Backend]:
    async with (
        aiohttp.ClientSession(gateway.url, headers={"X-API-Key": SERVICE_KEY}) as session,
        session.ws_connect("/ws", params={"token": make_token("watcher")}) as socket,
    ):
        backend = Backend(session)
        listening = asyncio.create_task(backend.listen(socket))
        try:
            yield backend
        finally:
            await socket.close()
            await listening


@pytest_asyncio.fixture(loop_scope="module")
async def backend(shared: Process) -> AsyncIterator[Backend]:
    async with backend_of(shared) as backend:
        yield backend


async def test_the_example_works_as_it_stands_there(browser: Browser) -> None:  # noqa: F811
    async with gateway_process("--dev") as gateway, AsyncExitStack() as stack:
        example = block("docs/how-to/browser.md", language="html").replace("http://127.0.0.1:3000", gateway.url)

        async def page(_request: web.Request) -> web.Response:
            return web.Response(text=example, content_type="text/html")

        home = await stack.enter_async_context(served(page, "/"))
        context = await stack.enter_async_context(await browser.new_context())
        tab = await context.new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        await tab.goto(home)
        other = await context.new_page()
        await other.goto(f"{gateway.url}/test-presence.html?user=bob&autoconnect=1")
        await expect(tab.locator("#bob")).to_have_text("online")
        await expect(tab.get_by_role("img", name="Bob: online")).to_have_count(1)
        assert said == []


# One connection for all tabs


async def test_the_tabs_of_a_user_share_one_connection(browse: Browse, backend: Backend) -> None:
    alice, bob = await browse(), await browse()
    tabs = [await alice.open("ann", "ben") for _ in range(3)]
    for tab in tabs:
        await tab.is_connected()
        await tab.shows("ben", "offline")
    await backend.has_connections("ann", 1)
    ben = await bob.open("ben", "ann")
    for tab in tabs:
        await tab.shows("ben", "online")
    await ben.shows("ann", "online")
    await tabs[2].set_status("busy")  # by the connection of another tab
    await ben.shows("ann", "busy")
    await backend.has_connections("ann", 1)
    assert [tab.problems for tab in [*tabs, ben]] == [[], [], [], []]


async def test_tabs_that_cannot_share_or_do_not_want_to_have_connections_of_their_own(
    browse: Browse, backend: Backend
) -> None:
    alice = await browse()
    for _ in range(2):
        await (await alice.open("own", share="no")).is_connected()
    await backend.has_connections("own", 2)
    old = await browse()
    await old.context.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined })")
    for _ in range(2):
        await (await old.open("old")).is_connected()
    await backend.has_connections("old", 2)


@pytest.mark.parametrize("end", ["closed", "crashed", "reloaded", "left"])
async def test_another_tab_goes_on_when_the_one_that_led_is_gone(browse: Browse, backend: Backend, end: str) -> None:
    user, friend = f"amy-{end}", f"bea-{end}"
    alice, bob = await browse(), await browse()
    leader = await alice.open(user, friend)
    await leader.is_connected()
    [first] = await backend.has_connections(user, 1)
    follower = await alice.open(user, friend)
    await follower.is_connected()
    other = await bob.open(friend)
    await follower.shows(friend, "online")

    if end == "closed":
        await leader.page.close()
    elif end == "crashed":
        session = await alice.context.new_cdp_session(leader.page)
        crash = asyncio.create_task(session.send("Page.crash"))
        crash.add_done_callback(lambda task: task.exception())
    elif end == "reloaded":
        await leader.page.reload()
    else:
        await leader.page.evaluate("window.presence.close()")
    await other.set_status("dnd")  # while the connection goes from one to the other, or has

    await follower.shows(friend, "dnd")
    assert await backend.has_connections(user, 1, other_than=first)
    await follower.is_connected()
    if end == "reloaded":
        await leader.is_connected()
        await leader.shows(friend, "dnd")
        await backend.has_connections(user, 1)
    await backend.grace_is_over()
    assert backend.of(user) == ["online"], "nobody else noticed"
    assert [status for _user, status, _version in await follower.heard("changes")][-1] == "dnd"
    assert follower.problems == []


async def test_the_last_tab_says_goodbye_when_its_client_closes(browse: Browse, backend: Backend) -> None:
    alice = await browse()
    one, other = await alice.open("gus"), await alice.open("gus")
    for tab in (one, other):
        await tab.is_connected()
    await backend.has_connections("gus", 1)
    await one.page.evaluate("window.presence.close()")
    await backend.grace_is_over()
    await other.is_connected()
    assert backend.of("gus") == ["online"]
    await other.page.evaluate("window.presence.close()")
    await eventually(lambda: backend.of("gus") == ["online", "offline"], within=PATIENCE)


async def test_nobody_notices_that_the_only_tab_is_reloaded(browse: Browse, backend: Backend) -> None:
    alice, bob = await browse(), await browse()
    tab = await alice.open("rea", "rob")
    await tab.is_connected()
    rob = await bob.open("rob", "rea")
    await rob.shows("rea", "online")
    for _ in range(3):
        await tab.page.reload()
        await tab.is_connected()
        await tab.shows("rob", "online")
    await backend.grace_is_over()
    assert backend.of("rea") == ["online"]
    assert [status for user, status, _version in await rob.heard("changes") if user == "rea"] == ["online"]
    assert tab.problems == []


# Whether somebody is there


async def test_a_user_is_away_when_all_of_their_tabs_are_hidden_and_back_when_one_is_shown(browse: Browse) -> None:
    async with (
        gateway_process(PRESENCE_AWAY_AFTER=str(AWAY_AFTER), CORS_ALLOWED_ORIGINS="*") as gateway,
        backend_of(gateway) as backend,
    ):
        alice, bob = await browse(gateway.url), await browse(gateway.url)
        one, other = [await alice.open("hal", heartbeat="0.5") for _ in range(2)]
        for tab in (one, other):
            await tab.is_connected()
        watcher = await bob.open("hub", "hal", heartbeat="0.5")
        await watcher.shows("hal", "online")
        await one.look(visible=False)
        hidden = await bob.open("hid", heartbeat="0.5")
        await hidden.is_connected()
        await hidden.look(visible=False)
        await eventually(lambda: backend.of("hid") == ["online", "away"], within=PATIENCE)
        assert backend.of("hal") == ["online"], "the other tab is shown"

        await other.look(visible=False)
        await watcher.shows("hal", "away")
        await one.look(visible=True)
        await watcher.shows("hal", "online")
        assert [tab.problems for tab in (one, other, watcher)] == [[], [], []]
        await watcher.page.close()


# The dot


async def test_a_dot_shows_a_status_by_colour_shape_and_words_while_it_is_there(
    browse: Browse, backend: Backend
) -> None:
    alice, bob = await browse(), await browse()
    tab, other = await alice.open("dot", "dan"), await bob.open("dan")
    dot = tab.dot("dan")
    drawing = dot.locator("svg")
    looks: dict[str, tuple[str, str]] = {}

    async def look(status: str, words: str) -> None:
        await tab.shows("dan", status)
        await expect(dot).to_have_attribute("aria-label", f"dan: {words}")
        await expect(tab.page.get_by_role("img", name=f"dan: {words}", exact=True)).to_have_count(1)
        await expect(drawing).to_have_attribute("part", f"dot {status}")
        looks[status] = (
            await drawing.evaluate("node => getComputedStyle(node).color"),
            await drawing.evaluate("node => node.innerHTML"),
        )

    await tab.page.emulate_media(reduced_motion="reduce")  # the colours do not fade into each other
    await look("online", "online")
    await other.set_status("busy", "in a <b>call</b>")
    await look("busy", "busy, in a <b>call</b>")
    await other.set_status("dnd")
    await look("dnd", "do not disturb")
    await other.set_status("away")
    await look("away", "away")
    await other.page.evaluate("window.presence.close()")
    await look("offline", "offline")
    assert looks["online"][0] == "rgb(26, 143, 76)"
    assert len({colour for colour, _shape in looks.values()}) == 4, "busy and dnd share one"
    assert len({shape for _colour, shape in looks.values()}) == 5

    await tab.page.evaluate("document.documentElement.style.setProperty('--presence-offline', 'rgb(1, 2, 3)')")
    assert await drawing.evaluate("node => getComputedStyle(node).color") == "rgb(1, 2, 3)"
    await dot.evaluate("node => { node.setAttribute('label', 'Daniel') }")
    await expect(dot).to_have_attribute("aria-label", "Daniel: offline")

    assert await backend.watched() == 1
    await dot.evaluate("node => { window.kept = node; node.userId = 'dora' }")
    await expect(tab.dot("dora")).to_have_attribute("status", "offline")
    await tab.page.evaluate("window.kept.remove()")
    await until(backend.watch_nobody)
    await tab.page.evaluate("document.querySelector('#dots').append(window.kept)")
    await expect(tab.dot("dora")).to_have_attribute("status", "offline")
    assert await backend.watched() == 1
    assert tab.problems == []


async def test_the_picture_of_the_dots(browse: Browse) -> None:
    statuses = {"Online": "online", "Away": "away", "Busy": "busy", "Dnd": "dnd", "Offline": None}
    people = await browse()
    for user, status in statuses.items():
        if status is not None:
            await (await people.open(user)).set_status(status)
    tab = await people.open("viewer", *statuses)
    for user, status in statuses.items():
        await tab.shows(user, status or "offline")
    await tab.page.evaluate(
        """users => document.querySelector('#dots').append(...users.map((user) =>
            Object.assign(document.createElement('presence-dot'), { userId: user })))""",
        [*statuses],
    )
    await expect(tab.page.locator("#dots presence-dot[status=offline]")).to_have_count(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    await tab.page.screenshot(path=PICTURES / "presence-dots.png", animations="disabled", clip=DOTS)
    assert (PICTURES / "presence-dots.png").stat().st_size > 5_000


# Tokens, and networks


async def test_tokens_end_and_the_connection_stays(browse: Browse, backend: Backend) -> None:
    alice = await browse()
    alice.ttl = 5
    leader = await alice.open("tim", "tom")
    await leader.is_connected()
    [first] = await backend.has_connections("tim", 1)
    follower = await alice.open("tim")
    await follower.is_connected()
    await eventually(lambda: len(alice.tokens) > 5, within=2 * PATIENCE)
    assert await backend.connections("tim") == [first]
    assert await leader.heard("states") == ["connecting", "connected"]
    assert [*await leader.heard("errors"), *await follower.heard("errors")] == []
    assert backend.of("tim") == ["online"]


async def test_nothing_is_missed_while_the_network_or_the_gateway_is_gone(browse: Browse) -> None:
    port = str(free_port())
    home = f"http://127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_process("--port", port, CORS_ALLOWED_ORIGINS="*"))
        alice, bob = await browse(home), await browse(home)
        leader = await alice.open("ned", "nan", "nat")
        follower = await alice.open("ned", "nan", "nat")
        nan = await bob.open("nan")
        for tab in (leader, follower):
            await tab.shows("nan", "online")
            await tab.shows("nat", "offline")
        for status in ("busy", "dnd", "busy"):
            await nan.set_status(status)
        await follower.shows("nan", "busy")

        await alice.context.set_offline(True)
        assert await gateway.stop() == 0
        for tab in (leader, follower):
            await expect(tab.page.locator("#state")).to_have_text("reconnecting")
            await tab.shows("nan", "busy")  # as it was
        await nan.page.close()
        await stack.enter_async_context(
            gateway_process("--port", port, CORS_ALLOWED_ORIGINS="*")
        )  # which remembers nothing, not the versions either
        async with aiohttp.ClientSession(home) as session:
            headers = {"Authorization": f"Bearer {make_token('nat')}"}
            async with session.put("/presence/status", json={"status": "dnd"}, headers=headers) as response:
                assert response.status == 200
            async with session.post("/presence/heartbeat", headers=headers) as response:
                assert response.status == 200
        await alice.context.set_offline(False)
        for tab in (leader, follower):
            await tab.is_connected()
            await tab.shows("nan", "offline")
            await tab.shows("nat", "dnd")
        await (await bob.open("nan")).is_connected()
        await follower.shows("nan", "online")
