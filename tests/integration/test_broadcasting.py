"""``/broadcasting/auth``: what the gateway signs for a Pusher client, and what an application of one's own says."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from clients import Client, Plain
from conftest import STEP, Running, eventually, make_token
from pusher import Pusher
from pusher.signature import sign

Serve = Callable[..., Awaitable[Running]]
APP = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}
PAGE = "https://app.example"


@pytest.fixture
def library() -> Pusher:
    """Pusher's own, as a backend would sign with it."""
    return Pusher(app_id="42", key=APP["pusher_app_key"], secret=APP["pusher_app_secret"])


async def post(
    running: Running,
    path: str = "/broadcasting/auth",
    *,
    token: str | None = None,
    form: dict[str, str] | None = None,
    payload: object = None,
    **headers: str,
) -> tuple[int, Any]:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(running.url + path, data=form, json=payload) as response,
    ):
        return response.status, await response.json(content_type=None)


def asked(channel: str, socket_id: str = "123.456") -> dict[str, str]:
    return {"socket_id": socket_id, "channel_name": channel}


@pytest.mark.parametrize("kind", ["form", "payload"])
async def test_a_private_channel_is_signed_as_pushers_library_signs_it(
    serve: Serve, library: Pusher, kind: str
) -> None:
    running = await serve(**APP)
    status, answer = await post(running, token=make_token("7"), **{kind: asked("private-user.7")})  # type: ignore[arg-type]
    assert (status, answer) == (200, library.authenticate("private-user.7", "123.456"))


async def test_a_presence_channel_says_who_it_is(serve: Serve, library: Pusher) -> None:
    running = await serve(**APP)
    token = make_token("7", name="Ada", avatar="https://app.example/ada.png", role="admin")
    status, answer = await post(running, token=token, form=asked("presence-room-5"))
    assert status == 200
    data = json.loads(answer["channel_data"])
    assert data == {
        "user_id": "7",
        "user_info": {"name": "Ada", "avatar": "https://app.example/ada.png", "role": "admin"},
    }
    signer = library._authentication_client
    signed = signer.authenticate("presence-room-5", "123.456", data)
    assert json.loads(signed["channel_data"]) == data
    # The very text is signed, however its JSON is written.
    right = sign(signer.secret, f"123.456:presence-room-5:{answer['channel_data']}")
    assert answer["auth"] == f"app-key:{right}"


async def everyone(_identity: object, _channel: str) -> bool:
    """Who may be in channels of which the built-in rules know nothing."""
    return True


async def test_an_encrypted_channel_comes_with_its_secret(serve: Serve) -> None:
    master_key = base64.b64encode(b"k" * 32).decode()
    running = await serve(**APP, pusher_encryption_master_key_base64=master_key, channel_auth=everyone)
    backend = Pusher(
        app_id="42",
        key=APP["pusher_app_key"],
        secret=APP["pusher_app_secret"],
        encryption_master_key_base64=master_key,
    )
    for channel in ("private-encrypted-orders", "private-encrypted-cache-orders"):
        status, answer = await post(running, token=make_token("7"), form=asked(channel))
        signed = backend.authenticate(channel, "123.456")
        assert (status, answer) == (200, signed | {"shared_secret": signed["shared_secret"].decode()})
    for channel in ("private-user.7", "presence-encrypted-room"):
        assert "shared_secret" not in (await post(running, token=make_token("7"), form=asked(channel)))[1]


async def test_an_encrypted_channel_is_refused_where_nobody_has_its_key(serve: Serve) -> None:
    running = await serve(**APP, channel_auth=everyone)
    status, answer = await post(running, token=make_token("7"), form=asked("private-encrypted-orders"))
    assert (status, answer["code"]) == (403, "FORBIDDEN")
    assert "PUSHER_ENCRYPTION_MASTER_KEY_BASE64" in answer["detail"]


async def test_a_user_is_signed_in(serve: Serve, library: Pusher) -> None:
    running = await serve(**APP)
    status, answer = await post(
        running, "/broadcasting/user-auth", token=make_token("7", name="Ada"), form={"socket_id": "123.456"}
    )
    assert status == 200
    assert json.loads(answer["user_data"]) == {"id": "7", "user_info": {"name": "Ada"}}
    right = sign(library._authentication_client.secret, f"123.456::user::{answer['user_data']}")
    assert answer["auth"] == f"app-key:{right}"


