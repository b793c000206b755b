"""What the engine closes in python-socketio, one sentence each; the doors' tests see the same from outside."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
import socketio
from aiohttp import web
from clients import Client, Polling
from conftest import STEP, Running, eventually, make_settings, make_token

from gateway import Gateway, Transition
from gateway.app import SteadyClock, create_app
from gateway.engine import json
from gateway.engine.manager import Manager
from gateway.engine.outbound import OutboundQueue, text_size

Serve = Callable[..., Awaitable[Running]]


def test_json_errors_are_value_errors_whatever_is_wrong() -> None:
    for text in ("{", "[" * 100_000, "nul", "\ud83d"):
        with pytest.raises(ValueError):
            json.loads(text)
    assert json.loads('{"a":[1,null]}') == {"a": [1, None]}
    assert json.dumps({"a": "é"}, separators=(", ", ": ")) == '{"a":"é"}'


async def test_the_queue_counts_bytes_and_says_once_that_they_are_too_many() -> None:
    said: list[int] = []
    queue = OutboundQueue(text_size, 5, lambda: said.append(queue.waiting_bytes))
    queue.put_nowait("ab")
    queue.put_nowait("éé")
    assert (queue.waiting_bytes, said) == (6, [6])
    queue.put_nowait("c")
    assert said == [6]
    assert await queue.get() == "ab"
    assert queue.waiting_bytes == 5
    queue.drop_all()
    assert queue.waiting_bytes == 0


async def test_a_client_is_forgotten_whole_and_the_others_stay() -> None:
    manager = Manager()
    manager.set_server(socketio.AsyncServer(client_manager=manager))
    first, second = [await manager.pre_connect(eio_sid, "/a") for eio_sid in ("e1", "e2")]
    for sid in (first, second):
        manager.pending_connect["/a"].remove(sid)
    manager.pre_disconnect(first, "/a")
    await manager.disconnect(first, "/a")
    assert dict(manager.rooms["/a"][None]) == {second: "e2"}
    assert set(manager.rooms["/a"]) == {None, second}
    assert manager.pending_disconnect == {}
    await manager.disconnect(second, "/a")
    assert manager.rooms == {}


def test_the_clock_never_goes_back_and_follows_forward() -> None:
    wall, monotonic = [10_000_000_000], [5_000_000_000]
    clock = SteadyClock(lambda: wall[0], lambda: monotonic[0])
    assert clock() == 10_000
    wall[0] -= 3_600_000_000_000
    monotonic[0] += 1_000_000_000
    assert clock() == 11_000
    wall[0] = 20_000_000_000
    assert clock() == 20_000


async def test_one_connection_may_not_try_to_connect_without_end(serve: Serve) -> None:
    running = await serve()
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{running.ws_url}/socket.io/?EIO=4&transport=websocket") as ws,
    ):
        for _ in range(12):
            await ws.send_str('40/ws/messages,{"token":"bad"}')
        refused = 0
        while (message := await ws.receive(5)).type is aiohttp.WSMsgType.TEXT:
            refused += message.data.startswith("44/ws/messages,")
        assert refused == 10
        assert ws.close_code == 4029


async def test_a_polling_body_without_a_length_is_read_whole(serve: Serve) -> None:
    running = await serve()

    async def chunks(text: str) -> AsyncIterator[bytes]:
        yield text.encode()

    async with aiohttp.ClientSession() as http:
        address = f"{running.url}/socket.io/?EIO=4&transport=polling"
        async with http.get(address) as response:
            sid = (await response.json(content_type=None, loads=lambda text: json.loads(text[1:])))["sid"]
        connect = f'40/ws/messages,{{"token":"{make_token("alice")}"}}'
        async with http.post(f"{address}&sid={sid}", data=chunks(connect)) as response:
            assert response.status == 200
        await eventually(lambda: running.gateway.presence.status("alice").online)


async def test_a_probe_that_was_given_up_does_not_turn_a_later_loss_into_a_goodbye(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(presence_offline_grace=60)
    alice = await Polling.connect(closing, running.url, "alice")
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{running.ws_url}/socket.io/?EIO=4&transport=websocket&sid={alice.sid}") as probe,
    ):
        await probe.send_str("2probe")
        assert await probe.receive_str() == "3probe"
        await probe.close(code=1000)
    assert await alice.post("1") == 200
    await eventually(lambda: len(running.gateway._connections) == 0)
    assert running.gateway.presence.status("alice").online


@pytest.mark.parametrize("path", ["/ws?", "/socket.io/?EIO=4&transport=websocket&"])
async def test_what_a_hook_sends_to_whoever_comes_online_is_heard_after_connected(path: str) -> None:
    gateway = Gateway(make_settings())

    @gateway.on("user-online")
    async def welcome(change: Transition) -> None:
        await gateway.notify(change.user_id, "welcome", {"n": 1})

    runner = web.AppRunner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://{host}:{port}{path}token={make_token('alice')}") as ws,
        ):
            await ws.send_str("40/ws/messages,") if "socket.io" in path else None
            heard = ""
            while "welcome" not in heard:
                heard += await ws.receive_str(timeout=STEP)
            assert heard.index('"connected"') < heard.index('"welcome"')
    finally:
        await runner.cleanup()


async def test_a_page_hears_before_an_http_answer_tells_it(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(presence_flush_interval=1)
    alice = await Client.connect(closing, running.url)
    await running.gateway.presence.set_online("first")
    await alice.hears("user-online", userId="first")
    await running.gateway.presence.set_online("bob")
    headers = {"Authorization": f"Bearer {make_token('alice')}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{running.url}/online-status?ids=bob") as answer,
    ):
        assert await answer.json() == [{"id": "bob", "online": True}]
    await running.gateway.presence.set_offline("bob")  # with the first, nothing on balance
    await alice.hears("user-online", userId="bob")
    await alice.hears("user-offline", userId="bob")
