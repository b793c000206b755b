"""The test page and the API's documentation, in Chromium, against a gateway in development mode."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from chromium import CLIENT, PICTURES, browser  # noqa: F401 - a fixture
from conftest import ROOT, SERVICE_KEY, STEP, Process, gateway_process, make_token
from playwright.async_api import Browser, BrowserContext, Locator, Page, Request, Route, expect
from redis_servers import free_port

# One worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

GRACE = 3.0
CDN = "https://cdn.socket.io/"
MAX_PICTURE = 280_000
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "\u202egnp.exe",
    "__proto__",
    "constructor",
    "W" * 128,
    "👩‍👩‍👧‍👦 ﷽ Z̷̢̛a̸l̴g̶o̸",
    "' onmouseover='alert(1)",
    "${alert(1)}{{alert(1)}}",
    "  spaces  ",
]

expect.set_options(timeout=2 * STEP * 1000)


class Window:
    """One browser window of its own profile, and whatever went wrong in it."""

    def __init__(self, page: Page, home: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._home = home
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self._note_request)

    def at(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    @property
    def state(self) -> Locator:
        return self.at("connection-state")

    def person(self, user: str) -> Locator:
        return self.at("people").locator(f"li[data-user-id={css_string(user)}]")

    def logged(self, event: str, text: str = "") -> Locator:
        return self.at("event-log").locator(f'li[data-event="{event}"]').filter(has_text=text)

    async def go_online(self, user: str) -> None:
        await self.at("user-name").fill(user)
        await self.at("go-online").click()
        await self.is_online(user)

    async def is_online(self, user: str) -> None:
        await expect(self.state).to_contain_text(f"connected as {user}")
        await expect(self.person(user)).to_contain_text("you")

    async def sees(self, user: str, status: str) -> None:
        await expect(self.person(user)).to_have_attribute("data-status", status)

    async def check(self, user: str) -> None:
        await self.at("check-user-id").fill(user)
        await self.at("check-user").click()

    async def fits(self) -> None:
        """Nothing is wider than the window."""
        widths = await self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]

    async def focus_by_tab(self, test_id: str) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(80):
            if await self.page.evaluate("document.activeElement.dataset.testid") == test_id:
                return
            await self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab never reaches {test_id}")

    def _note_console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Request) -> None:
        self.requested.append(request.url)
        local = self._home, self._home.replace("http", "ws", 1), "data:", "file:"
        if not request.url.startswith(local):
            self.problems.append(f"request to elsewhere: {request.url}")


Open = Callable[..., Awaitable[Window]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Process]:
    async with gateway_process("--dev", PRESENCE_OFFLINE_GRACE=str(GRACE)) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def backend(shared: Process) -> AsyncIterator[aiohttp.ClientSession]:
    """A backend of the gateway that all tests share; nobody stays online after a test."""
    async with aiohttp.ClientSession(shared.url, headers={"X-API-Key": SERVICE_KEY}) as session:
        yield session
        async with session.get("/api/users/online") as response:
            users = (await response.json())["users"]
        for user in users:
            async with session.delete(f"/api/users/{quote(user['userId'], safe='')}/connections") as response:
                assert response.status == 200


@pytest_asyncio.fixture(loop_scope="module")
async def windows(
    browser: Browser,  # noqa: F811 - a fixture
    shared: Process,
    backend: aiohttp.ClientSession,
) -> AsyncIterator[Open]:
    """Open windows; a call takes the address and a profile's options. A test whose window complained fails."""
    async with AsyncExitStack() as stack:
        quiet: list[Window] = []

        async def start(
            path: str = "/test-presence.html",
            *,
            home: str = shared.url,
            routes: dict[str, Callable[[Route], Awaitable[None]]] | None = None,
            problems_expected: bool = False,
            **options: Any,
        ) -> Window:
            context: BrowserContext = await stack.enter_async_context(await browser.new_context(**options))
            for pattern, handler in (routes or {}).items():
                await context.route(pattern, handler)
            window = Window(await context.new_page(), home)
            if not problems_expected:
                quiet.append(window)
            await window.page.goto(path if "://" in path else home + path)
            return window

        yield start
        problems = [problem for window in quiet for problem in window.problems]
        assert problems == []