@pytest.mark.parametrize(
    ("user", "channel", "claims"),
    [
        ("7", "private-user.8", {}),
        ("7", "private-conversation.5-12", {}),
        ("7", "private-admin", {}),
        ("7", "private-orders.5", {}),
        ("7", "orders", {}),
        ("7", "private-user.7", {"tenant": "acme"}),
        ("7", "private-admin", {"tenant": "acme", "role": "admin"}),
    ],
)
async def test_what_a_user_may_not_join_is_not_signed(
    serve: Serve, user: str, channel: str, claims: dict[str, Any]
) -> None:
    running = await serve(**APP)
    status, answer = await post(running, token=make_token(user, **claims), form=asked(channel))
    assert (status, answer["code"]) == (403, "FORBIDDEN")


async def test_a_user_of_another_tenant_is_not_signed_in(serve: Serve) -> None:
    running = await serve(**APP)
    token = make_token("7", tenant="acme")
    status, _answer = await post(running, "/broadcasting/user-auth", token=token, form={"socket_id": "1.2"})
    assert status == 403


async def test_whoever_shows_no_token_is_refused(serve: Serve) -> None:
    running = await serve(**APP)
    assert (await post(running, form=asked("presence-room-5")))[0] == 401
    assert (await post(running, token="none", form=asked("presence-room-5")))[0] == 401


@pytest.mark.parametrize(
    "socket_id", ["", "123", "123.456:presence-room-6", "123.456\n", "1" * 21 + ".1", "123.456::user::{}", "a.b"]
)
async def test_a_socket_id_that_would_make_another_signature_of_it(serve: Serve, socket_id: str) -> None:
    running = await serve(**APP)
    status, answer = await post(running, token=make_token("7"), form=asked("presence-room-5", socket_id))
    assert (status, answer["code"]) == (400, "INVALID_PAYLOAD")


async def test_bodies_that_are_none(serve: Serve) -> None:
    running = await serve(**APP)
    token = make_token("7")
    payloads: list[object] = [None, [], 7, {"socket_id": 1.2, "channel_name": "presence-room-5"}, {"channel_name": "a"}]
    for payload in payloads:
        assert (await post(running, token=token, payload=payload))[0] == 400
    many = asked("presence-room-5") | {f"field-{number}": "x" for number in range(100)}
    assert (await post(running, token=token, form=many))[0] == 400
    assert (await post(running, token=token, form=asked("presence-" + "r" * 100_000)))[0] == 413


async def test_a_cookie_is_a_token_for_pages_that_are_allowed_by_name(serve: Serve) -> None:
    running = await serve(**APP, cors_allowed_origins=PAGE)
    cookie = f"jwt={make_token('7')}"
    form = asked("presence-room-5")
    assert (await post(running, form=form, Cookie=cookie, Origin=PAGE))[0] == 200
    assert (await post(running, form=form, Cookie=cookie))[0] == 200
    assert (await post(running, form=form, Cookie=cookie, Origin="https://evil.example"))[0] == 403
    open_to_all = await serve(**APP, cors_allowed_origins="*")
    assert (await post(open_to_all, form=form, Cookie=cookie, Origin="https://evil.example"))[0] == 401


async def test_a_page_of_another_origin_may_send_what_laravel_echo_sends(serve: Serve) -> None:
    running = await serve(**APP, cors_allowed_origins=PAGE)
    async with (
        aiohttp.ClientSession() as session,
        session.options(f"{running.url}/broadcasting/auth", headers={"Origin": PAGE}) as response,
    ):
        allowed = response.headers["Access-Control-Allow-Headers"]
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert {"Authorization", "X-CSRF-TOKEN", "X-Requested-With"} <= set(allowed.split(", "))


async def test_without_an_application_nothing_is_signed(serve: Serve) -> None:
    running = await serve()
    assert (await post(running, token=make_token("7"), form=asked("presence-room-5")))[0] == 404


# CHANNEL_AUTH_URL


