"""WebSocket frames as a server sends them: RFC 6455, section 5.2, without masks."""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
BINARY: Final = 0x82
"""First byte of a whole message."""

_LENGTH_16, _LENGTH_64 = 126, 127
_MAX_16 = 0xFFFF
_SHORT_TEXT = [bytes((TEXT, length)) for length in range(_LENGTH_16)]


def text_frame(payload: bytes) -> bytes:
    """One text message, ready to be written."""
    length = len(payload)
    if length < _LENGTH_16:
        return _SHORT_TEXT[length] + payload
    if length <= _MAX_16:
        return b"\x81\x7e%b%b" % (length.to_bytes(2), payload)
    return b"\x81\x7f%b%b" % (length.to_bytes(8), payload)


def binary_frame(payload: bytes) -> bytes:
    """One message of bytes, ready to be written."""
    return bytes((BINARY,)) + text_frame(payload)[1:]
