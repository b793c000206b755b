"""The example's pages in React and in Vue, in Chromium, as a team uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from chromium import PICTURES, browser  # noqa: F401 - a fixture
from conftest import STEP
from example_apps import example
from playwright.async_api import Browser, Locator, Page, expect

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

expect.set_options(timeout=2 * STEP * 1000)


@pytest_asyncio.fixture(loop_scope="module")
async def team() -> AsyncIterator[str]:
    """Serve the example, and give its address."""
    async with example("team/team") as url:
        yield url


class Member:
    """One of them, in a window of their own."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda said: self.problems.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    async def come(self, address: str, name: str) -> None:
        await self.page.goto(address)
        await self.page.get_by_role("button", name=name).click()
        await self.sees(name, "online", "online")

    async def say(self, status: str, text: str) -> None:
        await self.page.get_by_label("Your status").select_option(label=status)
        await self.page.get_by_label("What you are doing").fill(text)
        await self.page.get_by_role("button", name="Say so").click()

    async def sees(self, name: str, status: str, words: str) -> None:
        row = self.row(name)
        await expect(row).to_have_attribute("data-status", status)
        await expect(row).to_contain_text(words)

    def row(self, name: str) -> Locator:
        return self.page.locator("li").filter(has_text=name)


@pytest.mark.parametrize("framework", ["react", "vue"])
async def test_somebody_comes_says_what_they_do_and_goes(
    team: str,
    browser: Browser,  # noqa: F811
    framework: str,
) -> None:
    async with AsyncExitStack() as stack:

        async def member(**options: Any) -> Member:
            context = await stack.enter_async_context(await browser.new_context(**options))
            return Member(await context.new_page())

        alice, bob, carol = await member(viewport={"width": 480, "height": 560}), await member(), await member()
        await alice.come(f"{team}/{framework}", "Alice Adler")
        await expect(alice.page.locator("li")).to_have_count(4)
        for name in ("Bob Brandt", "Carol Chen", "Dave Diaz"):
            await alice.sees(name, "offline", "offline")

        await bob.come(f"{team}/{framework}", "Bob Brandt")
        await carol.come(f"{team}/{framework}", "Carol Chen")
        await bob.sees("Alice Adler", "online", "online")
        await alice.sees("Bob Brandt", "online", "online")
        await bob.say("Busy", "<b>writing</b> the release notes")
        await alice.sees("Bob Brandt", "busy", "busy: <b>writing</b> the release notes")
        await carol.say("Away", "lunch")
        await alice.sees("Carol Chen", "away", "away: lunch")
        await alice.page.screenshot(path=PICTURES / f"team-{framework}.png")

        await bob.say("Invisible", "")
        await alice.sees("Bob Brandt", "offline", "last seen")
        await bob.say("Online", "")
        await alice.sees("Bob Brandt", "online", "online")
        await bob.page.close()
        await alice.sees("Bob Brandt", "offline", "last seen")
        await bob.page.context.close()
        assert [alice.problems, bob.problems, carol.problems] == [[], [], []]


async def test_who_is_nobody_of_the_team_gets_no_token(team: str, browser: Browser) -> None:  # noqa: F811
    async with await browser.new_context() as context:
        assert (await context.request.get(f"{team}/token?user=mallory")).status == 403
        assert (await context.request.get(f"{team}/modules/secret.js")).status == 404
        assert (await context.request.get(f"{team}/modules/react.js")).ok
        page = await context.new_page()
        await page.goto(team)
        await page.get_by_role("link", name="in Vue").click()
        await expect(page.get_by_role("button", name="Dave Diaz")).to_be_visible()