async def block(route: Route) -> None:
    await route.abort()


def css_string(text: str) -> str:
    return '"' + "".join(f"\\{ord(char):x} " for char in text) + '"'


def as_user(user: str) -> str:
    return f"/test-presence.html?user={quote(user)}&autoconnect=1"


# Coming and going


async def test_one_click_puts_a_user_online_and_two_windows_see_each_other(windows: Open) -> None:
    alice = await windows()
    await alice.go_online("alice")
    bob = await windows(as_user("bob"))
    await bob.is_online("bob")
    await alice.sees("bob", "online")
    await bob.sees("alice", "online")
    await expect(alice.at("online-count")).to_have_text("2")
    await expect(bob.at("online-count")).to_have_text("2")
    await expect(alice.state).to_contain_text("websocket")
    await expect(alice.logged("user-online", "bob")).to_have_count(1)


async def test_disconnect_takes_a_user_offline_at_once(windows: Open) -> None:
    alice, bob = await windows(as_user("alice")), await windows(as_user("bob"))
    await alice.sees("bob", "online")
    left = time.monotonic()
    await bob.at("disconnect").click()
    await alice.sees("bob", "offline")
    assert time.monotonic() - left < GRACE
    await expect(alice.person("bob")).to_contain_text("last seen")
    await expect(alice.at("online-count")).to_have_text("1")
    await expect(bob.state).to_contain_text("by you")
    await expect(bob.at("people-note")).to_contain_text("Not live")
    await expect(bob.at("check-user")).to_be_disabled()

    await bob.page.reload()
    await expect(bob.state).to_have_text("disconnected")
    await bob.at("go-online").click()
    await alice.sees("bob", "online")


async def test_a_reload_is_noticed_by_nobody_and_a_closed_window_after_the_grace(windows: Open) -> None:
    watcher = await windows(as_user("watcher"))
    alice = await windows()
    await alice.go_online("alice")
    carol = await windows(as_user("carol"))
    await watcher.sees("alice", "online")
    await watcher.sees("carol", "online")

    await alice.page.reload()
    await alice.is_online("alice")
    await expect(alice.logged("connected", "reconnect: true")).to_have_count(1)
    closed = time.monotonic()
    await carol.page.close()
    await watcher.sees("carol", "offline")
    assert GRACE - 0.2 <= time.monotonic() - closed < GRACE + STEP
    # Alice was away before carol was: by now her grace is over too.
    await watcher.sees("alice", "online")
    await expect(watcher.logged("user-online", "alice")).to_have_count(1)
    await expect(watcher.logged("user-offline", "alice")).to_have_count(0)


async def test_two_windows_of_one_user_are_one_user(windows: Open) -> None:
    alice, first, second = [await windows(as_user(user)) for user in ("alice", "bob", "bob")]
    await second.is_online("bob")
    await alice.sees("bob", "online")
    await expect(alice.at("online-count")).to_have_text("2")
    await first.at("disconnect").click()
    await alice.check("bob")
    await expect(alice.at("check-user-result")).to_contain_text("bob online")
    await second.at("disconnect").click()
    await alice.sees("bob", "offline")
    await expect(alice.logged("user-online", "bob")).to_have_count(1)
    await expect(alice.logged("user-offline", "bob")).to_have_count(1)


async def test_the_link_opens_a_second_window_as_another_user(windows: Open) -> None:
    alice = await windows()
    await alice.go_online("alice")
    async with alice.page.expect_popup() as popup:
        await alice.at("second-window").click()
    await expect((await popup.value).get_by_test_id("connection-state")).to_contain_text("connected as bob")
    await alice.sees("bob", "online")


async def test_a_user_that_a_backend_disconnects_is_told_so(windows: Open, backend: aiohttp.ClientSession) -> None:
    alice = await windows(as_user("alice"))
    await alice.is_online("alice")
    async with backend.delete("/api/users/alice/connections") as response:
        assert await response.json() == {"closed": 1}
    await expect(alice.state).to_have_text("disconnected · io server disconnect")
    await expect(alice.at("notice")).to_contain_text("disconnected by a backend")
    await alice.at("connect").click()
    await alice.is_online("alice")


