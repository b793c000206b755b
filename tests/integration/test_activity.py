"""The middleware: an application's own requests as activity of its users."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from clients import Client
from conftest import SECRET, Clock, Running, eventually, make_settings, make_token

from gateway import Gateway
from gateway.doors import activity
from gateway.presence.model import Beat

Serve = Callable[..., Awaitable[Running]]


class Site:
    """An application of its own, the gateway attached to it, and what the middleware told the tracker."""

    def __init__(self, gateway: Gateway, url: str, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.url = url
        self.session = session
        self.beats: list[Beat] = []

    async def get(self, path: str, **headers: str) -> int:
        async with self.session.get(f"{self.url}{path}", headers=headers) as response:
            await response.read()
            return response.status


async def site(closing: AsyncExitStack, user_of: Any = None, every: float | None = None, **settings: Any) -> Site:
    gateway = Gateway(make_settings(**settings))
    app = web.Application(middlewares=[gateway.activity_middleware(user_of, every=every)])
    slow = asyncio.Event()
    closing.callback(slow.set)

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="a page")

    async def fail(request: web.Request) -> web.Response:
        raise web.HTTPForbidden

    async def stream(request: web.Request) -> web.Response:
        await slow.wait()
        return web.Response()

    async def logout(request: web.Request) -> web.Response:
        await gateway.presence.set_offline("alice")
        return web.Response()

    async def kick(request: web.Request) -> web.Response:
        await gateway.disconnect("alice")
        return web.Response()

    for path, handler in {"/page": page, "/fail": fail, "/stream": stream, "/logout": logout, "/kick": kick}.items():
        app.router.add_get(path, handler)
    gateway.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    session = await closing.enter_async_context(aiohttp.ClientSession())
    made = Site(gateway, f"http://{host}:{port}", session)
    beat = gateway._tracker.beat

    async def noted(each: Beat) -> Any:
        made.beats.append(each)
        return await beat(each)

    gateway._tracker.beat = noted  # type: ignore[assignment, method-assign]
    return made


def bearer(user: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(user, **claims)}"}


async def test_a_request_with_a_token_puts_its_user_online_for_the_ttl(closing: AsyncExitStack) -> None:
    made = await site(closing, presence_ttl=0.5)
    presence = made.gateway.presence
    assert await made.get("/page", **bearer(name="Alice")) == 200
    await eventually(lambda: presence.status("alice").online)
    assert presence.status("alice").profile.name == "Alice"
    await eventually(lambda: not presence.status("alice").online)


@pytest.mark.parametrize("place", ["query", "cookie"])
async def test_a_token_is_found_where_the_gateways_own_calls_have_it(closing: AsyncExitStack, place: str) -> None:
    made = await site(closing)
    token = make_token("alice", tenant="acme")
    if place == "query":
        assert await made.get(f"/page?token={token}") == 200
    else:
        assert await made.get("/page", Cookie=f"jwt={token}") == 200
    await eventually(lambda: made.gateway.presence.status("alice", tenant="acme").online)


BAD = {
    "none": {},
    "no token": {"Authorization": "Bearer nonsense"},
    "expired": bearer(exp=1),
    "another's": {"Authorization": f"Bearer {jwt.encode({'sub': 'alice', 'exp': 9_999_999_999}, 'x' * 40)}"},
    "basic": {"Authorization": "Basic YTpi"},
}


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD.keys())
async def test_it_refuses_nobody_and_takes_nobody_for_another(closing: AsyncExitStack, headers: dict[str, str]) -> None:
    made = await site(closing)
    assert await made.get("/page", **headers) == 200
    assert await made.get("/page", **bearer("bob")) == 200
    await eventually(lambda: made.beats)
    assert [beat.user_id for beat in made.beats] == ["bob"]


async def test_a_user_is_recorded_once_in_a_while_and_a_token_verified_once(
    closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await site(closing, every=60)
    verified = []
    identify = made.gateway._authenticator.identify

    async def noted(token: str | None) -> Any:
        verified.append(token)
        return await identify(token)

    monkeypatch.setattr(made.gateway._authenticator, "identify", noted)
    one, other = bearer(), bearer(name="another token")
    for headers in (one, one, other, other, one):
        assert await made.get("/page", **headers) == 200
    await made.get("/page", **bearer("bob"))
    await eventually(lambda: len(made.beats) == 2)
    assert [beat.user_id for beat in made.beats] == ["alice", "bob"]
    assert len(verified) == 3


async def test_after_a_while_it_is_recorded_again(closing: AsyncExitStack) -> None:
    made = await site(closing, lambda _request: "alice", every=0.2)
    await made.get("/page")
    await eventually(lambda: made.beats)
    await asyncio.sleep(0.25)
    await made.get("/page")
    await eventually(lambda: len(made.beats) == 2)


async def test_requests_that_fail_count_and_those_to_nowhere_do_not(closing: AsyncExitStack) -> None:
    made = await site(closing)
    assert await made.get("/nowhere", **bearer("alice")) == 404
    assert await made.get("/fail", **bearer("bob")) == 403
    await eventually(lambda: made.beats)
    assert [beat.user_id for beat in made.beats] == ["bob"]


async def test_the_gateways_own_routes_are_left_to_it(closing: AsyncExitStack) -> None:
    made = await site(closing)
    for path in ("/online-status?ids=bob", "/api/users/online", "/health/live", "/socket.io/?EIO=4&transport=polling"):
        assert await made.get(path, **bearer()) == 200
    alice = await Client.connect(closing, made.url)
    await alice.ask("heartbeat")
    await alice.leave()
    await made.get("/page", **bearer("bob"))
    await eventually(lambda: made.beats)
    assert [beat.user_id for beat in made.beats if beat.holds] == ["bob"]
    assert not made.gateway.presence.status("alice").online  # her goodbye was the last word


@pytest.mark.parametrize("path", ["/logout", "/kick"])
@pytest.mark.parametrize("by", ["token", "session"])
async def test_a_logout_is_the_last_word(closing: AsyncExitStack, by: str, path: str) -> None:
    made = await site(closing, (lambda _request: "alice") if by == "session" else None)
    await made.gateway.presence.set_online("alice")
    made.beats.clear()
    assert await made.get(path, **bearer()) == 200
    await asyncio.sleep(0.05)
    assert made.beats == []
    assert not made.gateway.presence.status("alice").online
    await made.get("/page", **bearer(name="who logged in again"))
    await eventually(lambda: made.gateway.presence.status("alice").online)


async def test_a_stream_counts_before_it_ends(closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "STREAM", 0.05)
    made = await site(closing, every=0.01)
    waiting = asyncio.create_task(made.get("/stream", **bearer()))
    await eventually(lambda: made.beats)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert len(made.beats) == 1


@pytest.mark.parametrize("answer", [("alice", "acme"), "alice", None])
async def test_an_application_with_sessions_says_who_it_is(closing: AsyncExitStack, answer: Any) -> None:
    made = await site(closing, lambda _request: answer)
    assert await made.get("/page", **bearer("mallory")) == 200
    await asyncio.sleep(0.05)
    assert [(beat.tenant, beat.user_id) for beat in made.beats] == {
        ("alice", "acme"): [("acme", "alice")],
        "alice": [("default", "alice")],
        None: [],
    }[answer]


def _raises(_request: web.Request) -> str:
    raise RuntimeError("for this test")


@pytest.mark.parametrize("user_of", [_raises, lambda _r: 7, lambda _r: "", lambda _r: "a\n", lambda _r: ("a", "")])
async def test_a_callable_that_fails_fails_no_request(closing: AsyncExitStack, user_of: Any) -> None:
    made = await site(closing, user_of)
    assert await made.get("/page") == 200
    assert made.beats == []


async def test_a_store_that_hangs_or_fails_delays_no_request_and_no_memory_grows(
    closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "WAITING", 3)
    users = iter(range(100))
    made = await site(closing, lambda _request: f"user-{next(users)}")
    hanging: list[asyncio.Future[None]] = []

    async def hang(beat: Beat) -> Any:
        hanging.append(asyncio.get_running_loop().create_future())
        await hanging[-1]

    made.gateway._tracker.beat = hang  # type: ignore[method-assign]
    for _ in range(10):
        assert await made.get("/page") == 200
    assert len(hanging) == 3
    for each in hanging:
        each.set_exception(RuntimeError("for this test"))
    await asyncio.sleep(0.01)
    assert await made.get("/page") == 200
    await eventually(lambda: len(hanging) == 4)
    hanging[-1].set_result(None)


@pytest.mark.parametrize("every", [0, -1, 90, 1000])
def test_a_user_is_recorded_before_the_time_is_over(every: float, clock: Clock) -> None:
    with pytest.raises(ValueError, match="less than 90"):
        Gateway(make_settings(jwt_secret=SECRET)).activity_middleware(every=every)
