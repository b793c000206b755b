"""Bytes to many sockets, and the frames of answers, in C where that could be compiled."""

from __future__ import annotations

import os
from itertools import repeat
from typing import TYPE_CHECKING

from gateway.engine.frames import text_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def send_each_in_python(files: Sequence[int], data: bytes) -> list[tuple[int, int]]:
    """Hand bytes to the operating system for each of many sockets that do not block.

    Args:
        files: the sockets.
        data: what each is sent.

    Returns:
        Whose were not taken whole: its place, and how many were, or -1 where the connection is gone.
    """
    return _send(zip(files, repeat(data), strict=False))


def send_own_in_python(files: Sequence[int], frames: Sequence[bytes]) -> list[tuple[int, int]]:
    """The same where each is sent something else.

    Args:
        files: the sockets.
        frames: what they are sent, in the same order.
    """
    return _send(zip(files, frames, strict=True))


def _send(messages: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    left = []
    for place, (file, data) in enumerate(messages):
        try:
            sent = os.write(file, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = -1
        if sent != len(data):
            left.append((place, sent))
    return left


def join_text_frame_in_python(*parts: bytes) -> bytes:
    """One text message made of parts, ready to be written."""
    return text_frame(b"".join(parts))


try:
    from gateway.engine._sending import join_text_frame, send_each, send_own
except ImportError:
    send_each, send_own, join_text_frame = send_each_in_python, send_own_in_python, join_text_frame_in_python

__all__ = [
    "join_text_frame",
    "join_text_frame_in_python",
    "send_each",
    "send_each_in_python",
    "send_own",
    "send_own_in_python",
]
