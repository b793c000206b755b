"""Engine.IO 4 by its own rules, byte by byte: the handshake, both transports, the way from one to the other."""

import asyncio
import json
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest
from conftest import STEP
from protocol import (
    BINARY,
    CLOSE,
    CONTINUATION,
    EVENT,
    PATH,
    PING,
    PONG,
    SEPARATOR,
    TEXT,
    TRANSPORTS,
    EndedError,
    Hosted,
    Link,
    Polling,
    Serve,
    WebSocket,
    event,
    frame,
    message_frame,
    open_link,
    probe,
    upgrade,
    upgrade_headers,
)

# The handshake


async def test_a_polling_session_is_opened_with_all_that_a_client_must_know(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve, ping_interval=7, ping_timeout=3.5, max_payload=5000)
    async with aiohttp.ClientSession() as http, http.get(f"{hosted.url}{PATH}polling&t=abc") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        body = await response.text()
    opening = json.loads(body.removeprefix("0"))
    sid = opening.pop("sid")
    assert isinstance(sid, str)
    assert sid
    assert opening == {"upgrades": ["websocket"], "pingInterval": 7000, "pingTimeout": 3500, "maxPayload": 5000}


async def test_a_websocket_session_is_opened_with_the_same_and_no_upgrades(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve, ping_interval=7, ping_timeout=3.5, max_payload=5000)
    link = await WebSocket.open(closing, hosted.url)
    sid = link.opening.pop("sid")
    assert isinstance(sid, str)
    assert sid
    assert link.opening == {"upgrades": [], "pingInterval": 7000, "pingTimeout": 3500, "maxPayload": 5000}


async def test_a_part_of_a_second_is_told_in_milliseconds(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.25, ping_timeout=0.75)
    polling = await Polling.open(closing, hosted.url)
    websocket = await WebSocket.open(closing, hosted.url)
    for link in (polling, websocket):
        assert (link.opening["pingInterval"], link.opening["pingTimeout"]) == (250, 750)


