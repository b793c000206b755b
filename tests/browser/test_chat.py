"""The example's chat, in Chromium, as two people use it."""

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
async def chat() -> AsyncIterator[str]:
    """Serve the example, and give its address."""
    async with example("chat/chat") as url:
        yield url


class Person:
    """One of them, in a window of their own."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda said: self.problems.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    async def come(self, home: str, name: str) -> None:
        await self.page.goto(home)
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_role("button", name="Come in").click()
        await expect(self.page.locator("#place")).to_have_text("# general")

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_label("Message").press("Enter")
        await expect(self.said(text)).to_have_count(1)

    def said(self, text: str) -> Locator:
        return self.page.locator("#messages li").filter(has_text=text)

    def at(self, element: str) -> Locator:
        return self.page.locator(f"#{element}")


async def test_two_people_meet_in_a_room_and_talk(chat: str, browser: Browser) -> None:  # noqa: F811
    async with AsyncExitStack() as stack:

        async def person(**options: Any) -> Person:
            context = await stack.enter_async_context(await browser.new_context(**options))
            return Person(await context.new_page())

        alice, bob = await person(), await person()
        await alice.come(chat, "Alice")
        await bob.come(chat, "Bob")
        await expect(alice.at("members")).to_have_text("in this room: Alice, Bob")
        await expect(bob.at("members")).to_have_text("in this room: Alice, Bob")

        await bob.page.get_by_label("Message").press_sequentially("h")
        await expect(alice.at("typing")).to_have_text("Bob is typing …")
        await bob.say("hello, is anybody here?")
        await expect(alice.said("hello, is anybody here?")).to_contain_text("Bob")
        await alice.say("<img src=x onerror=alert(1)> I am")
        await expect(bob.said("<img src=x onerror=alert(1)> I am")).to_have_count(1)

        # To each other: what is not looked at is counted, and what is, is marked as read.
        await alice.page.get_by_role("button", name="Bob").click()
        await alice.say("between us")
        await expect(alice.said("between us")).to_contain_text("sent")
        await expect(bob.page.get_by_role("button", name="Alice")).to_have_attribute("data-unread", "1")
        await bob.page.get_by_role("button", name="Alice").click()
        await expect(bob.said("between us")).to_have_count(1)
        await expect(alice.said("between us")).to_contain_text("read")
        await bob.say("quite")
        await expect(alice.said("quite")).to_have_count(1)
        await expect(bob.said("quite")).to_contain_text("read")
        await expect(alice.at("login")).to_be_hidden()
        await alice.page.screenshot(path=PICTURES / "chat.png")

        # Who comes back finds what was said.
        await bob.page.reload()
        await bob.come(chat, "Bob")
        await expect(bob.said("hello, is anybody here?")).to_have_count(1)
        await bob.page.close()
        await expect(alice.page.get_by_role("button", name="Bob")).to_have_count(0)
        assert alice.problems == []
        assert bob.problems == []
