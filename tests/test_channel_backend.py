"""CHANNEL_AUTH_URL: real backends, among them hostile ones, and what becomes of whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from conftest import eventually
from structlog.testing import capture_logs

from gateway.channels.backend import AT_ONCE, EACH, FAILURES, MAX_ANSWER, HTTPBackend, socket_id_of
from gateway.channels.model import MAX_INFO, Asker
from gateway.errors import ForbiddenError, UnavailableError

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
TOKEN = "a-token-that-nobody-may-read"


def asker(connection_id: str = "1234.5678", **headers: str) -> Asker:
    return Asker(tenant="default", connection_id=connection_id, headers=headers or {"Authorization": f"Bearer {TOKEN}"})


class Application:
    """A real HTTP server in Laravel's place."""

    def __init__(self, answer: Answer) -> None:
        self.url = ""
        self.asked: list[tuple[dict[str, str], dict[str, str]]] = []
        """Form and headers of each request."""
        self.at_once = self.most_at_once = 0
        self._answer = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((form, dict(request.headers)))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def application(answer: Answer, **options: Any) -> AsyncIterator[tuple[Application, HTTPBackend]]:
    made = Application(answer)
    app = web.Application()
    app.router.add_post("/broadcasting/auth", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}/broadcasting/auth"
    backend = HTTPBackend(made.url, **options)
    try:
        yield made, backend
    finally:
        await backend.close()
        await runner.cleanup()


def says(text: str, status: int = 200, **headers: str) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status, headers=headers)

    return answer


async def test_it_is_asked_as_laravels_front_ends_ask() -> None:
    async with application(says("true")) as (app, backend):
        who = asker(Authorization=f"Bearer {TOKEN}", Cookie="laravel_session=abc", Host="evil", Accept="text/html")
        assert await backend.ask(who, "private-orders.5") is None
    [(form, headers)] = app.asked
    assert form == {"channel_name": "private-orders.5", "socket_id": "1234.5678"}
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert (headers["Authorization"], headers["Cookie"]) == (f"Bearer {TOKEN}", "laravel_session=abc")
    assert (headers["X-Requested-With"], headers["Accept"]) == ("XMLHttpRequest", "application/json")
    assert headers["X-Socket-ID"] == "1234.5678"
    assert headers["Host"] != "evil"


@pytest.mark.parametrize("text", ["true", "{}", "[]", "", " \n", '{"auth": "key:signature"}'])
async def test_a_private_channel_is_entered_with_200(text: str) -> None:
    async with application(says(text)) as (_app, backend):
        assert await backend.ask(asker(), "private-orders.5") is None


@pytest.mark.parametrize(
    "text",
    [
        '{"auth": "k:s", "channel_data": "{\\"user_id\\": 7, \\"user_info\\": {\\"name\\": \\"Ada\\"}}"}',
        '{"channel_data": {"user_id": "7", "user_info": {"name": "Ada"}}}',
    ],
    ids=["as text, as Pusher has it", "as an object, as Echo Server has it"],
)
async def test_who_enters_a_presence_channel_is_in_channel_data(text: str) -> None:
    async with application(says(text)) as (_app, backend):
        person = await backend.ask(asker(), "presence-room-5")
    assert person is not None
    assert (person.user_id, bytes(person.info)) == ("7", b'{"name":"Ada"}')


@pytest.mark.parametrize("status", [401, 403, 404, 419])
async def test_these_statuses_refuse(status: int) -> None:
    async with application(says("no", status)) as (_app, backend):
        with pytest.raises(ForbiddenError):
            await backend.ask(asker(), "private-orders.5")
        assert backend.failed == 0


async def test_false_refuses() -> None:
    async with application(says("false")) as (_app, backend):
        with pytest.raises(ForbiddenError):
            await backend.ask(asker(), "private-orders.5")


@pytest.mark.parametrize("status", [201, 204, 301, 302, 400, 422, 429, 500, 503])
async def test_other_statuses_say_nothing(status: int) -> None:
    async with application(says("true" if status != 204 else "", status, Location="/elsewhere")) as (app, backend):
        with pytest.raises(UnavailableError):
            await backend.ask(asker(), "private-orders.5")
        assert len(app.asked) == 1  # and no redirect was followed


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ("private-orders.5", "<html>log in, please</html>"),
        ("private-orders.5", '"yes"'),
        ("private-orders.5", "[1]"),
        ("private-orders.5", "null"),
        ("private-orders.5", "[" * 10_000),
        ("private-orders.5", '{"auth": "' + "x" * MAX_ANSWER + '"}'),
        ("presence-room-5", "true"),
        ("presence-room-5", "{}"),
        ("presence-room-5", '{"channel_data": "nonsense"}'),
        ("presence-room-5", '{"channel_data": {"user_info": {}}}'),
        ("presence-room-5", '{"channel_data": {"user_id": true}}'),
        ("presence-room-5", '{"channel_data": {"user_id": ""}}'),
        ("presence-room-5", '{"channel_data": {"user_id": "7", "user_info": "' + "x" * MAX_INFO + '"}}'),
    ],
)
async def test_nonsense_lets_nobody_in(channel: str, text: str) -> None:
    async with application(says(text)) as (_app, backend):
        with pytest.raises(UnavailableError):
            await backend.ask(asker(), channel)


