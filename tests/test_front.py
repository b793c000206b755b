"""What stands before aiohttp: how it reads, with aiohttp's own parser as the judge, and when it gives up."""

import asyncio
import time
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.http import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Loop

from gateway.engine.front import MAX_FIELDS, MAX_HEAD, Arrival, Front, Kept, read

HEAD = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def arrival(peername: Any = ("10.0.0.1", 5)) -> Arrival:
    """A connection that has just come."""
    one = Arrival(Mock())
    one.transport = Mock(**{"get_extra_info.side_effect": {"peername": peername}.get})
    return one


BEGIN = b"Host: a.example\r\nConnection: Upgrade\r\n"
LINES = [
    *(b"host:a.example\r\n", b"Upgrade: websocket\r\n", b"upgrade: h2c\r\n"),
    *(b"connection: keep-alive, Upgrade\r\n", b"X-One: a b\t c\r\n", b"X-Two:\r\n", b"X-Three: \t d\r\n"),
    *(b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b" folded\r\n", b"X Bad: a\r\n", b"X-Bad : a\r\n"),
    *(b": a\r\n", b"X-Bad: a \r\n", b"X-Bad: \xc3\xa9\r\n", b"X-Bad: a\n", b"X-Bad: a\r", b"X-Bad: \x00\r\n", b"\r\n"),
    *(b"X-Colons: a:b::c\r\n", b"!#$%&'*+-.^_`|~09azAZ: every sign of a name\r\n"),
]
TARGETS = [
    *(b"?EIO=4&transport=websocket", b"?", b"?a=%C3%A9+b&a=c", b"?a=b#c", b"?a=[b]{c}|^`", b"", b"?a b", b"?/../x?y"),
    *(b"?a=%zz", b"?token=a.b.c", b"?\x7f", b"?a=\xc3\xa9", b"?a=<b>\\\\"),
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(TARGETS), st.lists(st.sampled_from(LINES), max_size=8), st.binary(max_size=8))
async def test_what_is_read_is_read_as_aiohttp_reads_it(target: bytes, lines: list[bytes], behind: bytes) -> None:
    data = b"GET /socket.io/" + target + b" HTTP/1.1\r\n" + BEGIN + b"".join(lines) + b"\r\n" + behind
    found = read(arrival(), data)
    if found is None or found.headers.get("Upgrade") != "websocket":  # which the engine leaves to aiohttp
        return
    parser = HttpRequestParser(Mock(), asyncio.get_running_loop(), 2**16, max_headers=128)
    [(message, _payload)], upgraded, tail = parser.feed_data(data)
    assert (found.method, found._message.path, found.path) == (message.method, message.path, message.url.path)
    assert (found.rel_url, found.query, list(found.headers.items())) == (
        message.url,
        message.url.query,
        list(message.headers.items()),
    )
    assert (found.came_along, found.version) == (tail, message.version)
    assert upgraded
    assert message.upgrade
    assert not message.should_close


@settings(deadline=None)
@given(st.integers(0, len(HEAD) + 1), st.binary(max_size=3))
async def test_no_byte_too_few_or_too_many_is_a_head(at: int, other: bytes) -> None:
    whole = HEAD + b"\r\n"
    assert read(arrival(), whole[:at]) is None
    found = read(arrival(), whole[:at] + other + whole[at:])
    assert found is None or found.headers["Host"].replace(other.decode(), "", 1)


async def test_a_head_has_its_bounds() -> None:
    room = MAX_HEAD - len(HEAD) - len(b"X: \r\n\r\n")
    longest = HEAD + b"X: " + b"a" * room + b"\r\n\r\n"
    found = read(arrival(), longest + b"behind")
    assert found is not None
    assert found.came_along == b"behind"
    assert read(arrival(), longest.replace(b"X: ", b"X: a")) is None
    most = b"".join(b"X-%d: a\r\n" % number for number in range(MAX_FIELDS - 5))
    assert read(arrival(), HEAD + most + b"\r\n") is not None
    assert read(arrival(), HEAD + most + b"X: a\r\n\r\n") is None