async def test_long_polling_alone_does_all_of_it(windows: Open) -> None:
    alice, bob = await windows(as_user("alice")), await windows()
    await bob.at("transport").select_option("polling")
    await bob.go_online("bob")
    await expect(bob.state).to_contain_text("polling")
    await alice.sees("bob", "online")
    await bob.check("alice")
    await expect(bob.at("check-user-result")).to_contain_text("alice online")
    await alice.at("disconnect").click()
    await bob.sees("alice", "offline")
    left = time.monotonic()
    await bob.at("disconnect").click()
    await alice.at("connect").click()
    await alice.is_online("alice")
    await alice.check("bob")
    await expect(alice.at("check-user-result")).to_contain_text("bob offline")
    assert time.monotonic() - left < GRACE
    assert not [url for url in bob.requested if url.startswith("ws")]


async def test_a_token_that_runs_out_is_renewed_without_a_disconnection(windows: Open) -> None:
    given = 0

    async def brief_first(route: Route) -> None:
        nonlocal given
        given += 1
        if given > 1:
            await route.fallback()
            return
        expires = int(time.time()) + 3
        token = make_token("alice", exp=expires)
        body = {"token": token, "userId": "alice", "expiresAt": f"{time.strftime('%FT%T', time.gmtime(expires))}.000Z"}
        await route.fulfill(json=body)

    alice = await windows(as_user("alice"), routes={"**/dev/token*": brief_first})
    await alice.is_online("alice")
    await expect(alice.logged("token-expired")).to_have_count(1)
    await expect(alice.logged("token-refreshed")).to_have_count(1)
    await alice.at("heartbeat").click()
    await expect(alice.at("heartbeat-result")).to_contain_text("answered")
    await expect(alice.logged("disconnect")).to_have_count(0)


async def test_a_restarted_server_with_another_secret_has_its_users_back(windows: Open) -> None:
    port = str(free_port())  # which nobody takes meanwhile
    async with gateway_process("--dev", "--port", port, JWT_SECRET="", PRESENCE_OFFLINE_GRACE=str(GRACE)) as first:
        alice = await windows(as_user("alice"), home=first.url, problems_expected=True)
        await alice.is_online("alice")
        assert await first.stop() == 0
        await expect(alice.logged("server-draining")).to_have_count(1)
        await expect(alice.state).to_contain_text("reconnecting")
        await expect(alice.at("people-note")).to_contain_text("Not live")
        await expect(alice.at("notice")).to_contain_text("Cannot reach the server")
        async with gateway_process("--dev", "--port", port, JWT_SECRET=""):
            await alice.is_online("alice")
            await expect(alice.logged("connect_error", "TOKEN_INVALID")).to_have_count(1)
            await expect(alice.at("notice")).to_be_hidden()
            await expect(alice.at("people-note")).to_contain_text("Live")
            await alice.at("disconnect").click()


async def test_a_server_without_development_mode_says_how_to_get_a_token(windows: Open) -> None:
    async def none(route: Route) -> None:
        await route.fulfill(status=404, body="404: Not Found")

    alice = await windows(routes={"**/dev/token*": none}, problems_expected=True)
    await alice.at("user-name").fill("alice")
    await alice.at("go-online").click()
    await expect(alice.at("notice")).to_contain_text("python -m gateway token alice")

    await alice.at("connect").click()
    await expect(alice.state).to_contain_text("TOKEN_MISSING")
    await alice.at("token").fill(make_token("alice", name="Alice Liddell"))
    await alice.at("connect").click()
    await alice.is_online("alice")
    await expect(alice.person("alice")).to_contain_text("Alice Liddell")


# Requests and the log