async def test_what_is_compressed_all_the_same_is_not_read() -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        response = web.Response(text="true" * 100_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with application(answer) as (_app, backend):
        with pytest.raises(UnavailableError):
            await backend.ask(asker(), "private-orders.5")


async def test_an_answer_without_end_is_cut_off() -> None:
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 4096)
        finally:
            ended.set()

    async with application(answer) as (_app, backend):
        with pytest.raises(UnavailableError):
            await backend.ask(asker(), "private-orders.5")
        await asyncio.wait_for(ended.wait(), 5)


async def test_one_that_is_slow_is_given_up_and_left_alone_for_a_while() -> None:
    is_dead = True

    async def answer(_request: web.Request) -> web.StreamResponse:
        if is_dead:
            await asyncio.sleep(60)
        return web.Response(text="true")

    async with application(answer, timeout=0.05, pause=0.3) as (app, backend):
        with capture_logs() as logs:
            for _ in range(FAILURES):
                with pytest.raises(UnavailableError):
                    await backend.ask(asker(), "private-orders.5")
            asked = len(app.asked)
            with pytest.raises(UnavailableError, match="lately"):
                await backend.ask(asker(), "private-orders.5")
            assert len(app.asked) == asked  # it was not asked
            is_dead = False
            await asyncio.sleep(0.35)
            await backend.ask(asker(), "private-orders.5")
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]
    assert TOKEN not in str(logs)


async def test_a_dead_one_is_found_out_by_a_few_and_holds_nobody_up() -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with application(answer, timeout=0.3, pause=30) as (app, backend):
        asking = [backend.ask(asker(f"1.{number}"), "private-orders.5") for number in range(200)]
        async with asyncio.timeout(5):
            results = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(each) for each in results} == {UnavailableError}
        assert AT_ONCE <= len(app.asked) < AT_ONCE + FAILURES  # the first few let others go after them


async def test_one_that_is_not_there() -> None:
    backend = HTTPBackend("http://127.0.0.1:1/broadcasting/auth")
    with capture_logs() as logs, pytest.raises(UnavailableError):
        await backend.ask(asker(), "private-orders.5")
    assert TOKEN not in str(logs)
    await backend.close()


async def test_a_connection_has_a_few_turns_at_once_and_takes_none_of_another() -> None:
    going_on = asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        await going_on.wait()
        return web.Response(text="true")

    async with application(answer) as (app, backend):
        greedy = [asyncio.create_task(backend.ask(asker("1.1"), f"private-orders.{n}")) for n in range(100)]
        await eventually(lambda: len(app.asked) == EACH)
        other = asyncio.create_task(backend.ask(asker("2.2"), "private-orders.5"))
        await eventually(lambda: len(app.asked) == EACH + 1)
        assert {form["socket_id"] for form, _headers in app.asked} == {"1.1", "2.2"}
        assert app.most_at_once == EACH + 1
        going_on.set()
        await asyncio.gather(other, *greedy)
        assert app.most_at_once <= AT_ONCE
        assert not backend._turns


async def test_who_waits_for_too_long_is_told_and_it_counts_against_nobody() -> None:
    going_on = asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        await going_on.wait()
        return web.Response(text="true")

    async with application(answer, patience=0.1) as (_app, backend):
        asking = [asyncio.create_task(backend.ask(asker("1.1"), "private-orders.5")) for _ in range(EACH)]
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="too many"):
            await backend.ask(asker("1.1"), "private-orders.6")
        going_on.set()
        await asyncio.gather(*asking)
        assert await backend.ask(asker("1.1"), "private-orders.6") is None
        assert backend.failed == 0


@pytest.mark.parametrize("value", ["Bearer a\r\nX-Admin: yes", "Bearer \ud800", "Bearer \x00"])
async def test_a_header_that_cannot_be_sent_is_its_senders_fault_alone(value: str) -> None:
    async with application(says("true")) as (app, backend):
        for _ in range(2 * FAILURES):
            with pytest.raises(ForbiddenError):
                await backend.ask(asker(Authorization=value), "private-orders.5")
        assert await backend.ask(asker(), "private-orders.5") is None
        assert len(app.asked) == 1


def test_a_connections_id_has_pushers_form() -> None:
    assert socket_id_of("123.456") == "123.456"
    assert socket_id_of("Kd8-_x") == socket_id_of("Kd8-_x") != socket_id_of("Kd8-_y")
    whole, _, part = socket_id_of("Kd8-_x").partition(".")
    assert whole.isdigit()
    assert part.isdigit()


def test_its_askers_token_is_not_shown() -> None:
    assert TOKEN not in repr(asker())