@pytest.mark.parametrize(
    "filling", [b" ", b"\t ", b"a", b"a:", b"a: b\r\n", b"a:b\r\n\r", b": ", b"\r\n", b"?", b"a: \r\n"]
)
async def test_no_head_takes_long_however_it_is_made(filling: bytes) -> None:
    began = time.process_time()
    for start in (HEAD, HEAD + b"X: ", HEAD[:-30], b"GET /socket.io/?"):
        for end in (b"", b"\x00", b" \r\n\r\n", b"\r\n\r\n"):
            read(arrival(), start + filling * (16_000 // len(filling)) + end)
    assert time.process_time() - began < 1  # quadratic, each would take half of that


@pytest.mark.parametrize("peername", [("10.0.0.1", 5), ("2001:db8::1", 5, 0, 0), "", None])
async def test_what_is_kept_of_a_request_is_the_same_when_it_is_read_again(peername: Any) -> None:
    came = arrival(peername)
    found = read(came, HEAD.replace(b"websocket HTTP", b"websocket&token=a.b.c HTTP") + b"Cookie: a=b\r\n\r\nbehind")
    assert found is not None
    kept = Kept(found)
    came.transport = Mock()  # which is somebody else's by then
    again = kept.request()
    assert again is not found
    for each in (found, again):
        assert (each.remote, each.query["token"], each.cookies) == (found.remote, "a.b.c", {"a": "b"})
    assert list(again.headers.items()) == list(found.headers.items())
    assert (again.rel_url, again.scheme, again.host) == (found.rel_url, found.scheme, found.host)
    assert (again.transport, again.came_along) == (None, b"")


async def test_a_request_knows_where_it_comes_from() -> None:
    found = read(arrival(), HEAD + b"\r\n")
    assert found is not None
    assert (found.remote, found.scheme, found.host) == ("10.0.0.1", "http", "a.example")
    unix = read(arrival(peername=""), HEAD + b"\r\n")
    assert unix is not None
    assert not unix.remote


def come(front: Front) -> Any:
    """A connection comes; returns its transport."""
    one, transport = front(), Mock()
    transport.close.side_effect = lambda: one.connection_lost(None) if transport.close.call_count > 9 else None
    one.connection_made(transport)
    return transport


def test_those_who_send_nothing_are_closed_each_in_its_time_by_one_timer() -> None:
    loop = Loop()
    front = Front(Mock(), Mock(), loop, 10)
    first, second = come(front), None
    loop.run_until(104)
    second = come(front)
    assert loop.waiting() == [110]
    loop.run_until(110)
    assert (first.close.call_count, second.close.call_count) == (1, 0)
    first_arrival, second_arrival = front.waiting
    first_arrival.connection_lost(None)
    assert loop.waiting() == [114]
    loop.run_until(114)
    assert (first.close.call_count, second.close.call_count) == (1, 1)
    second_arrival.connection_lost(None)
    second_arrival.connection_lost(None)
    assert front.waiting == {}
    assert loop.waiting() == []


def test_those_who_have_sent_something_are_not() -> None:
    loop, handler = Loop(), Mock()
    front = Front(Mock(), Mock(return_value=handler), loop, 10)
    transport = come(front)
    [one] = front.waiting
    one.data_received(b"GET")
    transport.set_protocol.assert_called_once_with(handler)
    handler.connection_made.assert_called_once_with(transport)
    handler.data_received.assert_called_once_with(b"GET")
    loop.run_until(120)
    assert not transport.close.called
    assert loop.waiting() == []


def test_without_a_time_nobody_is_closed_until_the_end() -> None:
    loop = Loop()
    front = Front(Mock(), Mock(), loop, 0)
    transport = come(front)
    assert loop.waiting() == []
    front.close()
    assert transport.close.call_count == 1


def test_who_was_waited_for_when_it_ended_is_waited_for_no_more() -> None:
    loop = Loop()
    front = Front(Mock(), Mock(), loop, 10)
    transport = come(front)
    front.close()
    assert loop.waiting() == []
    assert transport.close.call_count == 1
