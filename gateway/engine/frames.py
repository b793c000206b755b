"""WebSocket frames as a server sends them: RFC 6455, section 5.2, without masks."""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
BINARY: Final = 0x82
"""First byte of a whole message."""

_LENGTH_16, _LENGTH_64 = 126, 127
_MAX_16 = 0xFFFF


def _text_head(length: int) -> bytes:
    if length < _LENGTH_16:
        return bytes((TEXT, length))
    if length <= _MAX_16:
        return bytes((TEXT, _LENGTH_16)) + length.to_bytes(2, "big")
    return bytes((TEXT, _LENGTH_64)) + length.to_bytes(8, "big")


_COMMON: Final = 1024
_TEXT_HEADS: Final = [_text_head(length) for length in range(_COMMON)]
"""How frames begin, by their payload's length, for those that are sent all the time."""


def text_frame(payload: bytes) -> bytes:
    """One text message, ready to be written."""
    length = len(payload)
    return (_TEXT_HEADS[length] if length < _COMMON else _text_head(length)) + payload


def binary_frame(payload: bytes) -> bytes:
    """One message of bytes, ready to be written."""
    return bytes((BINARY,)) + text_frame(payload)[1:]