async def test_every_request_shows_its_answer_and_how_long_it_took(windows: Open) -> None:
    alice, bob = await windows(as_user("alice")), await windows(as_user("bob"))
    await alice.sees("bob", "online")

    await alice.check("bob")
    await expect(alice.at("check-user-result")).to_have_text(re.compile(r"^bob online active .+ in [\d.]+ ms$"))
    await alice.check("nobody")
    await expect(alice.at("check-user-result")).to_have_text(re.compile(r"^nobody offline never seen in [\d.]+ ms$"))
    await expect(alice.person("nobody")).to_have_count(0)

    await alice.at("check-users-ids").fill("bob, nobody alice")
    await alice.at("check-users").click()
    await expect(alice.at("check-users-result")).to_contain_text("2 of 3 online")
    listed = alice.at("check-users-result").locator("li")
    assert [await item.get_attribute("data-user-id") for item in await listed.all()] == ["bob", "nobody", "alice"]

    await alice.at("get-online").click()
    await expect(alice.at("get-online-result")).to_have_text(re.compile(r"^2 online in [\d.]+ ms$"))

    await alice.at("heartbeat").click()
    await expect(alice.at("heartbeat-result")).to_have_text(re.compile(r"^answered at [\d:]{8} in [\d.]+ ms$"))

    await alice.person("bob").get_by_role("button").click()
    await expect(alice.at("check-user-result")).to_contain_text("bob online")
    await bob.is_online("bob")


async def set_status(window: Window, status: str, text: str = "", expires_in: str = "") -> None:
    await window.at("status-choice").select_option(status)
    await window.at("status-text").fill(text)
    await window.at("status-expiry").select_option(expires_in)
    await window.at("set-status").click()


async def test_a_status_set_by_hand_is_seen_with_its_text_until_its_time_is_over(windows: Open) -> None:
    alice, bob = await windows(as_user("alice")), await windows(as_user("bob"))
    await alice.sees("bob", "online")
    for status, word in (("busy", "busy"), ("dnd", "do not disturb"), ("away", "away")):
        await set_status(bob, status, f"{word} <b>now</b>")
        await expect(bob.at("status-result")).to_contain_text(f"bob {word} {word} <b>now</b>")
        for window in (alice, bob):
            await window.sees("bob", status)
            await expect(window.person("bob")).to_contain_text(f"{word} <b>now</b>")
    await alice.check("bob")
    await expect(alice.at("check-user-result")).to_contain_text("bob away away <b>now</b>")
    await set_status(bob, "busy", "for a moment", "10")
    await alice.sees("bob", "busy")
    began = time.monotonic()
    await expect(alice.person("bob")).to_have_attribute("data-status", "online", timeout=(10 + STEP) * 1000)
    assert 8 < time.monotonic() - began < 10 + STEP
    await expect(alice.person("bob").locator(".person-text")).to_have_text("")
    await expect(alice.logged("user-offline", "bob")).to_have_count(0)
    await has_set(bob, "online", "")


async def has_set(window: Window, status: str, text: str) -> None:
    """The form shows what is set."""
    await expect(window.at("status-choice")).to_have_value(status)
    await expect(window.at("status-text")).to_have_value(text)
    await expect(window.at("status-expiry")).to_have_value("")


async def test_the_form_has_what_is_set_after_a_reload_a_reconnection_and_in_each_window(windows: Open) -> None:
    one = await windows(as_user("nora"))
    await one.is_online("nora")
    await has_set(one, "online", "")
    await expect(one.at("status-result")).to_have_text("")
    await set_status(one, "busy", "in a meeting", "1800")
    await expect(one.at("status-result")).to_contain_text("nora busy in a meeting")
    await one.page.reload()
    await has_set(one, "busy", "in a meeting")
    await expect(one.at("status-result")).to_have_text(re.compile(r"nora busy in a meeting .* until \d\d:\d\d:\d\d"))

    await set_status(one, "away", "")
    await one.at("disconnect").click()
    await one.at("status-choice").select_option("dnd")  # which is not set, and so is not what is shown
    await one.at("connect").click()
    await has_set(one, "away", "")
    await expect(one.at("status-result")).to_contain_text("nora away")
    await expect(one.at("status-result")).not_to_contain_text("until")

    other = await windows(as_user("nora"))
    await has_set(other, "away", "")
    await other.at("status-text").fill("half a sen")  # which is not overwritten
    await set_status(one, "invisible", "in hiding")
    await expect(other.at("status-result")).to_contain_text("nora invisible in hiding")
    await expect(other.at("status-text")).to_have_value("half a sen")
    await other.page.reload()
    await has_set(other, "invisible", "in hiding")
    await set_status(other, "online", "")
    await has_set(one, "online", "")
    await expect(one.at("status-result")).to_contain_text("nora online")