class Laravel:
    """An application that lets users into the channels named, and says who they are."""

    def __init__(self) -> None:
        self.url = ""
        self.allowed: dict[tuple[str | None, str], object] = {}
        """What to answer, by the Authorization header and the channel."""
        self.asked: list[tuple[str | None, str, str]] = []
        self.is_slow = False

    async def handle(self, request: web.Request) -> web.Response:
        form = await request.post()
        who, channel = request.headers.get("Authorization"), str(form["channel_name"])
        self.asked.append((who, channel, request.headers["X-Socket-ID"]))
        if self.is_slow:
            await asyncio.sleep(60)
        answer = self.allowed.get((who, channel))
        return web.Response(status=403) if answer is None else web.json_response(answer)


@asynccontextmanager
async def laravel() -> AsyncIterator[Laravel]:
    made = Laravel()
    app = web.Application()
    app.router.add_post("/broadcasting/auth", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}/broadcasting/auth"
        yield made
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("door", ["socketio", "websocket"])
async def test_an_application_is_asked_with_the_clients_own_token(
    serve: Serve, closing: AsyncExitStack, door: str
) -> None:
    app = await closing.enter_async_context(laravel())
    running = await serve(channel_auth_url=app.url)
    token = make_token("alice")
    if door == "socketio":
        client: Any = await Client.connect(closing, running.url, auth={"token": token})
    else:
        client = await Plain.open(closing, f"{running.ws_url}/ws?token={token}")
        await client.until("connected")
    bearer = f"Bearer {token}"
    app.allowed[bearer, "private-orders.5"] = True
    app.allowed[bearer, "presence-room-5"] = {"channel_data": {"user_id": 7, "user_info": {"name": "Ada"}}}

    assert (await client.ask("join-channel", {"channel": "private-orders.5"}))["event"] == "joined-channel"
    joined = await client.ask("join-channel", {"channel": "presence-room-5"})
    assert joined["data"]["members"] == [{"userId": "7", "info": {"name": "Ada"}}]
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as response:
        figures = await response.text()
    assert "\npresence_channel_auth_requests_total 2.0\n" in figures
    assert "\npresence_channel_auth_failures_total 0.0\n" in figures
    for refused in ("private-user.alice", "presence-room-6"):  # what is built in does not count any more
        assert (await client.ask("join-channel", {"channel": refused}))["error"]["code"] == "FORBIDDEN"
    assert (await client.ask("join-channel", {"channel": "orders"}))["event"] == "joined-channel"
    assert {who for who, _channel, _socket in app.asked} == {bearer}
    assert "orders" not in {channel for _who, channel, _socket in app.asked}  # a public one is open to all

    newer = make_token("alice", ttl=7200)
    assert (await client.ask("refresh-token", {"token": newer}))["event"] == "token-refreshed"
    await client.ask("join-channel", {"channel": "private-orders.6"})
    assert app.asked[-1][0] == f"Bearer {newer}"


async def test_one_that_does_not_answer_holds_up_nothing_else(serve: Serve, closing: AsyncExitStack) -> None:
    app = await closing.enter_async_context(laravel())
    running = await serve(channel_auth_url=app.url)
    app.is_slow = True
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    await alice.tell("join-channel", {"channel": "private-orders.5"})
    await eventually(lambda: app.asked)
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert (await bob.ask("join-channel", {"channel": "orders"}))["event"] == "joined-channel"
    alice.vanish()
    # The stock engine reads on when a request is answered, for which an authorizer has 5 seconds.
    await eventually(lambda: running.gateway.presence.online_users() == ["bob"], within=3 * STEP)


async def test_no_token_is_kept_where_nobody_asks_for_it(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    await Client.connect(closing, running.url, "alice")
    [live] = running.gateway._connections.of_user("default", "alice")
    assert live.token is None


async def test_what_is_signed_is_what_the_application_says(serve: Serve, closing: AsyncExitStack) -> None:
    app = await closing.enter_async_context(laravel())
    running = await serve(**APP, channel_auth_url=app.url)
    token = make_token("alice")
    app.allowed[f"Bearer {token}", "presence-room-5"] = {"channel_data": {"user_id": 7, "user_info": {"name": "Ada"}}}
    status, answer = await post(running, token=token, form=asked("presence-room-5"))
    assert status == 200
    assert json.loads(answer["channel_data"]) == {"user_id": "7", "user_info": {"name": "Ada"}}
    assert (await post(running, token=token, form=asked("private-user.alice")))[0] == 403
