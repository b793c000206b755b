"""WebSocket frames, read back by somebody else's parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from gateway.engine.frames import binary_frame, text_frame

LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536, 100_000)
HEADS = {125: b"\x7d", 126: b"\x7e\x00\x7e", 65_535: b"\x7e\xff\xff", 65_536: b"\x7f\x00\x00\x00\x00\x00\x01\x00\x00"}


def parse(data: bytes) -> list[Frame]:
    """Every frame in these bytes, as a client reads them."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while not at_end(reader):
        parsing = Frame.parse(reader.read_exact, mask=False)
        with pytest.raises(StopIteration) as parsed:
            next(parsing)
        frames.append(parsed.value.value)
    return frames


def at_end(reader: StreamReader) -> bool:
    asking = reader.at_eof()
    try:
        next(asking)
    except StopIteration as answer:
        return bool(answer.value)
    return False


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_of_any_length_is_one_whole_text_frame(length: int) -> None:
    [frame] = parse(text_frame(b"x" * length))
    assert (frame.opcode, frame.fin, frame.data) == (Opcode.TEXT, True, b"x" * length)


@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_of_any_length_are_one_whole_binary_frame(length: int) -> None:
    [frame] = parse(binary_frame(b"\xff" * length))
    assert (frame.opcode, frame.fin, frame.data) == (Opcode.BINARY, True, b"\xff" * length)


@pytest.mark.parametrize("length", HEADS)
def test_a_length_takes_as_few_bytes_as_it_can(length: int) -> None:
    assert text_frame(bytes(length)) == b"\x81" + HEADS[length] + bytes(length)
    assert binary_frame(bytes(length)) == b"\x82" + HEADS[length] + bytes(length)


_PAYLOADS = st.one_of(st.binary(max_size=300), st.sampled_from([bytes(n) for n in LENGTHS]))


@given(st.lists(st.tuples(st.booleans(), _PAYLOADS), max_size=5))
def test_frames_one_after_the_other_are_read_as_they_were_written(payloads: list[tuple[bool, bytes]]) -> None:
    written = b"".join(text_frame(data) if text else binary_frame(data) for text, data in payloads)
    assert [(frame.opcode is Opcode.TEXT, frame.data) for frame in parse(written)] == payloads


@given(_PAYLOADS)
def test_they_are_what_the_websockets_package_writes(payload: bytes) -> None:
    for opcode, write in ((Opcode.TEXT, text_frame), (Opcode.BINARY, binary_frame)):
        assert write(payload) == Frame(opcode, payload).serialize(mask=False)