async def test_one_who_is_invisible_is_gone_for_others_and_sees_the_truth(windows: Open) -> None:
    alice, bob = await windows(as_user("alice")), await windows(as_user("bob"))
    tab = await windows(as_user("bob"))
    await tab.is_online("bob")
    await alice.sees("bob", "online")
    await set_status(bob, "invisible", "nobody sees this")
    await alice.sees("bob", "offline")
    await expect(alice.person("bob")).not_to_contain_text("nobody sees this")
    for window in (bob, tab):
        await window.sees("bob", "invisible")
        await expect(window.person("bob")).to_contain_text("nobody sees this")
        await expect(window.logged("user-offline", "bob")).to_have_count(0)
        await window.at("get-online").click()
        await expect(window.at("get-online-result")).to_contain_text("1 online")
        await window.sees("bob", "invisible")
        await expect(window.at("online-count")).to_have_text("1")
    await tab.page.reload()
    await tab.is_online("bob")
    await tab.sees("bob", "invisible")
    await set_status(bob, "online")
    for window in (alice, bob, tab):
        await window.sees("bob", "online")


async def test_a_status_that_cannot_be_says_why(windows: Open) -> None:
    alice = await windows(as_user("alice"))
    await alice.is_online("alice")
    await alice.at("status-text").evaluate("node => { node.value = 'a\\u0007b' }")
    await alice.at("set-status").click()
    await expect(alice.at("status-result")).to_contain_text("INVALID_PAYLOAD: ")


async def test_a_request_that_fails_shows_its_code(windows: Open) -> None:
    alice = await windows(as_user("alice"))
    await alice.is_online("alice")
    await alice.check("")
    await expect(alice.at("check-user-result")).to_contain_text("INVALID_PAYLOAD: ")
    await expect(alice.logged("error")).to_have_attribute("data-failed", "true")


