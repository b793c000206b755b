"""The JSON codec that python-socketio is given: msgspec's, behind the standard library's two names."""

from __future__ import annotations

from typing import Any

import msgspec


def dumps(value: object, **_options: object) -> str:
    """Encode compactly, whatever `_options` ask for; takes the wire's types as they are."""
    return msgspec.json.encode(value).decode()


def loads(text: str | bytes) -> Any:
    """Decode.

    Raises:
        ValueError: it is not JSON, or nested too deeply. python-engineio relies on this one type.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
