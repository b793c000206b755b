"""The operators' page, in Chromium: against a gateway with webhooks whose receiver fails, and real clients."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from chromium import PICTURES, browser  # noqa: F401 - a fixture
from conftest import SERVICE_KEY, STEP, Process, eventually, gateway_process, make_token
from playwright.async_api import Browser, Locator, Page, expect
from receivers import HOOK_SECRET, Call, Receiver, receiver

# One worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

READING_KEY = "a-key-of-the-tests-that-only-reads"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp"
MAX_PICTURE = 280_000

expect.set_options(timeout=4 * STEP * 1000)


async def fail(_call: Call) -> web.Response:
    return web.Response(status=500)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(hook: Receiver) -> AsyncIterator[Process]:
    variables = {
        "SERVICE_API_KEYS_READONLY": READING_KEY,
        "PRESENCE_WEBHOOK_URL": hook.url,
        "PRESENCE_WEBHOOK_SECRET": HOOK_SECRET,
        "WEBHOOK_QUEUE_SIZE": "1",  # what comes behind is a dead letter at once
        "PRESENCE_OFFLINE_GRACE": "1",
    }
    async with gateway_process(**variables) as process:
        yield process


class Office:
    """The page, and whatever went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self._note_request)

    def at(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    async def enter(self, key: str = SERVICE_KEY, tenant: str = "") -> None:
        await self.at("key").fill(key)
        await self.at("tenant").fill(tenant)
        await self.at("enter").click()

    async def look(self, key: str = SERVICE_KEY, tenant: str = "") -> None:
        await self.enter(key, tenant)
        await expect(self.at("state")).to_have_text("live")

    async def explain(self, user: str) -> None:
        await self.at("user").fill(user)
        await self.at("explain").click()

    async def press_twice(self, button: Locator) -> None:
        """Press what asks whether one is sure."""
        await button.click()
        await expect(button).to_contain_text("Really")
        await button.click()

    def _note(self, message: Any) -> None:
        # What the API refuses is in the console whatever the page makes of it.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.problems.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.problems.append(f"request to elsewhere: {request.url}")


Open = Callable[..., Awaitable[Office]]


@pytest_asyncio.fixture(loop_scope="module")
async def offices(browser: Browser, gateway: Process) -> AsyncIterator[Open]:  # noqa: F811 - a fixture
    """Open the page in a profile of its own. A test in whose page something went wrong fails."""
    async with AsyncExitStack() as stack:
        opened: list[Office] = []

        async def start(**options: Any) -> Office:
            context = await stack.enter_async_context(await browser.new_context(**options))
            office = Office(await context.new_page(), gateway.url)
            opened.append(office)
            await office.page.goto(f"{gateway.url}/admin")
            return office

        yield start
        assert [problem for office in opened for problem in office.problems] == []


@pytest_asyncio.fixture(loop_scope="module")
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def come(closing: AsyncExitStack, gateway: Process, user: str, tenant: str) -> aiohttp.ClientWebSocketResponse:
    """Connect a user by plain WebSocket."""
    session = await closing.enter_async_context(aiohttp.ClientSession())
    token = make_token(user, tenant=tenant, name=user)
    address = f"{gateway.url.replace('http', 'ws', 1)}/ws?token={token}"
    return await closing.enter_async_context(session.ws_connect(address, headers={"User-Agent": f"<b>{HOSTILE}</b>"}))


async def read_all(websocket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read until it is closed; return with which code it was."""
    async for _message in websocket:
        pass
    return websocket.close_code


def fresh_tenant() -> str:
    return f"tenant-{secrets.token_hex(4)}"


async def test_a_wrong_key_is_said_to_be_wrong_and_not_kept(offices: Open) -> None:
    office = await offices()
    await office.enter("wrong")
    await expect(office.at("notice")).to_contain_text("not one of SERVICE_API_KEYS")
    await expect(office.at("console")).to_be_hidden()
    assert await office.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]
    await office.enter("ключ")
    await expect(office.at("notice")).to_contain_text("letters that no key has")
    await office.look()  # and the right one is taken after it
    await expect(office.at("notice")).to_be_hidden()


async def test_the_key_is_kept_in_this_tab_and_goes_with_it(offices: Open) -> None:
    office = await offices()
    await office.look()
    assert await office.page.evaluate("Object.values(localStorage).length") == 0
    await office.page.reload()
    await expect(office.at("state")).to_have_text("live")
    assert SERVICE_KEY not in await office.page.content()
    await office.at("sign-out").click()
    await expect(office.at("console")).to_be_hidden()
    await office.page.reload()
    await expect(office.at("state")).to_have_text("signed out")


async def test_counts_and_charts_move_as_clients_come_and_go(
    offices: Open, gateway: Process, closing: AsyncExitStack
) -> None:
    office, tenant = await offices(), fresh_tenant()
    await office.look(tenant=tenant)
    await expect(office.at("online")).to_have_text("0")
    await expect(office.at("access")).to_have_text(tenant)
    first = await office.at("online-chart").locator(".line").get_attribute("d")
    websockets = [await come(closing, gateway, user, tenant) for user in ("alice", "bob", "bob")]
    await expect(office.at("online")).to_have_text("2")
    await expect(office.at("online-chart")).to_have_attribute(
        "aria-label", "now 2, at the most 2 in the last three minutes"
    )
    assert await office.at("online-chart").locator(".line").get_attribute("d") != first
    row = office.at("node")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text("serving")
    await websockets[0].close()
    await expect(office.at("online")).to_have_text("1")


async def test_a_user_is_explained_and_what_is_hostile_is_inert(
    offices: Open, gateway: Process, closing: AsyncExitStack
) -> None:
    office, tenant = await offices(), fresh_tenant()
    await come(closing, gateway, HOSTILE, tenant)
    await office.look(tenant=tenant)
    await office.explain(HOSTILE)
    explained = office.at("explained")
    await expect(explained).to_contain_text("1 live connection (websocket)")
    await expect(explained.locator("bdi").first).to_have_text(HOSTILE)
    await expect(office.at("connection")).to_contain_text(f"<b>{HOSTILE}</b>")
    assert await office.page.locator("img, main b").count() == 0
    await office.at("user").fill("somebody else")
    await expect(explained).to_be_empty()  # what is kicked is what is read


async def test_kick_really_disconnects_after_it_was_pressed_twice(
    offices: Open, gateway: Process, closing: AsyncExitStack
) -> None:
    office, tenant = await offices(), fresh_tenant()
    websocket = await come(closing, gateway, "dave", tenant)
    reading = asyncio.create_task(read_all(websocket))
    await office.look(tenant=tenant)
    await office.explain("dave")
    await expect(office.at("connection")).to_have_count(1)
    await office.at("kick").click()
    await expect(office.at("kick")).to_have_text("Really kick?")
    assert not websocket.closed
    await office.at("kick").click()
    await expect(office.at("kicked")).to_have_text("closed 1 connections of dave")
    assert await asyncio.wait_for(reading, 4 * STEP) == 4003
    await expect(office.at("online")).to_have_text("0")
    await expect(office.at("connection")).to_have_count(0)


async def make_dead_letter(gateway: Process, hook: Receiver, closing: AsyncExitStack) -> str:
    """Have events fail, until one is a dead letter; return its user."""
    hook.answers, tenant, user = fail, fresh_tenant(), f"user-{secrets.token_hex(4)}"
    await come(closing, gateway, user, tenant)
    await eventually(lambda: any(call.user == user for call in hook.calls), within=4 * STEP)
    await come(closing, gateway, f"{user}-after", tenant)
    return user


async def test_dead_letters_are_listed_and_sent_again(
    offices: Open, gateway: Process, hook: Receiver, closing: AsyncExitStack
) -> None:
    office = await offices()
    user = await make_dead_letter(gateway, hook, closing)
    await office.look()
    letter = office.at("letter").filter(has_text=f'"{user}"')
    await expect(letter).to_contain_text("user.online to default")
    await expect(letter).to_contain_text("the queue was full")
    name = await letter.get_attribute("data-letter")
    hook.answers = Receiver().answers
    await letter.get_by_test_id("replay").click()
    await expect(office.at("replayed")).to_have_text("1 sent again")
    await eventually(lambda: name in {call.id for call in hook.calls if call.taken}, within=4 * STEP)
    await expect(letter).to_have_count(0)


async def test_all_dead_letters_are_sent_again_after_it_was_pressed_twice(
    offices: Open, gateway: Process, hook: Receiver, closing: AsyncExitStack
) -> None:
    office = await offices()
    user = await make_dead_letter(gateway, hook, closing)
    await office.look()
    await expect(office.at("letter").filter(has_text=f'"{user}"')).to_have_count(1)
    hook.answers = Receiver().answers
    await office.press_twice(office.at("replay-all"))
    await expect(office.at("replayed")).to_contain_text("sent again")
    await eventually(
        lambda: user in {call.user for call in hook.calls if call.taken},
        within=4 * STEP,
    )


async def test_a_key_that_reads_sees_all_and_has_no_button_and_no_right(
    offices: Open, gateway: Process, hook: Receiver, closing: AsyncExitStack
) -> None:
    office, tenant = await offices(), fresh_tenant()
    await make_dead_letter(gateway, hook, closing)
    websocket = await come(closing, gateway, "erin", tenant)
    await office.look(READING_KEY, tenant)
    await expect(office.at("access")).to_have_text(f"{tenant}, read only")
    await office.explain("erin")
    await expect(office.at("connection")).to_have_count(1)
    await expect(office.at("letter").first).to_be_visible()
    for button in ("kick", "drain", "undrain", "replay", "replay-all"):
        await expect(office.at(button)).to_have_count(0)
    status = await office.page.evaluate(
        "([path, key]) => fetch(path, {method: 'DELETE', headers: {'X-API-Key': key}}).then((answer) => answer.status)",
        [f"/api/users/erin/connections?tenant={quote(tenant)}", READING_KEY],
    )
    assert status == 403
    assert not websocket.closed
    hook.answers = Receiver().answers


async def test_its_headers_let_nothing_in_and_nothing_out(gateway: Process) -> None:
    async with aiohttp.ClientSession(gateway.url) as session:
        async with session.get("/admin") as response:
            policy = dict(
                part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";")
            )
            assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == (
                "'none'",
                "'self'",
                "'self'",
            )
            assert policy["frame-ancestors"] == "'none'"
            assert "unsafe" not in response.headers["Content-Security-Policy"]
        async with session.get("/static/admin.html", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, "../admin")


async def test_it_can_be_left_out() -> None:
    async with gateway_process(ADMIN_PAGE="false") as process, aiohttp.ClientSession(process.url) as session:
        for path in ("/admin", "/static/admin.html"):
            async with session.get(path) as response:
                assert response.status == 404


async def test_a_node_is_drained_and_undrained_from_the_page(browser: Browser) -> None:  # noqa: F811 - a fixture
    async with gateway_process() as process, await browser.new_context() as context:
        office = Office(await context.new_page(), process.url)
        await office.page.goto(f"{process.url}/admin")
        await office.look()
        await expect(office.at("endpoints")).to_contain_text("No webhook is configured")
        await office.at("drain").click()
        await expect(office.at("drain")).to_have_text("No other takes clients. Really?")
        await office.at("drain").click()
        await expect(office.at("node")).to_contain_text("draining")
        await expect(office.at("drain")).to_have_count(0)
        await office.press_twice(office.at("undrain"))
        await expect(office.at("node")).to_contain_text("serving")
        await expect(office.at("undrain")).to_have_count(0)
        assert office.problems == []


async def test_a_gateway_that_went_away_is_said_to_be_away(browser: Browser) -> None:  # noqa: F811 - a fixture
    async with gateway_process() as process, await browser.new_context() as context:
        page = await context.new_page()
        office = Office(page, process.url)
        await page.goto(f"{process.url}/admin")
        await office.look()
        await process.stop()
        await expect(office.at("state")).to_have_text("no answer; trying again")
        await expect(office.at("console")).to_have_attribute("data-stale", "true")


async def test_the_pictures(offices: Open, gateway: Process, hook: Receiver, closing: AsyncExitStack) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    tenant = fresh_tenant()
    await make_dead_letter(gateway, hook, closing)
    office = await offices(viewport={"width": 1280, "height": 1000})
    await office.look(tenant=tenant)
    for number in range(6):
        await come(closing, gateway, f"user-{number}", tenant)
        await expect(office.at("online")).to_have_text(str(number + 1))
    await office.explain("user-1")
    await expect(office.at("connection")).to_have_count(1)
    await expect(office.at("letter").first).to_be_visible()
    for scheme, name in (("light", "admin.png"), ("dark", "admin-dark.png")):
        await office.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of these
        await take_picture(office, name)
    small = await offices(**phone)
    await small.look(tenant=tenant)
    await small.explain("user-1")
    await expect(small.at("connection")).to_have_count(1)
    widths = await small.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    await take_picture(small, "admin-phone.png")
    hook.answers = Receiver().answers


async def take_picture(office: Office, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await office.page.screenshot(path=PICTURES / name, animations="disabled")
    assert 10_000 < (PICTURES / name).stat().st_size < MAX_PICTURE
