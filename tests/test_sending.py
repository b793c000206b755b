"""Bytes to many sockets: whatever one of them does, the others are sent theirs. And frames made of parts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from gateway.engine.frames import text_frame
from gateway.engine.sending import (
    join_text_frame,
    join_text_frame_in_python,
    send_each,
    send_each_in_python,
    send_own,
    send_own_in_python,
)

SendEach = Callable[[list[int], bytes], list[tuple[int, int]]]
SendOwn = Callable[[list[int], list[bytes]], list[tuple[int, int]]]
Pair = tuple[socket.socket, socket.socket]

WAYS = ["python", "as it is run"]
both = pytest.mark.parametrize("send_each", [send_each_in_python, send_each], ids=WAYS)
both_own = pytest.mark.parametrize("send_own", [send_own_in_python, send_own], ids=WAYS)
both_join = pytest.mark.parametrize("join_text_frame", [join_text_frame_in_python, join_text_frame], ids=WAYS)


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    pairs = [socket.socketpair() for _ in range(4)]
    for near, far in pairs:
        near.setblocking(False)
        far.setblocking(False)
    yield pairs
    for near, far in pairs:
        near.close()
        far.close()


def fill(near: socket.socket) -> int:
    """Send until no more is taken, and say how much was."""
    filled = 0
    while True:
        try:
            filled += near.send(b"f" * 4096)
        except BlockingIOError:
            return filled


@both
def test_each_is_sent_all(send_each: SendEach, pairs: list[Pair]) -> None:
    assert send_each([near.fileno() for near, _far in pairs], b"hello") == []
    assert [far.recv(100) for _near, far in pairs] == [b"hello"] * len(pairs)


@both
def test_nobody_is_no_trouble(send_each: SendEach) -> None:
    assert send_each([], b"hello") == []


@both
def test_one_that_is_gone_and_one_that_takes_no_more_cost_the_others_nothing(
    send_each: SendEach, pairs: list[Pair]
) -> None:
    pairs[0][1].close()
    fill(pairs[1][0])
    assert send_each([near.fileno() for near, _far in pairs], b"hello") == [(0, -1), (1, 0)]
    assert [far.recv(100) for _near, far in pairs[2:]] == [b"hello"] * 2


@both
def test_what_is_taken_in_part_is_said(send_each: SendEach, pairs: list[Pair]) -> None:
    data = b"x" * 10_000_000
    ((place, sent),) = send_each([pairs[2][0].fileno()], data)
    assert place == 0
    assert 0 < sent < len(data)
    received = 0
    while received < sent:
        received += len(pairs[2][1].recv(1 << 20))
    assert received == sent


@both
def test_a_file_that_is_none_is_gone(send_each: SendEach, pairs: list[Pair]) -> None:
    near, _far = pairs[0]
    file = near.fileno()
    near.close()
    assert send_each([file, pairs[1][0].fileno()], b"hello") == [(0, -1)]
    assert pairs[1][1].recv(100) == b"hello"


def test_what_is_no_file_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        send_each(["1"], b"hello")  # type: ignore[list-item]
    with pytest.raises(TypeError):
        send_each([1], "hello")  # type: ignore[arg-type]


@both_own
def test_each_is_sent_its_own_and_what_was_not_taken_is_said(send_own: SendOwn, pairs: list[Pair]) -> None:
    pairs[0][1].close()
    fill(pairs[1][0])
    frames = [b"gone", b"full", b"third", b""]
    assert send_own([near.fileno() for near, _far in pairs], frames) == [(0, -1), (1, 0)]
    assert pairs[2][1].recv(100) == b"third"
    with pytest.raises(BlockingIOError):
        pairs[3][1].recv(100)
    assert send_own([], []) == []


@both_own
def test_as_many_are_sent_something_as_there_is_to_send(send_own: SendOwn, pairs: list[Pair]) -> None:
    with pytest.raises(ValueError):
        send_own([pairs[0][0].fileno()], [b"one", b"two"])


def test_what_is_no_bytes_is_a_mistake(pairs: list[Pair]) -> None:
    with pytest.raises(TypeError):
        send_own([pairs[0][0].fileno()], ["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        join_text_frame(b"bytes", "text")  # type: ignore[arg-type]


@both_join
@pytest.mark.parametrize("length", [0, 1, 125, 126, 0xFFFF, 0x10000])
def test_a_frame_of_parts_is_that_of_what_they_are_together(join_text_frame: Callable[..., bytes], length: int) -> None:
    text = bytes(index % 251 for index in range(length))
    parts = [text[:3], b"", text[3:]]
    assert join_text_frame(*parts) == text_frame(text)
    assert join_text_frame() == text_frame(b"")
