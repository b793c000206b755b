"""What an event carries, between Pusher's world, where it is a text, and the gateway's, where it is JSON.

A text that is JSON is that JSON, byte for byte, so that clients of the gateway's own events get the value in it, and
Pusher's get their text back. Any other text is a string. One case is not exact: the JSON of a string, such as
``"hello"`` with its quotes, comes back as ``hello``, of which pusher-js makes the same; where it would make something
else, as of ``"5"``, the quotes stay. White space around JSON may be lost.
"""

from __future__ import annotations

import msgspec

from gateway.wire import encode, is_too_deep


def from_text(text: str) -> msgspec.Raw:
    """The JSON that a text of Pusher's world is.

    Raises:
        UnicodeEncodeError: it has halves of characters, which no JSON that is sent on may have.
    """
    raw = text.encode()
    if _is_json(raw):
        return msgspec.Raw(raw)
    return msgspec.Raw(encode(text))


def to_text(data: msgspec.Raw) -> str:
    """The text that JSON is in Pusher's world."""
    raw = bytes(data)
    if raw.lstrip()[:1] == b'"':
        text: str = msgspec.json.decode(raw)
        if not _is_json(text.encode()):
            return text
    return raw.decode()


def _is_json(raw: bytes) -> bool:
    """Whether a text is JSON that can be sent on as that."""
    if is_too_deep(raw):
        return False
    try:
        msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return False
    return True
