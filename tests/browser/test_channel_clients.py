"""pusher-js, Laravel Echo and socket.io-client as npm has them, in one page in Chromium: one channel, and one world."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from chromium import browser  # noqa: F401 - a fixture
from conftest import ROOT, STEP, make_settings, make_token
from playwright.async_api import Browser
from pusher import Pusher

from gateway import Gateway

# With the other pages: one worker, one event loop and so one browser for all of them.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.asyncio(loop_scope="module")]

MODULES = ROOT / "node_modules"
SCRIPTS = {
    "pusher.js": MODULES / "pusher-js" / "dist" / "web" / "pusher.min.js",
    "encrypted.js": MODULES / "pusher-js" / "dist" / "web" / "pusher-with-encryption.min.js",
    "echo.js": MODULES / "laravel-echo" / "dist" / "echo.iife.js",
}
PAGE = """<!doctype html><meta charset="utf-8"><title>Clients</title><link rel="icon" href="data:,">
<script src="/socket.io/socket.io.min.js"></script><script src="/pusher.js"></script><script src="/echo.js"></script>"""
ENCRYPTED_PAGE = PAGE.replace("/pusher.js", "/encrypted.js")
MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
APP = {
    "pusher_app_id": "42",
    "pusher_app_key": "app-key",
    "pusher_app_secret": "the application's secret",
    "pusher_encryption_master_key_base64": MASTER_KEY,
}

JOIN = """async ({kind, token, channel}) => {
  const heard = window.heard = [];
  const headers = { Authorization: `Bearer ${token}` };
  const here = { wsHost: location.hostname, wsPort: Number(location.port), forceTLS: false, enabledTransports: ['ws'] };
  const room = channel.replace('presence-', '');
  const names = (members) => members.map((member) => member.name).sort();
  if (kind === 'native') {
    const socket = window.client = io('/ws/messages', { auth: { token } });
    socket.on('member-added', ({ info }) => heard.push(['came', info.name]));
    socket.on('member-removed', ({ info }) => heard.push(['went', info.name]));
    socket.on('shipped', (data) => heard.push(['shipped', data]));
    await new Promise((resolve) => socket.on('connected', resolve));
    const { data } = await socket.timeout(5000).emitWithAck('join-channel', { channel });
    heard.push(['here', names(data.members.map(({ info }) => info))]);
    return;
  }
  if (kind === 'pusher') {
    const pusher = window.client = new Pusher('app-key', {
      cluster: 'any', ...here, channelAuthorization: { endpoint: '/broadcasting/auth', headers },
    });
    const joined = pusher.subscribe(channel);
    joined.bind('pusher:member_added', ({ info }) => heard.push(['came', info.name]));
    joined.bind('pusher:member_removed', ({ info }) => heard.push(['went', info.name]));
    joined.bind('shipped', (data) => heard.push(['shipped', data]));
    const members = await new Promise((resolve) => joined.bind('pusher:subscription_succeeded', resolve));
    heard.push(['here', names(Object.values(members.members))]);
    return;
  }
  const options = kind === 'reverb'
    ? { broadcaster: 'reverb', key: 'app-key', ...here, authEndpoint: '/broadcasting/auth', auth: { headers } }
    : { broadcaster: 'socket.io', client: io, auth: { headers } };
  const Maker = Echo.default ?? Echo; // what its build for pages is called
  const echo = window.client = new Maker(options);
  await new Promise((resolve) => echo.join(room)
    .here((members) => { heard.push(['here', names(members)]); resolve(); })
    .joining((member) => heard.push(['came', member.name]))
    .leaving((member) => heard.push(['went', member.name]))
    .listen('.shipped', (data) => heard.push(['shipped', data])));
}"""


@pytest_asyncio.fixture(loop_scope="module")
async def running() -> AsyncIterator[tuple[str, Gateway]]:
    """Serve the gateway, and a page with all of the clients."""

    async def rule(_identity: object, channel: str) -> bool | None:
        return True if channel.startswith("private-encrypted-") else None  # None: as it is built in

    gateway = Gateway(make_settings(**APP), channel_auth=rule)
    app = web.Application()

    async def page(request: web.Request) -> web.Response:
        text = ENCRYPTED_PAGE if request.path == "/encrypted" else PAGE
        return web.Response(text=text, content_type="text/html")

    async def script(request: web.Request) -> web.FileResponse:
        return web.FileResponse(SCRIPTS[request.match_info["name"]])

    app.router.add_get("/", page)
    app.router.add_get("/encrypted", page)
    app.router.add_get("/{name:(pusher|encrypted|echo)\\.js}", script)
    gateway.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", gateway
    await runner.cleanup()


async def test_four_clients_see_one_world(running: tuple[str, Gateway], browser: Browser) -> None:  # noqa: F811
    home, gateway = running
    pages: dict[str, Any] = {}
    problems: list[str] = []

    async def heard(kind: str, *what: object) -> None:
        await pages[kind].wait_for_function(
            "(what) => heard.some((each) => JSON.stringify(each) === JSON.stringify(what))",
            arg=list(what),
            timeout=STEP * 1000,
        )

    kinds = ("native", "pusher", "reverb", "socket.io")
    for number, kind in enumerate(kinds):
        pages[kind] = page = await browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(home)
        token = make_token(kind.replace(".", ""), name=kind)
        await page.evaluate(JOIN, {"kind": kind, "token": token, "channel": "presence-world"})
        await heard(kind, "here", sorted(kinds[: number + 1]))
        for other in kinds[:number]:
            await heard(other, "came", kind)
    assert set(gateway.presence.online_users()) == {"native", "pusher", "reverb", "socketio"}
    await gateway.channels.say("presence-world", "shipped", {"order": 1})
    for kind in kinds:
        await heard(kind, "shipped", {"order": 1})
    await pages["pusher"].evaluate("client.disconnect()")
    for kind in ("native", "reverb", "socket.io"):
        await heard(kind, "went", "pusher")
    for page in pages.values():
        await page.close()
    assert problems == []


READ = """async ({token, channel}) => {
  window.heard = [];
  const { hostname, port } = location;
  const pusher = new Pusher('app-key', {
    cluster: 'any', wsHost: hostname, wsPort: Number(port), forceTLS: false, enabledTransports: ['ws'],
    channelAuthorization: { endpoint: '/broadcasting/auth', headers: { Authorization: `Bearer ${token}` } },
  });
  const joined = pusher.subscribe(channel);
  joined.bind('shipped', (data) => heard.push(data));
  await new Promise((resolve) => joined.bind('pusher:subscription_succeeded', resolve));
}"""


async def test_what_a_backend_encrypts_a_page_reads(running: tuple[str, Gateway], browser: Browser) -> None:  # noqa: F811
    home, _gateway = running
    channel = "private-encrypted-orders"
    page = await browser.new_page()
    await page.goto(f"{home}/encrypted")
    await page.evaluate(READ, {"token": make_token("alice"), "channel": channel})
    host, _, port = home.removeprefix("http://").partition(":")
    backend = Pusher(
        app_id="42",
        key=APP["pusher_app_key"],
        secret=APP["pusher_app_secret"],
        ssl=False,
        host=host,
        port=int(port),
        encryption_master_key_base64=MASTER_KEY,
    )
    try:
        await asyncio.to_thread(backend.trigger, channel, "shipped", {"to": "Köln"})
    finally:
        for client in (backend._pusher_client, backend._authentication_client):
            client.http.session.close()
    await page.wait_for_function("heard.length", timeout=STEP * 1000)
    assert await page.evaluate("heard") == [{"to": "Köln"}]
    await page.close()