async def test_the_log_has_every_event_with_its_timing_and_hides_tokens(windows: Open) -> None:
    alice = await windows(as_user("alice"))
    await alice.is_online("alice")
    bob = await windows(as_user("bob"))
    await bob.is_online("bob")
    arrived = alice.logged("user-online", "bob")
    await expect(arrived.locator(".timing")).to_have_text(re.compile(r"^[+−]\d+ ms$"))  # noqa: RUF001 - as shown
    await expect(arrived.locator(".direction")).to_contain_text("in")
    answered = alice.logged("online-users").last
    await expect(answered.locator(".timing")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    await expect(alice.logged("get-online-users").last.locator(".direction")).to_contain_text("out")

    await arrived.locator("summary").click()
    await expect(arrived.locator("pre")).to_contain_text('"userId": "bob"')
    token = alice.logged("dev-token")
    await token.locator("summary").click()
    await expect(token.locator("pre")).to_contain_text("(hidden)")
    secret = await alice.at("token").input_value()
    assert secret
    assert secret not in await alice.page.inner_text("body")


async def test_the_log_can_be_paused_filtered_and_cleared(windows: Open) -> None:
    alice = await windows(as_user("alice"))
    await alice.is_online("alice")
    await expect(alice.logged("online-users")).to_have_count(1)
    rows = await alice.at("event-log").locator("li").count()

    await alice.at("log-pause").click()
    await alice.at("heartbeat").click()
    await expect(alice.at("log-pause")).to_have_text("Resume (2 new)")
    await expect(alice.at("event-log").locator("li")).to_have_count(rows)
    await alice.at("log-pause").click()
    await expect(alice.at("log-pause")).to_have_text("Pause")
    await expect(alice.at("event-log").locator("li").first).to_have_attribute("data-event", "heartbeat-ack")

    shown = alice.at("event-log").locator("li:visible")
    await alice.at("log-filter").fill("heartbeat")
    await expect(shown).to_have_count(2)
    await alice.at("log-filter").fill("-heartbeat")
    await expect(shown).to_have_count(rows)
    await alice.at("log-filter").fill("no such thing")
    await expect(alice.at("log-empty")).to_have_text("No row matches the filter.")

    await alice.at("log-filter").fill("")
    await alice.at("log-clear").click()
    await expect(alice.at("event-log").locator("li")).to_have_count(0)
    await expect(alice.at("log-count")).to_have_text("0")
    await expect(alice.at("log-empty")).to_be_visible()


# What it looks like, and to whom


async def test_the_keyboard_alone_does_all_of_it(windows: Open) -> None:
    alice = await windows()
    keyboard = alice.page.keyboard
    await keyboard.press("Tab")
    assert await alice.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    await alice.focus_by_tab("user-name")
    await keyboard.type("alice")
    await keyboard.press("Enter")
    await alice.is_online("alice")
    await alice.focus_by_tab("check-user-id")
    await keyboard.type("alice")
    await keyboard.press("Enter")
    await expect(alice.at("check-user-result")).to_contain_text("alice online")
    await alice.focus_by_tab("heartbeat")
    await keyboard.press("Space")
    await expect(alice.at("heartbeat-result")).to_contain_text("answered")
    await alice.focus_by_tab("log-clear")
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    await expect(alice.at("event-log").locator("details[open]")).to_have_count(1)
    await alice.focus_by_tab("disconnect")
    await keyboard.press("Enter")
    await expect(alice.state).to_contain_text("by you")


async def test_hostile_names_are_text_and_nothing_else(windows: Open, shared: Process) -> None:
    watcher = await windows(as_user("watcher"), viewport={"width": 1280, "height": 900})
    await watcher.is_online("watcher")
    async with aiohttp.ClientSession(shared.url) as session, AsyncExitStack() as stack:
        for number, name in enumerate(HOSTILE):
            for user in (name, f"named-{number}"):
                token = make_token(user, name=name)
                await stack.enter_async_context(session.ws_connect("/ws", params={"token": token}))
        for number, name in enumerate(HOSTILE):
            await watcher.sees(name, "online")
            await expect(watcher.person(f"named-{number}").locator(".person-name bdi")).to_have_text(name.strip())
        await watcher.check(HOSTILE[0])
        await expect(watcher.at("check-user-result")).to_contain_text(f"{HOSTILE[0]} online")
        await watcher.at("check-users-ids").fill(",".join(HOSTILE))
        await watcher.at("check-users").click()
        await expect(watcher.at("check-users-result")).to_contain_text("online")
        for markup in ("img", "script", "[onerror]", "[onmouseover]"):
            assert await watcher.page.locator(f"body {markup}").count() == 0
        await watcher.fits()
    for name in HOSTILE:
        await watcher.sees(name, "offline")


async def test_the_page_follows_the_systems_colours(windows: Open) -> None:
    page = (await windows()).page

    async def brightness(element: str, name: str) -> float:
        colour = await page.eval_on_selector(element, f"node => getComputedStyle(node)['{name}']")
        return sum(float(channel) for channel in re.findall(r"[\d.]+", colour)[:3]) / 3

    await page.emulate_media(color_scheme="light")
    assert await brightness("body", "background-color") > 200
    assert await brightness("h1", "color") < 60
    await page.emulate_media(color_scheme="dark")
    assert await brightness("body", "background-color") < 60
    assert await brightness("h1", "color") > 200


async def test_nothing_is_wider_than_the_window_from_phone_to_desktop(
    windows: Open, backend: aiohttp.ClientSession
) -> None:
    long = "W" * 128
    async with backend.post("/presence/online", json={"userId": long}) as response:
        assert response.status == 200
    alice = await windows(as_user("alice"), viewport={"width": 320, "height": 800}, has_touch=True, is_mobile=True)
    await alice.is_online("alice")
    await alice.sees(long, "online")
    await alice.check(long)
    await expect(alice.at("check-user-result")).to_contain_text("online")
    for width in (320, 390, 768, 1024, 1280):
        await alice.page.set_viewport_size({"width": width, "height": 800})
        await alice.fits()


async def test_the_pictures_of_the_readme(windows: Open) -> None:
    alice = await windows(as_user("alice"), viewport={"width": 1280, "height": 1180})
    await alice.is_online("alice")
    bob = await windows(as_user("bob"))
    await alice.sees("bob", "online")
    dan, erin = await windows(as_user("dan")), await windows(as_user("erin"))
    await set_status(dan, "dnd", "Writing until noon")
    await set_status(erin, "invisible")
    await set_status(alice, "busy", "In a call", "1800")
    await alice.sees("dan", "dnd")
    await alice.sees("erin", "offline")
    await alice.check("bob")
    await expect(alice.at("check-user-result")).to_contain_text("bob online")
    await alice.at("get-online").click()
    await expect(alice.at("get-online-result")).to_contain_text("3 online")
    await alice.at("heartbeat").click()
    await expect(alice.at("heartbeat-result")).to_contain_text("answered")
    await expect(alice.at("people").locator(".arrived")).to_have_count(0)
    await alice.page.mouse.move(640, 900)
    await alice.page.evaluate("scrollTo(0, 0)")
    await alice.page.emulate_media(color_scheme="light")
    await take_picture(alice, "test-presence.png")
    await alice.page.emulate_media(color_scheme="dark")
    await take_picture(alice, "test-presence-dark.png")

    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    carol = await windows(as_user("carol"), **phone)
    await carol.sees("bob", "online")
    await bob.is_online("bob")
    await carol.page.evaluate("document.querySelector('.area-people').scrollIntoView()")
    await take_picture(carol, "test-presence-phone.png")
    for window in (alice, dan, erin):
        await set_status(window, "online")
        await expect(window.at("status-result")).to_contain_text("online")


async def take_picture(window: Window, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await window.page.screenshot(path=PICTURES / name, animations="disabled")
    assert 10_000 < (PICTURES / name).stat().st_size < MAX_PICTURE


# Where it is loaded from


async def test_the_page_works_from_a_file(windows: Open, shared: Process) -> None:
    bob = await windows(as_user("bob"))
    alice = await windows((ROOT / "test-presence.html").as_uri())
    await alice.at("server-url").fill(shared.url)
    await alice.go_online("alice")
    await alice.sees("bob", "online")
    await bob.sees("alice", "online")


async def test_without_its_own_client_script_the_page_takes_the_cdns_and_checks_its_integrity(windows: Open) -> None:
    async def cdn(route: Route) -> None:
        await route.fulfill(path=CLIENT, headers={"Access-Control-Allow-Origin": "*"}, content_type="text/javascript")

    routes = {"**/socket.io/socket.io.min.js": block, f"{CDN}**": cdn}
    alice = await windows(as_user("alice"), routes=routes, problems_expected=True)
    await alice.is_online("alice")
    script = alice.page.locator(f'script[src^="{CDN}"]')
    assert (await script.get_attribute("integrity") or "").startswith("sha384-")
    assert await script.get_attribute("crossorigin") == "anonymous"
    assert [url for url in alice.requested if url.startswith(CDN)] == [f"{CDN}4.8.4/socket.io.min.js"]


async def test_a_client_script_that_was_tampered_with_is_not_run(windows: Open) -> None:
    async def cdn(route: Route) -> None:
        body = CLIENT.read_text() + "\ndocument.title = 'tampered';"
        await route.fulfill(body=body, headers={"Access-Control-Allow-Origin": "*"}, content_type="text/javascript")

    routes = {"**/socket.io/socket.io.min.js": block, f"{CDN}**": cdn}
    alice = await windows(as_user("alice"), routes=routes, problems_expected=True)
    await expect(alice.at("notice")).to_contain_text("client loads neither from")
    await expect(alice.state).to_have_text("disconnected")
    assert await alice.page.title() == "Presence test page"
    assert [problem for problem in alice.problems if "integrity" in problem]


async def test_the_documentation_is_loaded_from_the_gateway_alone(windows: Open) -> None:
    docs = await windows("/docs")
    await expect(docs.page.locator(".opblock").filter(has_text="/online-status").first).to_be_visible()
    assert len(docs.requested) > 1