async def test_every_session_has_its_own_id(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    sids = [(await open_link(closing, hosted.url, transport)).sid for transport in TRANSPORTS * 2]
    assert len(set(sids)) == 6


WRONG_QUERIES = {
    "another version": "EIO=3&transport=polling",
    "no number of a version": "EIO=abc&transport=polling",
    "no version": "transport=polling",
    "an empty version": "EIO=&transport=polling",
    "another transport": "EIO=4&transport=abc",
    "an unknown session": "EIO=4&transport=polling&sid=abc",
}


@pytest.mark.parametrize("name", WRONG_QUERIES)
async def test_a_wrong_query_is_answered_400(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    for method in ("GET", "POST"):
        status, _ = await polling.request(method, f"{hosted.url}/socket.io/?{WRONG_QUERIES[name]}", data=b"40")
        assert status == 400
    await polling.join()


@pytest.mark.parametrize("query", [*WRONG_QUERIES.values(), "EIO=4&transport=websocket&sid=abc"])
async def test_no_websocket_is_opened_with_a_wrong_query(serve: Serve, closing: AsyncExitStack, query: str) -> None:
    hosted = await Hosted.start(serve)
    query = query.replace("polling", "websocket")
    status, link = await WebSocket.upgrade(closing, hosted.url, query)
    assert status == 400 or (status == 101 and await link.ended() is not None)


async def test_a_session_is_opened_with_get_alone(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    for method, answers in {"POST": {400}, "PUT": {400, 405}, "DELETE": {400, 405}}.items():
        status, _ = await polling.request(method, polling.base)
        assert status in answers


async def test_the_websocket_transport_takes_a_websocket(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    assert (await polling.request("GET", f"{hosted.url}{PATH}websocket"))[0] == 400
    assert (await polling.request("GET", f"{hosted.url}{PATH}websocket&sid={polling.sid}"))[0] == 400
    await polling.join()


async def test_the_key_of_a_websocket_is_answered(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.connect(closing, hosted.url)
    status, head = await link.request("EIO=4&transport=websocket", upgrade_headers("dGhlIHNhbXBsZSBub25jZQ=="))
    answered = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    assert status == 101
    assert answered["upgrade"] == "websocket"
    assert answered["connection"] == "upgrade"
    assert "\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in head.lower()  # as RFC 6455 computes it
    assert "sec-websocket-protocol" not in answered


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
        {"User-Agent": "x", "Accept-Encoding": "gzip, deflate, br", "Cookie": "io=abc; jwt=x", "DNT": "1"},
    ],
)
async def test_a_websocket_is_asked_for_as_browsers_do(
    serve: Serve, closing: AsyncExitStack, headers: dict[str, str]
) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.connect(closing, hosted.url)
    assert (await link.request("EIO=4&transport=websocket&t=abc", upgrade_headers() | headers))[0] == 101
    opening = await link.packet()
    assert isinstance(opening, str)
    assert opening[0] == "0"
    await link.join()
    assert await link.rest() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-WebSocket-Version": "12"},
        {"Sec-WebSocket-Version": ""},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Key": ""},
        {"Upgrade": "h2c"},
    ],
)
async def test_no_websocket_is_opened_with_wrong_headers(
    serve: Serve, closing: AsyncExitStack, headers: dict[str, str]
) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.connect(closing, hosted.url)
    status, _ = await link.request("EIO=4&transport=websocket", upgrade_headers() | headers)
    assert 400 <= status < 500


async def test_a_connection_that_was_polled_over_may_become_the_websocket(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    await hosted.main.emit("said", 1)
    link = await WebSocket.connect(closing, hosted.url)
    status, head = await link.request(f"EIO=4&transport=polling&sid={polling.sid}", {})
    length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length: "))
    async with asyncio.timeout(STEP):
        body = await link.reader.readexactly(int(length.split()[1]))
    assert (status, json.loads(body.decode().removeprefix("42"))) == (200, ["said", 1])
    status, _ = await link.request(f"EIO=4&transport=websocket&sid={polling.sid}", upgrade_headers())
    assert status == 101
    await link.send("2probe")
    assert await link.packet() == "3probe"
    await link.send("5")
    assert await link.rest() == []


# The heartbeat


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_server_pings_and_who_answers_stays(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.15, ping_timeout=0.4)
    link = await open_link(closing, hosted.url, transport)
    await link.join()
    started = time.monotonic()
    for _ in range(5):
        while (packet := await link.packet()) == "6":
            pass
        assert packet == "2"
        await link.send("3")
    assert time.monotonic() - started > 0.4
    assert await link.rest() == []
    assert hosted.main.left == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_answers_no_ping_is_closed_after_its_time(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.1, ping_timeout=0.2)
    started = time.monotonic()
    link = await open_link(closing, hosted.url, transport)
    sid = await link.join()
    await link.ended()
    assert time.monotonic() - started > 0.25
    await hosted.main.misses(sid)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_one_pong_is_no_answer_to_the_next_ping(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.1, ping_timeout=0.2)
    link = await open_link(closing, hosted.url, transport)
    sid = await link.join()
    while await link.packet() != "2":
        pass
    await link.send("3")
    await link.ended()
    await hosted.main.misses(sid)


async def test_a_polling_client_that_never_polls_is_closed_too(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.1, ping_timeout=0.2)
    link = await Polling.open(closing, hosted.url)
    sid = await link.join()
    await hosted.main.misses(sid)
    assert (await link.post("40"))[0] == 400
    assert (await link.poll())[0] == 400


# Long-polling


async def test_a_request_carries_several_packets_and_is_answered_ok(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    status, body = await link.post("40", '42["tell",1]', '42["tell",2]', "3", '42["tell",3]')
    assert (status, body.lower()) == (200, "ok")
    assert hosted.main.told == [1, 2, 3]


async def test_a_poll_returns_all_that_waits(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    await link.send("40", *(f'42["echo",{n}]' for n in range(50)))
    status, body = await link.poll()
    opened, *echoed = body.split(SEPARATOR)
    assert (status, opened[:2]) == (200, "40")
    assert [json.loads(packet[2:]) for packet in echoed] == [["echoed", n] for n in range(50)]


async def test_a_poll_waits_for_something_to_return(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    sid = await link.join()
    poll = asyncio.create_task(link.poll())
    await link.send('42["tell",1]')
    assert hosted.main.told == [1]
    assert not poll.done()
    await hosted.main.emit("late", 5, to=sid)
    status, body = await poll
    assert (status, json.loads(body.removeprefix("42"))) == (200, ["late", 5])


async def test_text_is_utf_8_in_both_directions(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    await link.join()
    text = "é \u20ac \u2028 \U0001f600 \ufeff"
    await link.send(f'42["echo","{text}"]')
    async with link.http.get(link.url) as response:
        body = (await response.read()).decode("utf-8")
    assert json.loads(body.removeprefix("42")) == ["echoed", text]


async def test_binary_is_taken_as_base64(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    await link.join()
    await link.send('451-["tell",{"_placeholder":true,"num":0}]', b"\x01\x02\x03\x04\xff")
    await link.send(*event(["tell", b""]))
    await link.send('451-["tell",{"_placeholder":true,"num":0}]')  # its attachment is free to come in another request
    await link.send(b"\x00")
    assert hosted.main.told == [b"\x01\x02\x03\x04\xff", b"", b"\x00"]


async def test_binary_is_sent_as_base64(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    sid = await link.join()
    await hosted.main.emit("bytes", b"\x01\x02\x03\x04", to=sid)
    status, body = await link.poll()
    text, attachment = body.split(SEPARATOR)
    assert (status, attachment) == (200, "bAQIDBA==")
    assert json.loads(text.removeprefix("451-")) == ["bytes", {"_placeholder": True, "num": 0}]


@pytest.mark.parametrize(
    "body",
    [b"abc", b"\x1e", b'42["tell",1]\x1e', b"7", b"-1", b"4\xff", b"bAAA"],
)
async def test_a_body_that_is_no_payload_closes_the_session(serve: Serve, closing: AsyncExitStack, body: bytes) -> None:
    hosted = await Hosted.start(serve)
    other = await Polling.open(closing, hosted.url)
    await other.join()
    link = await Polling.open(closing, hosted.url)
    await link.join()
    status, _ = await link.request("POST", link.url, data=body)
    assert status == 400
    assert (await link.poll())[0] == 400
    assert (await link.post("3"))[0] == 400
    assert len(hosted.main.left) == 1
    assert await other.rest() == []


async def test_a_body_over_the_maximum_is_refused(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve, max_payload=2000)
    link = await Polling.open(closing, hosted.url)
    await link.join()
    await link.send(*event(["tell", "a" * 1900]))
    assert hosted.main.told == ["a" * 1900]
    assert (await link.post(*event(["tell", "a" * 2100])))[0] in {400, 413}
    assert (await link.poll())[0] == 400
    assert len(hosted.main.told) == 1


async def test_a_close_packet_ends_the_session_and_its_poll(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await Polling.open(closing, hosted.url)
    sid = await link.join()
    poll = asyncio.create_task(link.poll())
    await link.send('42["tell",1]')  # by now the poll waits, or it is answered alike later
    assert (await link.post("1"))[0] == 200
    assert (await poll)[0] in {200, 400}
    await hosted.main.misses(sid)
    assert (await link.poll())[0] == 400
    assert (await link.post('42["tell",2]'))[0] == 400
    assert hosted.main.told == [1]


async def test_sessions_do_not_hear_each_other(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    links = [await open_link(closing, hosted.url, transport) for transport in TRANSPORTS * 2]
    for link in links:
        await link.join()
    for n, link in enumerate(links):
        await link.tell(["echo", n])
    for n, link in enumerate(links):
        assert await link.rest() == [(EVENT, "/", None, ["echoed", n])]


# From polling to WebSocket


async def test_a_probe_ends_the_poll_with_a_noop(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    poll = asyncio.create_task(polling.poll())
    await polling.send('42["tell",1]')  # by now the poll waits, or it is answered alike later
    websocket = await probe(closing, hosted.url, polling.sid)
    assert await poll == (200, "6")
    await websocket.send("5", '42["echo",1]')
    assert await websocket.message() == (EVENT, "/", None, ["echoed", 1])


async def test_a_poll_during_an_upgrade_is_answered_with_a_noop(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    websocket = await probe(closing, hosted.url, polling.sid)
    assert await polling.poll() == (200, "6")
    await websocket.send("5")
    assert await websocket.rest() == []


async def test_a_session_may_be_upgraded_before_anything_was_said(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    websocket = await upgrade(closing, hosted.url, polling)
    await websocket.join("/chat")
    assert await websocket.rest("/chat") == []


async def test_the_end_of_an_upgrade_and_what_follows_may_come_in_one_segment(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    status, websocket = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={polling.sid}")
    assert status == 101
    await websocket.send("2probe", "5", *(f'42["tell",{n}]' for n in range(20)), '427["answer"]')
    assert await websocket.packet() == "3probe"
    assert (await websocket.message()).id == 7
    assert hosted.main.told == list(range(20))


async def test_what_a_client_says_during_an_upgrade_arrives_once_and_in_order(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    said = iter(range(1000))

    def some() -> list[str | bytes]:
        return [f'42["tell",{next(said)}]' for _ in range(5)]

    await polling.send(*some())
    status, websocket = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={polling.sid}")
    assert status == 101
    await polling.send(*some())
    await websocket.send("2probe")
    await polling.send(*some())
    assert await websocket.packet() == "3probe"
    await polling.send(*some())  # one that was under way when the probe was answered
    await websocket.send("5", *some())
    await websocket.send(*some())
    assert await websocket.rest() == []
    assert hosted.main.told == list(range(30))


@pytest.mark.parametrize("polls", [True, False])
async def test_what_the_server_says_during_an_upgrade_arrives_once_and_in_order(
    serve: Serve, closing: AsyncExitStack, *, polls: bool
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    sid = await polling.join()
    said = iter(range(1000))

    async def say() -> None:
        for _ in range(5):
            await hosted.main.emit("said", next(said), to=sid)

    poll: asyncio.Task[tuple[int, str]] | None = None
    if polls:
        poll = asyncio.create_task(polling.poll())
        await polling.send('42["tell",1]')  # by now the poll waits, or it is answered alike later
    status, websocket = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={polling.sid}")
    assert status == 101
    await say()
    await websocket.send("2probe")
    await say()
    assert await websocket.packet() == "3probe"
    await say()
    over_polling: list[str] = []
    if poll is not None:
        status, body = await poll
        assert status == 200
        over_polling = [packet for packet in body.split(SEPARATOR) if packet != "6"]
    await say()
    await websocket.send("5")
    await say()
    over_websocket = [packet.data for packet in await websocket.rest()]
    assert [json.loads(packet[2:]) for packet in over_polling] + over_websocket == [["said", n] for n in range(25)]


async def test_binary_that_waits_at_an_upgrade_is_sent_as_binary(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    sid = await polling.join()
    websocket = await probe(closing, hosted.url, polling.sid)
    await hosted.main.emit("bytes", b"\x01\x02", to=sid)
    await websocket.send("5")
    assert [packet.data for packet in await websocket.rest()] == [["bytes", b"\x01\x02"]]


async def test_an_attachment_may_follow_over_the_other_transport(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    await polling.send('451-["tell",{"_placeholder":true,"num":0}]')
    websocket = await upgrade(closing, hosted.url, polling)
    await websocket.send(b"\x01\x02")
    assert await websocket.rest() == []
    assert hosted.main.told == [b"\x01\x02"]


async def test_the_heartbeat_goes_on_after_an_upgrade_that_a_ping_came_before(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve, ping_interval=0.2, ping_timeout=2)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    assert await polling.packet() == "2"
    websocket = await upgrade(closing, hosted.url, polling)
    for _ in range(3):
        await websocket.send("3")
        while (packet := await websocket.packet()) == "6":
            pass
        assert packet == "2"


async def test_a_second_websocket_for_one_session_is_closed_and_the_first_goes_on(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    await polling.join()
    first = await probe(closing, hosted.url, polling.sid)
    for moment in ("probed", "upgraded"):
        status, second = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={polling.sid}")
        if status == 101:
            await second.send("2probe", "5", '42["tell","by the second"]')
            await second.ended()
        else:
            assert status == 400
        if moment == "probed":
            await first.send("5")
        await first.tell(["echo", moment])
        assert await first.message() == (EVENT, "/", None, ["echoed", moment])
    assert hosted.main.told == []


async def test_a_session_that_began_as_a_websocket_has_no_second_one(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    first = await WebSocket.open(closing, hosted.url)
    await first.join()
    status, second = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={first.sid}")
    assert status == 400 or await second.ended() is not None
    assert await first.rest() == []


@pytest.mark.parametrize("transport", ["upgraded", "websocket"])
async def test_http_is_refused_to_a_session_that_has_its_websocket(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    await link.join()
    polling = await Polling.open(closing, hosted.url)
    polling.sid = link.sid
    assert (await polling.poll())[0] == 400
    assert (await polling.post('42["tell","over http"]'))[0] == 400
    assert await link.rest() == []
    assert hosted.main.told == []


FAILED_PROBES: dict[str, list[bytes]] = {
    "nothing, and a goodbye": [frame(CLOSE, b"\x03\xe8")],
    "another packet": [message_frame('42["tell","probed"]')],
    "a ping without its word": [message_frame("2")],
    "an upgrade without a probe": [message_frame("5")],
    "no packet": [message_frame("abc")],
    "bytes": [message_frame(b"2probe")],
    "a broken frame": [b"\xff\xff\xff\xff"],
    "a probe, and a goodbye": [message_frame("2probe"), frame(CLOSE, b"\x03\xe8")],
    "a probe, and another packet": [message_frame("2probe"), message_frame('42["tell","probed"]')],
    "a probe twice": [message_frame("2probe"), message_frame("2probe")],
}


@pytest.mark.parametrize("name", FAILED_PROBES)
async def test_after_a_probe_that_failed_polling_goes_on(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    sid = await polling.join()
    status, websocket = await WebSocket.upgrade(closing, hosted.url, f"EIO=4&transport=websocket&sid={polling.sid}")
    assert status == 101
    websocket.write(*FAILED_PROBES[name])
    await websocket.ended()
    await hosted.main.emit("said", 1, to=sid)
    await polling.tell(["echo", 2])
    assert [packet.data for packet in await polling.rest()] == [["said", 1], ["echoed", 2]]
    assert (hosted.main.told, hosted.main.left) == ([], [])


async def test_after_a_probe_that_vanished_polling_goes_on_and_may_be_upgraded(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    polling = await Polling.open(closing, hosted.url)
    sid = await polling.join()
    websocket = await probe(closing, hosted.url, polling.sid)
    await websocket.vanish()
    await hosted.main.emit("said", 1, to=sid)
    assert [packet.data for packet in await polling.rest()] == [["said", 1]]
    websocket = await upgrade(closing, hosted.url, polling)
    assert await websocket.rest() == []


# WebSocket


async def test_text_and_bytes_each_have_a_frame_of_their_own(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    await link.tell(["echo", b"\x01\x02", "é", b""])
    opcode, text = await link.frame()
    assert (opcode, text[:4]) == (TEXT, b"452-")
    assert json.loads(text[4:])[2] == "é"
    assert await link.frame() == (BINARY, b"\x01\x02")
    assert await link.frame() == (BINARY, b"")


@pytest.mark.parametrize("size", [0, 1, 100, 125, 126, 127, 200, 1000, 65_535, 65_536, 70_000])
async def test_frames_of_every_length_pass_both_ways(serve: Serve, closing: AsyncExitStack, size: int) -> None:
    hosted = await Hosted.start(serve, max_payload=100_000)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    await link.tell(["echo", bytes(size)])
    assert (await link.message()).data == ["echoed", bytes(size)]
    if size >= 13:
        text = '42["echo","' + "a" * (size - 13) + '"]'
        await link.send(text)
        assert (await link.message()).data == ["echoed", text[11:-2]]


async def test_a_message_may_come_in_fragments(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    text = '42["tell","é€\U0001f600"]'.encode()
    pieces = [text[n : n + 1] for n in range(len(text))]  # within characters, too
    link.write(frame(TEXT, fin=False), *(frame(CONTINUATION, piece, fin=False) for piece in pieces))
    link.write(frame(CONTINUATION, b"", fin=True))
    link.write(message_frame('451-["tell",{"_placeholder":true,"num":0}]'))
    link.write(frame(BINARY, b"\x01", fin=False), frame(CONTINUATION, b"\x02\xff"))
    assert await link.rest() == []
    assert hosted.main.told == ["é€\U0001f600", b"\x01\x02\xff"]


async def test_a_ping_frame_between_fragments_is_answered(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    link.write(frame(TEXT, b'42["ec', fin=False), frame(PING, b"between"), frame(CONTINUATION, b'ho",1]'))
    assert await link.frame() == (PONG, b"between")
    assert (await link.message()).data == ["echoed", 1]


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", b"p" * 125])
async def test_a_ping_frame_is_answered_with_its_payload(serve: Serve, closing: AsyncExitStack, payload: bytes) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    link.write(frame(PING, payload))
    assert await link.frame() == (PONG, payload)
    link.write(frame(PONG, b"unasked"))
    await link.join()


async def test_frames_may_come_byte_by_byte(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    for byte in message_frame('42["tell","' + "a" * 150 + '"]') + message_frame('42["tell",2]'):
        link.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await link.rest() == []
    assert hosted.main.told == ["a" * 150, 2]


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9going", b"\x0f\xa0"])
async def test_a_close_frame_is_answered_and_the_connection_ends(
    serve: Serve, closing: AsyncExitStack, payload: bytes
) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    sid = await link.join()
    link.write(frame(CLOSE, payload), message_frame('42["tell","behind it"]'))
    assert (await link.frame())[0] == CLOSE
    await link.ended()
    await hosted.main.misses(sid)
    assert hosted.main.told == []


@pytest.mark.parametrize("transport", ["websocket", "upgraded"])
async def test_a_close_packet_closes_the_websocket(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    sid = await link.join()
    await link.send("1", '42["tell","behind it"]')
    await link.ended()
    await hosted.main.misses(sid)
    assert hosted.main.told == []


@pytest.mark.parametrize("transport", ["websocket", "upgraded"])
async def test_a_websocket_that_is_cut_off_has_left(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    sid = await link.join()
    await link.vanish()
    assert await hosted.main.misses(sid) == "transport close"


TOO_LARGE: dict[str, list[bytes]] = {
    "text": [frame(TEXT, b"4" + b"a" * 2100)],
    "bytes": [frame(BINARY, b"a" * 2100)],
    "fragments": [frame(TEXT, b"4", fin=False), *([frame(CONTINUATION, b"a" * 500, fin=False)] * 5)],
    "a head that announces it": [b"\x81\xff\x00\x00\x00\x01\x00\x00\x00\x00abcd"],
    "bytes of fewer characters": [frame(TEXT, b"4" + "é".encode() * 1050)],
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_a_message_over_the_maximum_closes_the_connection(
    serve: Serve, closing: AsyncExitStack, name: str
) -> None:
    hosted = await Hosted.start(serve, max_payload=2000)
    link = await WebSocket.open(closing, hosted.url)
    sid = await link.join()
    await link.tell(["tell", "a" * 1900])
    assert await link.rest() == []
    link.write(*TOO_LARGE[name])
    assert await link.ended() in {1009, None}
    await hosted.main.misses(sid)
    assert hosted.main.told == ["a" * 1900]


BROKEN: dict[str, list[bytes]] = {
    "text that is no utf-8": [frame(TEXT, b'42["tell","\xff"]')],
    "half a character": [frame(TEXT, b'42["tell","\xe2\x82')],
    "half a surrogate pair": [frame(TEXT, b'42["tell","\xed\xa0\x80"]')],
    "fragments that are no utf-8": [frame(TEXT, b'42["tell","\xe2', fin=False), frame(CONTINUATION, b'"]')],
    "a reserved bit": [frame(TEXT, b'42["tell",1]', reserved=4)],
    "another reserved bit": [frame(TEXT, b'42["tell",1]', reserved=1)],
    "an opcode of nothing": [frame(3, b'42["tell",1]')],
    "a control opcode of nothing": [frame(11, b"")],
    "a fragment of nothing": [frame(CONTINUATION, b'42["tell",1]')],
    "a message within another": [frame(TEXT, b"42", fin=False), frame(TEXT, b'42["tell",1]')],
    "a ping in fragments": [frame(PING, b"a", fin=False), frame(CONTINUATION, b"b")],
    "a ping too long": [frame(PING, b"a" * 126)],
    "a close code of nothing": [frame(CLOSE, b"\x03")],
    "a close code out of range": [frame(CLOSE, b"\x00\x05")],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_breaks_the_websocket_protocol_closes_this_connection_only(
    serve: Serve, closing: AsyncExitStack, name: str
) -> None:
    hosted = await Hosted.start(serve)
    other = await WebSocket.open(closing, hosted.url)
    await other.join()
    link = await WebSocket.open(closing, hosted.url)
    sid = await link.join()
    link.write(*BROKEN[name])
    assert await link.ended() in {1002, 1007, None}
    await hosted.main.misses(sid)
    assert await other.rest() == []
    assert hosted.main.told == []


@pytest.mark.parametrize("packet", ["abc", "7", "9", "", " ", "\u0664", '"4"', "-1", "b", "bAQID"])
async def test_an_unknown_packet_type_closes_this_connection_only(
    serve: Serve, closing: AsyncExitStack, packet: str
) -> None:
    hosted = await Hosted.start(serve)
    other = await WebSocket.open(closing, hosted.url)
    await other.join()
    link: Link = await WebSocket.open(closing, hosted.url)
    sid = await link.join()
    await link.send(packet)
    await link.ended()
    await hosted.main.misses(sid)
    assert await other.rest() == []


async def test_what_came_before_an_unknown_packet_is_answered(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    await link.send('421["answer"]', '42["tell",1]', "abc", '42["tell",2]')
    assert (await link.message()).id == 1
    with pytest.raises(EndedError):
        await link.message()
    assert hosted.main.told == [1]


async def test_a_session_is_gone_when_its_websocket_is(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join()
    link.write(frame(CLOSE, b"\x03\xe8"))
    await link.ended()
    polling = await Polling.open(closing, hosted.url)
    async with asyncio.timeout(STEP):
        for method in ("GET", "POST"):
            assert (await polling.request(method, f"{polling.base}&sid={link.sid}", data=b"3"))[0] == 400
