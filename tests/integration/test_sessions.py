"""What goes on after a lost connection, packet by packet; the real client's side is in tests/js."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from clients import NAMESPACE, Client, Packets, Plain, abort
from conftest import STEP, Running, eventually, make_token
from redis_servers import fresh_prefix

from gateway.access.limits import Rate
from gateway.engine.namespace import EventCodec, MarkingCodec
from gateway.presence.model import Ending
from gateway.recovery import recovery
from gateway.recovery.offsets import Offset

Serve = Callable[..., Awaitable[Running]]
BROWSER = {"User-Agent": "Mozilla/5.0"}


@pytest.fixture(params=["fast", "stock"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tab:
    """A connection as a browser makes it."""

    def __init__(self, packets: Packets, connect: dict[str, str]) -> None:
        self.packets = packets
        self.sid = connect["sid"]
        self.pid = connect.get("pid")
        self.offset: str | None = None
        """Of the event that was read last."""

    @classmethod
    async def open(cls, closing: AsyncExitStack, running: Running, user: str = "alice", **auth: object) -> Tab:
        url = f"{running.ws_url}/socket.io/?EIO=4&transport=websocket"
        packets = await Packets.open(closing, url, headers=BROWSER)
        assert (await packets.receive())[0] == "0"
        auth = {"token": make_token(user)} | auth
        await packets.ws.send_str(f"40{NAMESPACE},{json.dumps(auth)}")
        answer = await packets.packet("4")
        assert answer[1] == "0", answer
        tab = cls(packets, json.loads(answer[answer.index("{") :]))
        assert (await tab.event())[0] == "connected"
        return tab

    async def event(self) -> list[Any]:
        """The next event, without its offset."""
        packet = await self.packets.packet("42")
        event: list[Any] = json.loads(packet[packet.index("[") :])
        assert isinstance(event[-1], str)
        self.offset = event.pop()
        return event

    async def back(self, closing: AsyncExitStack, running: Running, user: str = "alice", **auth: object) -> Tab:
        """Come back with what socket.io-client would send."""
        return await Tab.open(closing, running, user, **({"pid": self.pid, "offset": self.offset} | auth))


def told(tab: Tab) -> int:
    """Up to where on the presence log a client has been told."""
    offset = Offset.parse(tab.offset)
    assert offset is not None
    return offset.log


async def test_clients_that_cannot_recover_are_sent_what_they_always_were(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine)
    arguments: list[tuple[object, ...]] = []
    client = await Client.connect(closing, running.url, "alice")
    client.io.on("*", lambda _event, *args: arguments.append(args), namespace=NAMESPACE)
    raw = await Packets.start(closing, running.ws_url)
    await raw.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': make_token('bob'), 'pid': 'x', 'offset': 'y'})}")
    answer = await raw.packet("40")
    assert set(json.loads(answer[answer.index("{") :])) == {"sid"}
    await raw.packet("42")
    plain = await Plain.connect(closing, running.ws_url, "carol")
    for user in ("alice", "bob", "carol"):
        await running.gateway.notify(user, "notification", "text")
    await running.gateway._server.emit("said", ("a", "b"), namespace=NAMESPACE)
    assert (await plain.until("notification"))["data"] == "text"
    assert await raw.packet(f'42{NAMESPACE},["n') == f'42{NAMESPACE},["notification","text"]'
    assert await raw.packet(f'42{NAMESPACE},["s') == f'42{NAMESPACE},["said","a","b"]'
    await eventually(lambda: ("a", "b") in arguments)
    assert {len(each) for each in arguments if each != ("a", "b")} == {1}


async def test_a_client_is_back_before_the_server_knows_that_it_was_lost(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine)
    server = running.gateway._server
    tab = await Tab.open(closing, running)
    await server.enter_room(tab.sid, "room", namespace=NAMESPACE)
    offset = tab.offset
    await running.gateway.notify("alice", "notification", 1)
    await server.emit("said", 2, room="room", namespace=NAMESPACE)
    assert [await tab.event(), await tab.event()] == [["notification", 1], ["said", 2]]
    # These it has not heard, says its client: they were on their way when the network failed.
    again = await tab.back(closing, running, offset=offset)
    assert again.pid == tab.pid
    assert again.sid != tab.sid
    assert await tab.packets.closed() == 1001
    assert [await again.event(), await again.event()] == [["notification", 1], ["said", 2]]
    await server.emit("said", 3, room="room", namespace=NAMESPACE)
    assert await again.event() == ["said", 3]
    assert await eventually(lambda: len(running.gateway._recovery.sessions) == 1)  # type: ignore[union-attr]
    assert len(running.gateway._connections) == 1


@pytest.mark.parametrize("limit", ["max_connections_per_user", "max_connections_per_tenant"])
async def test_a_client_that_is_back_has_the_place_that_it_had(
    serve: Serve, closing: AsyncExitStack, engine: str, limit: str
) -> None:
    running = await serve(gateway_engine=engine, **{limit: 1})
    tab = await Tab.open(closing, running)
    with pytest.raises(AssertionError, match=r"TOO_MANY_CONNECTIONS|TENANT_FULL"):
        await Tab.open(closing, running)
    if limit == "max_connections_per_tenant":
        with pytest.raises(AssertionError, match="TENANT_FULL"):
            await tab.back(closing, running, user="mallory")  # whose it never was
    again = await tab.back(closing, running)
    assert again.pid == tab.pid
    assert await tab.packets.closed() == 1001
    await running.gateway.notify("alice", "notification", 1)
    assert await again.event() == ["notification", 1]
    assert len(running.gateway._connections) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_was_over_before_it_was_told_is_not_told_later_either(
    serve: Serve, closing: AsyncExitStack, engine: str, redis_url: str, *, elsewhere: bool
) -> None:
    shared = {"gateway_engine": engine, "presence_flush_interval": 0.2, "presence_offline_grace": 30}
    shared |= {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if elsewhere else {}
    running = await serve(**shared)
    next_to_it = await serve(**shared) if elsewhere else running
    presence = running.gateway.presence
    tab = await Tab.open(closing, running)
    await presence.set_online("bob")
    while (await tab.event())[1].get("userId") != "bob":  # from now on an interval gathers
        pass
    await presence.set_offline("bob")
    await presence.set_online("bob")
    await tab.packets.ws.send_str(f'42{NAMESPACE},1["check-user-status",{{"userId":"bob"}}]')
    answer = await tab.packets.packet(f"43{NAMESPACE},1")
    assert json.loads(answer[answer.index("[") :])[0]["data"]["version"] == 3
    abort(tab.packets.ws)
    await eventually(lambda: not running.gateway._connections)
    await asyncio.sleep(0.3)  # what another node gathers is over
    again = await tab.back(closing, next_to_it)
    assert again.pid == tab.pid
    assert told(again) > told(tab), "wherever it goes next, it is past that"
    abort(again.packets.ws)
    await eventually(lambda: not next_to_it.gateway._connections)
    await presence.set_online("carol")
    await presence.set_online("dave")
    last = await again.back(closing, running)
    assert [(await last.event())[1]["userId"] for _ in range(2)] == ["carol", "dave"]


async def test_a_batch_that_was_heard_in_part_goes_on_where_it_broke(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, presence_flush_interval=0.2)
    presence = running.gateway.presence
    tab = await Tab.open(closing, running)
    await presence.set_online("first")
    await tab.event()  # from now on an interval gathers
    await presence.set_online("bob")
    await presence.set_online("flickers")
    await presence.set_online("carol")
    await presence.set_offline("flickers")
    await presence.set_offline("bob")
    await presence.set_online("bob")
    await presence.set_online("dave")
    whole, offsets = [], []
    for _ in range(3):
        whole.append(await tab.event())
        offsets.append(tab.offset)
    assert [(name, data["userId"], data["version"]) for name, data in whole] == [
        ("user-online", "bob", 3),
        ("user-online", "carol", 1),
        ("user-online", "dave", 1),
    ]
    await presence.set_offline("dave")
    last = await tab.event()
    for heard in range(3):
        tab = await tab.back(closing, running, offset=offsets[heard])
        expected = [*whole[heard + 1 :], last]
        assert [await tab.event() for _ in expected] == expected
    # Broken again while it is told: an offset of what is repeated is as good.
    tab = await tab.back(closing, running, offset=offsets[0])
    assert await tab.event() == whole[1]
    tab = await tab.back(closing, running)
    assert [await tab.event(), await tab.event()] == [whole[2], last]
    await running.gateway.notify("alice", "notification", "the next")
    assert await tab.event() == ["notification", "the next"]


async def test_very_many_changes_come_as_their_net_effect(
    serve: Serve, closing: AsyncExitStack, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SINGLY", 6)
    running = await serve(gateway_engine=engine, presence_offline_grace=30)
    presence = running.gateway.presence
    tab = await Tab.open(closing, running)
    abort(tab.packets.ws)
    await eventually(lambda: not running.gateway._connections)
    for user in ("bob", "carol", "erin"):
        await presence.set_online(user)
        await presence.set_offline(user)
    few = await tab.back(closing, running)
    assert [(await few.event())[1]["userId"] for _ in range(6)] == ["bob", "bob", "carol", "carol", "erin", "erin"]
    await presence.set_online("bob")
    await presence.set_online("dave")
    many = await tab.back(closing, running)
    assert [(await many.event())[1]["userId"] for _ in range(1)] == ["bob"]
    again = await many.back(closing, running)  # it broke in the middle
    assert [(await again.event())[1]["userId"] for _ in range(1)] == ["dave"]
    await presence.set_offline("dave")
    assert (await again.event())[0] == "user-offline"


async def test_what_a_client_sends_as_an_offset_costs_it_its_session_and_nothing_else(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine)
    tab = await Tab.open(closing, running)
    good = tab.offset
    for offset in (None, 7, "", "text", {"a": 1}, "0123abcd.AA.AA", f"{good}.", "x" * 5000):
        again = await tab.back(closing, running, offset=offset)
        assert again.pid != tab.pid
    future = str(good).split(".")
    future[1] = "f_______"
    assert (await tab.back(closing, running, offset=".".join(future))).pid != tab.pid
    pids: list[object] = [None, 7, "", [], "x" * 5000]
    for pid in pids:
        assert (await tab.back(closing, running, pid=pid)).pid not in [pid, tab.pid]


@pytest.mark.parametrize("read", [False, True])
async def test_from_long_ago_one_user_comes_back_so_often_and_then_begins_anew(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, *, read: bool
) -> None:
    monkeypatch.setattr(recovery, "FAR", Rate(2, 60.0))
    monkeypatch.setattr(recovery, "MANY", 1)
    running = await serve()
    tab = await Tab.open(closing, running)
    other = await Tab.open(closing, running, "mallory")
    await running.gateway.presence.set_online("bob")
    while (await tab.event())[1]["userId"] != "bob":
        pass
    for _ in range(3):
        assert (await other.back(closing, running, "mallory")).pid == other.pid, "one change is not many"
    await running.gateway.presence.set_online("carol")
    if read:  # from the store's log: here nothing of it is kept any more
        monkeypatch.setattr(recovery, "MANY", 1000)
        assert running.gateway._recovery is not None
        running.gateway._recovery.history.forget(2**62)
    again = [(await other.back(closing, running, "mallory")).pid == other.pid for _ in range(4)]
    assert again == [True, True, False, False]
    assert (await tab.back(closing, running)).pid == tab.pid, "it costs nobody else"


async def test_a_flood_and_an_expired_token_leave_nothing_to_recover(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, rate_limit_events="5/s")
    tab = await Tab.open(closing, running)
    for _ in range(200):
        await tab.packets.ws.send_str(f'42{NAMESPACE},1["heartbeat"]')
    assert await tab.packets.closed() == 4029
    again = await tab.back(closing, running)
    assert again.pid != tab.pid
    brief = await again.back(closing, running, token=make_token("alice", exp=math.ceil(time.time() + 0.3)))
    assert brief.pid == again.pid
    running.gateway._connections._end_soon(  # as it ends ten seconds after its token did
        running.gateway._connections.of_user("default", "alice")[0], Ending.TOKEN_EXPIRED
    )
    assert await brief.packets.closed() == 4002
    assert (await brief.back(closing, running)).pid != brief.pid


async def test_who_missed_an_event_with_bytes_begins_anew(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    tab = await Tab.open(closing, running)
    await running.gateway._server.emit("said", b"bytes", namespace=NAMESPACE)
    head = await tab.packets.packet("451-")
    event = json.loads(head[head.index("[") :])
    assert event[0] == "said"
    heard = await tab.back(closing, running, offset=event[-1])
    assert heard.pid == tab.pid
    assert (await heard.back(closing, running, offset=tab.offset)).pid != tab.pid


async def test_a_flush_is_encoded_once_for_each_kind_of_client(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve()
    tabs = [await Tab.open(closing, running, f"user-{n}") for n in range(5)]
    others = [await Packets.connect(closing, running.ws_url, f"other-{n}") for n in range(5)]
    await asyncio.sleep(0.1)
    encoded: list[str] = []

    def counted(kind: type[EventCodec], name: str) -> None:
        encode = getattr(kind, name)

        def count(*args: Any) -> Any:
            encoded.append(name)
            return encode(*args)

        monkeypatch.setattr(kind, name, count)

    counted(EventCodec, "encode")
    counted(MarkingCodec, "encode_told")
    await running.gateway.presence.set_online("bob")
    for tab in tabs:
        while (await tab.event())[1]["userId"] != "bob":
            pass
    for other in others:
        while '"bob"' not in await other.packet("42"):
            pass
    assert sorted(encoded) == ["encode", "encode_told"]


async def test_one_session_is_taken_by_one_node(
    serve: Serve, closing: AsyncExitStack, redis_url: str, engine: str
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "gateway_engine": engine}
    first, second, third = [await serve(**shared) for _ in range(3)]
    tab = await Tab.open(closing, first)
    await asyncio.sleep(0.2)
    mallory = await tab.back(closing, second, user="mallory")
    assert mallory.pid != tab.pid
    backs = await asyncio.gather(tab.back(closing, second), tab.back(closing, third))
    assert sorted(back.pid == tab.pid for back in backs) == [False, True]


async def test_sessions_that_redis_lost_are_written_again(
    serve: Serve, closing: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.redis.directory.KEEP", 0.1)
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    first, second = [await serve(**shared) for _ in range(2)]
    tab = await Tab.open(closing, first)
    directory: Any = first.gateway._recovery.directory  # type: ignore[union-attr]
    await asyncio.sleep(0.2)
    assert await directory._commands.send("HLEN", directory._key) == 1
    assert 0 < await directory._commands.send("PTTL", directory._key) <= directory._expires
    await directory._commands.send("DEL", directory._key)
    async with asyncio.timeout(STEP):
        while not await directory._commands.send("HLEN", directory._key):  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.05)
    assert (await tab.back(closing, second)).pid == tab.pid
    await eventually(lambda: len(second.gateway._recovery.sessions) == 1)  # type: ignore[union-attr]


async def test_a_client_that_was_elsewhere_meanwhile_goes_on_as_it_was_there(
    serve: Serve, closing: AsyncExitStack, redis_url: str
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    nodes = [await serve(**shared) for _ in range(2)]
    tab = await Tab.open(closing, nodes[0])
    await nodes[0].gateway._server.enter_room(tab.sid, "room 0", namespace=NAMESPACE)
    for moves in range(1, 5):
        await asyncio.sleep(0.2)  # for the rooms to be where others find them
        abort(tab.packets.ws)
        pid, running = tab.pid, nodes[moves % 2]
        tab = await tab.back(closing, running)
        assert tab.pid == pid
        server = running.gateway._server
        assert set(server.rooms(tab.sid, namespace=NAMESPACE)) == {tab.sid, f"room {moves - 1}"}
        await server.enter_room(tab.sid, f"room {moves}", namespace=NAMESPACE)
        await server.leave_room(tab.sid, f"room {moves - 1}", namespace=NAMESPACE)


async def test_what_a_node_says_while_it_does_what_another_said_has_its_own_place(
    serve: Serve, closing: AsyncExitStack, redis_url: str
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    first, second = [await serve(**shared) for _ in range(2)]
    tab = await Tab.open(closing, first)
    done = asyncio.Event()
    subscribers = first.gateway._bus._subscribers
    decoder, hear = subscribers["socket.io"]

    async def hear_slowly(message: object) -> None:
        await hear(message)
        await done.wait()

    subscribers["socket.io"] = decoder, hear_slowly
    await second.gateway._server.emit("said", 1, namespace=NAMESPACE)
    assert await tab.event() == ["said", 1]
    await first.gateway.notify("alice", "notification", 2)
    done.set()
    again = await tab.back(closing, first)
    assert again.pid == tab.pid
    assert await again.event() == ["notification", 2]


async def test_what_waits_for_one_who_was_lost_comes_behind_what_was_missed(
    serve: Serve, closing: AsyncExitStack, engine: str, redis_url: str
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "gateway_engine": engine}
    first, second = [await serve(**shared) for _ in range(2)]
    tab = await Tab.open(closing, second)
    await asyncio.sleep(0.2)  # for the session to be where others find it
    offset = tab.offset
    assert (await first.gateway.notify("alice", "notification", "on its way")).method == "realtime"
    assert await tab.event() == ["notification", "on its way"]
    abort(tab.packets.ws)  # before she has taken it, says her client
    await eventually(lambda: not len(second.gateway._connections))
    await eventually(lambda: not first.gateway.presence.status("alice").online)
    assert (await first.gateway.notify("alice", "notification", "kept")).method == "queued"
    again = await tab.back(closing, first, offset=offset)
    assert again.pid == tab.pid
    heard: list[object] = []
    while len(heard) < 2:
        packet = await again.packets.packet("42")
        event = json.loads(packet[packet.index("[") :])
        if event[0] == "notification":
            heard.append(event[1])
    assert heard == ["on its way", "kept"]


async def test_what_is_said_while_a_connection_is_closed_comes_with_its_client_s_return(
    serve: Serve, closing: AsyncExitStack, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve(gateway_engine=engine)
    server, tracker = running.gateway._server, running.gateway._tracker
    tab = await Tab.open(closing, running)
    disconnect, done = tracker.disconnect, asyncio.Event()

    async def disconnect_slowly(*args: Any) -> Any:
        await done.wait()  # as Redis may be
        return await disconnect(*args)

    monkeypatch.setattr(tracker, "disconnect", disconnect_slowly)
    [socket] = server.eio.sockets.values()
    ending = asyncio.create_task(socket.close(False, False, server.reason.PING_TIMEOUT))
    await eventually(lambda: not running.gateway._connections)
    await server.emit("said", "a text", namespace=NAMESPACE)
    done.set()
    await ending
    async for message in tab.packets.ws:
        assert "said" not in message.data
    again = await tab.back(closing, running)
    assert again.pid == tab.pid
    assert await again.event() == ["said", "a text"]


async def test_what_is_said_to_a_client_by_name_is_not_lost_with_a_second_connection(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine)
    server = running.gateway._server
    tab = await Tab.open(closing, running)
    await server.emit("said", 1, namespace=NAMESPACE)
    await server.emit("said", 2, to=tab.sid, namespace=NAMESPACE)
    await server.emit("said", 3, skip_sid=tab.sid, namespace=NAMESPACE)
    await server.emit("said", 4, namespace=NAMESPACE)
    offset = tab.offset
    for heard in range(3):  # each connection breaks behind what it was told first
        tab = await tab.back(closing, running, offset=offset)
        for expected in [1, 2, 4][heard:]:
            assert await tab.event() == ["said", expected]
            offset = tab.offset if expected == [1, 2, 4][heard] else offset


@pytest.mark.parametrize("elsewhere", [None, "heard", "read back"])
async def test_a_kick_ends_the_sessions_of_one_who_is_away(
    serve: Serve, closing: AsyncExitStack, redis_url: str, *, elsewhere: str | None
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if elsewhere else {}
    first = await serve(**shared)
    second = await serve(**shared) if elsewhere == "heard" else first
    tab = await Tab.open(closing, first)
    await first.gateway._server.enter_room(tab.sid, "room", namespace=NAMESPACE)
    await asyncio.sleep(0.2)  # for the session to be where others find it
    abort(tab.packets.ws)
    await eventually(lambda: not first.gateway._connections)
    await second.gateway.disconnect("alice")
    if elsewhere == "read back":
        await asyncio.sleep(0.2)
        second = await serve(**shared)
    again = await tab.back(closing, second)
    assert again.pid != tab.pid
    assert set(second.gateway._server.rooms(again.sid, namespace=NAMESPACE)) == {again.sid}
    assert (await again.back(closing, first)).pid == again.pid
